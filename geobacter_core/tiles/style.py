"""Styles: how map features become pixels. A style is a folder under `styles/` that a cartographer can edit.

Its `style.toml` is one of three kinds: a hand-written Mapnik map (`map = "carto.xml"`), thematic channels
(`[[channel]]`, each a mask of what its tag filters take), or the looks of a tile server (`drawn_by = "tile server"`).
"""

import hashlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from geobacter_core.errors import StyleError
from geobacter_core.tiles.masks import Channel, map_documents

_STYLES = Path(__file__).parent / "styles"
_BUFFER = re.compile(r'\bbuffer-size="(\d+(?:\.\d+)?)"')
_SPARE_PX = 16
"""Looked at beyond Mapnik's own buffer: rounding of boxes must not lose a feature."""
_LOOKS_AROUND = re.compile(r"<(Text|Shield|Group)Symbolizer|image-filters")
"""What is placed or blurred by what lies around it."""


class _Document(BaseModel):
    """What every `style.toml` states."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    version: str


class _MapDocument(_Document):
    """A style whose Mapnik XML is written by hand; its one image has the channels red, green and blue."""

    map: str
    channels: list[str] = Field(min_length=1, max_length=3)
    keys: list[str]


class _ServerDocument(_Document):
    """A style that a tile server draws."""

    drawn_by: Literal["tile server"]
    channels: list[str] = Field(min_length=3, max_length=3)


class _MaskDocument(_Document):
    """A style of thematic channels."""

    n_channels: int = Field(ge=1, le=64)
    channel: list[Channel] = Field(strict=False)

    @model_validator(mode="after")
    def _channels_are_as_declared(self) -> Self:
        names = [channel.name for channel in self.channel]
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise ValueError(f"channel '{twice[0]}' is there twice. Give every channel a name of its own")
        if len(names) != self.n_channels:
            raise ValueError(
                f"n_channels declares {self.n_channels} channels, and {len(names)} follow. Correct the number, or the "
                "channels"
            )
        return self


_Kind = _MapDocument | _MaskDocument | _ServerDocument


@dataclass(frozen=True, slots=True)
class Style:
    """A loaded style.

    Attributes:
        name: Also the folder's name.
        version: The cartographer's; raise it when the look changes on purpose.
        channels: Names of the pixel's channels, C of them.
        keys: OSM tag keys that the style's filters read.
        digest: Hex SHA-256 over every file of the folder, so that an edit without a new version is seen too.
        folder: Where the style's files are.
        maps: Mapnik XML with the placeholders `${features}` and `${style}`; each draws the next channels, up to
            three. Empty for the looks of a tile server.
        masks: What a thematic channel takes; empty for the other kinds.
    """

    name: str
    version: str
    channels: tuple[str, ...]
    keys: tuple[str, ...]
    digest: str
    folder: Path
    maps: tuple[str, ...]
    masks: tuple[Channel, ...] = ()

    @property
    def is_served(self) -> bool:
        """Whether a tile server draws it, and not Mapnik in this process."""
        return not self.maps

    @property
    def reach_px(self) -> float:
        """How far outside a piece of the map a feature can lie and still be drawn in it, in pixels of a tile."""
        return max((float(found) for xml in self.maps for found in _BUFFER.findall(xml)), default=0.0) + _SPARE_PX

    @property
    def is_local(self) -> bool:
        """Whether a pixel depends on the features in its reach alone, so that strips can be drawn by themselves."""
        return not any(_LOOKS_AROUND.search(xml) for xml in self.maps)

    @property
    def label(self) -> str:
        """`name/version`, as in the tables."""
        return f"{self.name}/{self.version}"


def style_names() -> list[str]:
    """The styles that can be loaded."""
    return sorted(path.parent.name for path in _STYLES.glob("*/style.toml"))


def load_style(name: str) -> Style:
    """Load a style by name.

    Raises:
        StyleError: There is none of that name, or its files are not as they must be.
    """
    if name not in style_names():
        raise StyleError(f"There is no style '{name}'. Known are: {', '.join(style_names())}.")
    return read_style(_STYLES / name)


def read_style(folder: Path) -> Style:
    """Read the style in a folder.

    Raises:
        StyleError: `style.toml` is missing or wrong; it names the field, or the channel and the filter.
    """
    document = _read_document(folder / "style.toml")
    if document.name != folder.name:
        raise StyleError(f"{folder / 'style.toml'}: name '{document.name}' is not the folder's. Rename one of them.")
    channels: tuple[str, ...]
    keys: set[str] = set()
    maps: tuple[str, ...] = ()
    masks: tuple[Channel, ...] = ()
    match document:
        case _MaskDocument():
            masks = tuple(document.channel)
            channels, maps = tuple(mask.name for mask in masks), map_documents(masks)
            keys = {key for mask in masks for shape in mask.all_shapes for key in shape.filter.keys}
        case _MapDocument():
            channels, keys, maps = tuple(document.channels), set(document.keys), (_read_map(folder, document.map),)
        case _ServerDocument():
            channels = tuple(document.channels)
    return Style(
        name=document.name,
        version=document.version,
        channels=channels,
        keys=tuple(sorted(keys)),
        digest=_digest(folder),
        folder=folder,
        maps=maps,
        masks=masks,
    )


def _read_document(path: Path) -> _Kind:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise StyleError(f"{path} cannot be read ({problem.strerror}). A style is a folder with that file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise StyleError(f"{path} is not TOML: {problem}. Mend that line.") from None
    kinds: dict[str, type[_Kind]] = {"map": _MapDocument, "n_channels": _MaskDocument, "drawn_by": _ServerDocument}
    chosen = [kind for key, kind in kinds.items() if key in document]
    if len(chosen) != 1:
        raise StyleError(
            f"{path}: a style has one of 'map' (Mapnik XML), 'n_channels' (thematic channels) and 'drawn_by' (a tile "
            f"server); this one has {len(chosen)}. Keep one."
        )
    try:
        return chosen[0].model_validate(document)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise StyleError(f"{', '.join((str(path), *_place(document, first['loc'])))}: {_said(first)}") from None


def _place(document: object, loc: tuple[int | str, ...]) -> Iterator[str]:
    """Where in a document an error lies, step by step: a channel by its name, a shape by its filter."""
    here = document
    for index, part in enumerate(loc):
        try:
            here = here[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            here = None
        if isinstance(part, int):
            label = (
                next((here[key] for key in ("name", "tags") if here.get(key)), None) if isinstance(here, dict) else None
            )
            yield f"{loc[index - 1]} '{label}'" if label else f"{loc[index - 1]} number {part + 1}"
        elif index + 1 == len(loc) or not isinstance(loc[index + 1], int):
            yield f"field '{part}'"


def _said(error: ErrorDetails) -> str:
    """What is wrong and what to do, in the words of a `style.toml`."""
    match error["type"]:
        case "extra_forbidden":
            return "there is no such field. Remove it, or correct its name."
        case "missing":
            return "it is missing. Add it."
        case "value_error":
            return f"{error['msg'].removeprefix('Value error, ')}."
    wanted = error["msg"].replace("Input", "it").replace("tuple", "list")
    return f"{re.sub('dictionary or instance of [A-Za-z]+', 'table', wanted)}, not {error['input']!r:.80}. Correct it."


def _read_map(folder: Path, name: str) -> str:
    path = folder / name
    try:
        return path.read_text(encoding="utf-8")
    except OSError as problem:
        raise StyleError(
            f"{folder / 'style.toml'}: map '{name}' cannot be read ({problem.strerror}). Correct `map`."
        ) from None


def _digest(folder: Path) -> str:
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            sha.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()


def all_keys() -> tuple[str, ...]:
    """The tag keys that any style reads: the columns of the map features."""
    return tuple(sorted({key for name in style_names() for key in load_style(name).keys}))
