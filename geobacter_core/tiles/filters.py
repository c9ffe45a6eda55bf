"""Tag filters: which map features a thematic channel takes.

    filter = clause { "&" clause }
    clause = key ("=" | "!=") ("*" | value { "|" value })

`highway=primary|secondary & tunnel!=yes`: one of the two values, and not that tunnel. `building=*`: any value;
`building!=*`: no such tag. A feature without the key passes `!=`, and an empty value is no tag.

It is evaluated in two places, which agree: by Mapnik when it draws, and on Arrow columns when objects are counted.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from geobacter_core.errors import StyleError

_CLAUSE = re.compile(
    r"(?P<key>[A-Za-z0-9_:]+)\s*(?P<sign>!?=)\s*(?P<values>\*|[^\s&|=!*'\"\\]+(\s*\|\s*[^\s&|=!*'\"\\]+)*)"
)
LAYER_KEY = "layer"
GRAMMAR = "Write key=value, key=one|other, key=*, key!=value or key!=*, several joined by &"


@dataclass(frozen=True, slots=True)
class Clause:
    """One condition on one tag.

    Attributes:
        key: The tag's key.
        values: What it is compared with; empty for `*`, any value.
        is_negated: Whether the condition was written with `!=`.
    """

    key: str
    values: tuple[str, ...]
    is_negated: bool

    def mapnik(self) -> str:
        """The clause as a Mapnik expression. An absent tag is the empty string there."""
        if not self.values:
            return f"[{self.key}]{'=' if self.is_negated else '!='}''"
        sign, word = ("!=", " and ") if self.is_negated else ("=", " or ")
        conditions = [f"[{self.key}]{sign}'{value}'" for value in self.values]
        return f"({word.join(conditions)})"

    def matches(self, tags: Mapping[str, pa.Array]) -> pa.Array:
        """Whether each row fulfils it: boolean `[N]`, never null."""
        column = tags[self.key]
        if self.values:
            found = pc.is_in(column, pa.array(self.values, column.type))
        else:
            found = pc.fill_null(pc.not_equal(column, ""), False)
        return pc.invert(found) if self.is_negated else found


@dataclass(frozen=True, slots=True)
class TagFilter:
    """Clauses that a feature must all fulfil."""

    clauses: tuple[Clause, ...]

    @property
    def keys(self) -> set[str]:
        """The tag keys it reads."""
        return {clause.key for clause in self.clauses}

    def mapnik(self) -> str:
        """The filter as a Mapnik expression."""
        return " and ".join(clause.mapnik() for clause in self.clauses)

    def matches(self, tags: Mapping[str, pa.Array]) -> pa.Array:
        """Which rows it takes: boolean `[N]`.

        Args:
            tags: Key to a string column, null where the tag is absent.
        """
        first, *others = (clause.matches(tags) for clause in self.clauses)
        for other in others:
            first = pc.and_(first, other)
        return first


def parse_filter(text: str) -> TagFilter:
    """Read a tag filter.

    Raises:
        StyleError: The text is not one; it quotes the clause that is wrong.
    """
    clauses: list[Clause] = []
    for part in text.split("&"):
        match = _CLAUSE.fullmatch(part.strip())
        if match is None:
            raise StyleError(f"'{part.strip()}' is not a condition on a tag. {GRAMMAR}.")
        if match["key"] == LAYER_KEY:
            raise StyleError(f"'{LAYER_KEY}' is kept as a number, which no filter can read. Use another key.")
        values = () if match["values"] == "*" else tuple(value.strip() for value in match["values"].split("|"))
        clauses.append(Clause(match["key"], values, match["sign"] == "!="))
    return TagFilter(tuple(clauses))
