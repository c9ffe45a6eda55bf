"""Where tiles come from on a machine that has a model: folders, a tile server, or an installation's data folder."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from geobacter_core.embeddings.places import Ground, find_ground
from geobacter_core.errors import FeaturesError, GeobacterError, TileCacheError, TileServerError
from geobacter_core.osm.features import MANIFEST as FEATURES_MANIFEST
from geobacter_core.regions import Region, check_tile_server
from geobacter_core.settings import Settings
from geobacter_core.tiles.cache import MANIFEST, load_manifest
from geobacter_core.tiles.style import Style

_log = logging.getLogger(__name__)
_VARIABLES = {
    "tiles": "GEOBACTER_TILES",
    "features": "GEOBACTER_FEATURES",
    "tile_server": "GEOBACTER_TILE_SERVER",
    "data": "GEOBACTER_DATA",
}


@dataclass(frozen=True, slots=True)
class Sources:
    """What somebody says of where tiles come from.

    Attributes:
        tiles: A tile cache, or a folder with several below it, as `tiles/<region>/<style>`.
        features: Map features, or a folder with those of several regions, as `features/<region>`.
        tile_server: Address of a tile server, with `{z}`, `{x}` and `{y}`.
        data: An installation's data folder; it is looked at where none of the others is given.
    """

    tiles: Path | None = None
    features: Path | None = None
    tile_server: str | None = None
    data: Path = Path("data")

    @classmethod
    def of(cls, environment: Mapping[str, str], config: Mapping[str, object]) -> "Sources":
        """What `config` says, and for what it leaves out or empty the environment: `GEOBACTER_TILES` and so on."""
        said = {name: str(config.get(name) or environment.get(variable) or "") for name, variable in _VARIABLES.items()}
        tiles, features = (_folder(said[name]) if said[name] else None for name in ("tiles", "features"))
        return cls(tiles, features, said["tile_server"] or None, _folder(said["data"] or "data"))


def _folder(text: str) -> Path:
    return Path(text).expanduser().resolve()


def find_grounds(sources: Sources, style: Style, encoder: str) -> list[Ground]:
    """The ground that windows can be cut from for an encoder of a style: caches first, what has to be drawn last.

    Raises:
        GeobacterError: There is none, or what is there is of another style; it says what was looked at.
    """
    grounds: list[Ground] = []
    if sources.tiles is not None:
        grounds += _of_caches(sources.tiles, style, encoder)
    if sources.features is not None:
        grounds += _of_features(sources.features, style, encoder)
    if sources.tile_server is not None:
        grounds.append(_of_server(sources.tile_server, style, encoder))
    if grounds:
        return grounds
    grounds = installed_grounds(sources.data, style)
    if not grounds:
        raise TileCacheError(
            f"Encoder {encoder} cuts windows from tiles of style '{style.label}', and there are none in {sources.data}."
            f" Set {_HOW}, as model_config of mlflow.pyfunc.load_model or as environment variables "
            f"({', '.join(_VARIABLES.values())})."
        )
    return grounds


_HOW = (
    "`tiles` (a tile cache, or a folder of several), `features` (a folder as features/<region>), `tile_server` (for "
    "styles that one draws) or `data` (the data folder of an installation)"
)


def installed_grounds(data: Path, style: Style) -> list[Ground]:
    """The ground of every region in a data folder that has tiles in a style, or features to draw them from.

    Those that cannot be read are left out, and the log says why.
    """
    settings = Settings.from_environment({"GEOBACTER_DATA": str(data), "GEOBACTER_STYLE": style.name})
    names = {path.parent.parent.name for path in data.glob(f"tiles/*/{style.name}/{MANIFEST}")}
    if not style.is_served:
        names |= {path.parent.name for path in data.glob(f"features/*/{FEATURES_MANIFEST}")}
    grounds: list[Ground] = []
    for name in sorted(names):
        try:
            grounds.append(find_ground(settings, name, style))
        except GeobacterError as problem:
            _log.warning("region '%s' is left out: %s", name, problem)
    return grounds


def _of_caches(folder: Path, style: Style, encoder: str) -> Iterator[Ground]:
    found = list(_holding(folder, MANIFEST, 2))
    if not found:
        raise TileCacheError(
            f"{folder} holds no tile cache ({MANIFEST} is neither in it nor one or two folders below). Set `tiles` to "
            "a folder as tiles/<region>/<style>, or to one with several."
        )
    labels = {each: load_manifest(each).style_label for each in found}
    fitting = [each for each in found if labels[each] == style.label]
    if not fitting:
        raise TileCacheError(
            f"The tiles in {folder} are of style {', '.join(sorted(set(labels.values())))}, and encoder {encoder} "
            f"takes windows of style {style.label}. Point `tiles` to tiles of that style: geobacter tiles build REGION "
            f"--style {style.name} makes them."
        )
    return (Ground.of_cache(each, style) for each in fitting)


def _of_features(folder: Path, style: Style, encoder: str) -> Iterator[Ground]:
    if style.is_served:
        raise FeaturesError(
            f"Encoder {encoder} takes tiles of style {style.label}, which a tile server draws and not this process "
            f"from the features in {folder}. Set `tile_server` or `tiles` instead."
        )
    found = list(_holding(folder, FEATURES_MANIFEST, 1))
    if not found:
        raise FeaturesError(
            f"{folder} holds no map features ({FEATURES_MANIFEST} is neither in it nor one folder below). Set "
            "`features` to a folder as features/<region>, or to one with several."
        )
    return (Ground.of_features(each, style) for each in found)


def _of_server(address: str, style: Style, encoder: str) -> Ground:
    if not style.is_served:
        raise TileServerError(
            f"`tile_server` is set, and encoder {encoder} takes windows of style {style.label}, which no tile server "
            "draws. Set `tiles` or `features` instead."
        )
    try:
        check_tile_server(address)
    except ValueError as problem:
        raise TileServerError(f"`tile_server` cannot be used: {problem}.") from None
    return Ground.of_server(Region(name="tile-server", extract="", tile_server=address), style)


def _holding(folder: Path, manifest: str, depth: int) -> Iterator[Path]:
    """`folder` itself if it has a manifest, else the folders up to so many levels below that have one, sorted."""
    if (folder / manifest).exists():
        yield folder
        return
    for level in range(1, depth + 1):
        yield from sorted(path.parent for path in folder.glob("*/" * level + manifest))
