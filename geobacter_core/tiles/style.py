"""Styles: how map features become pixels. A style is a folder under `styles/` that a cartographer can edit."""

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from geobacter_core.errors import StyleError

_STYLES = Path(__file__).parent / "styles"


class _Document(BaseModel):
    """`style.toml`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    version: str
    map: str
    channels: list[str]
    keys: list[str]


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
        map_file: The Mapnik XML.
    """

    name: str
    version: str
    channels: tuple[str, ...]
    keys: tuple[str, ...]
    digest: str
    folder: Path
    map_file: Path


def style_names() -> list[str]:
    """The styles that can be loaded."""
    return sorted(path.parent.name for path in _STYLES.glob("*/style.toml"))


def load_style(name: str) -> Style:
    """Load a style by name.

    Raises:
        StyleError: There is none of that name, or its files are not as they must be.
    """
    folder = _STYLES / name
    if name not in style_names():
        raise StyleError(f"There is no style '{name}'. Known are: {', '.join(style_names())}.")
    try:
        document = _Document.model_validate(tomllib.loads((folder / "style.toml").read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as problem:
        raise StyleError(f"{folder / 'style.toml'} is not TOML: {problem}. Mend that line.") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise StyleError(f"{folder / 'style.toml'}, field '{field}': {first['msg']}. Correct it.") from None
    if document.name != name:
        raise StyleError(f"{folder / 'style.toml'}: name '{document.name}' is not the folder's. Rename one of them.")
    map_file = folder / document.map
    if not map_file.is_file():
        raise StyleError(f"{folder / 'style.toml'}: map '{document.map}' does not exist. Correct `map`.")
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            sha.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return Style(
        name=name,
        version=document.version,
        channels=tuple(document.channels),
        keys=tuple(sorted(set(document.keys))),
        digest=sha.hexdigest(),
        folder=folder,
        map_file=map_file,
    )


def all_keys() -> tuple[str, ...]:
    """The tag keys that any style reads: the columns of the map features."""
    return tuple(sorted({key for name in style_names() for key in load_style(name).keys}))
