"""A region's report: pictures of its embeddings and of what changed, and one HTML page that needs nothing else."""

import base64
import html
import io
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import shapely
from PIL import Image

from geobacter_core.embeddings.history import Changes
from geobacter_core.embeddings.table import EmbeddingTable
from geobacter_core.files import remove_temporaries, written_aside
from geobacter_core.plots import (
    change_map,
    embedding_map,
    interpolation_strips,
    neighbour_strips,
    png_bytes,
    principal_components,
    window_mosaic,
)
from geobacter_core.tiles.cache import TileCache

_EARTH_RADIUS_KM = 6371.0072
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Report:
    """A written report.

    Attributes:
        page: The HTML page, which holds the pictures too.
        map: Cells in colours of their embeddings, PNG.
        mosaic: Windows laid out by their embeddings, PNG.
        neighbours: Windows and those most similar to them, PNG.
        interpolation: Windows between two that are nothing alike, PNG.
        n_cells: Rows of the table.
        n_distinct: Distinct embeddings among them.
        variance_shares: Share of the variance, 0 to 1, that each of the first three principal components carries.
    """

    page: Path
    map: Path
    mosaic: Path
    neighbours: Path
    interpolation: Path
    n_cells: int
    n_distinct: int
    variance_shares: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Section:
    """A part of the page: a heading, a picture and what the picture says to those who cannot see it."""

    name: str
    link: str
    heading: str
    text: str
    draw: Callable[[EmbeddingTable, TileCache], Image.Image]


_SECTIONS = (
    _Section(
        "map",
        "Map",
        "Where places are alike",
        "Every cell has the colour of its embedding. Cells of one colour look alike to the encoder, near or far.",
        embedding_map,
    ),
    _Section(
        "mosaic",
        "Sorted windows",
        "The region, sorted",
        "The windows that the encoder saw, side by side when their embeddings are alike.",
        window_mosaic,
    ),
    _Section(
        "neighbours",
        "Most similar places",
        "Most similar places",
        "Some windows, and the places elsewhere in the region whose embeddings are nearest to theirs.",
        neighbour_strips,
    ),
    _Section(
        "interpolation",
        "Between places",
        "From one place to another",
        "What the region has between two places that are nothing alike.",
        interpolation_strips,
    ),
)


_CHANGES = _Section(
    "changes",
    "Changes",
    "What the last refresh changed",
    "Cells whose windows have other pixels than before, by how far their embeddings moved.",
    embedding_map,
)


def build_report(
    folder: Path, table: EmbeddingTable, cache: TileCache, ground: shapely.Geometry, changes: Changes | None = None
) -> Report:
    """Write a region's pictures and page into `folder`; the same input gives the same bytes.

    Args:
        folder: Where `map.png`, `mosaic.png`, `neighbours.png`, `interpolation.png` and `report.html` go.
        table: The region's embeddings.
        cache: The region's tiles, in the encoder's style.
        ground: What the region covers, in degrees.
        changes: What the last refresh changed; then there is a `changes.png`, too.

    Raises:
        TileCacheError: A chunk that a picture needs is missing or damaged.
    """
    region = str(table.metadata["region"])
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    components = principal_components(table.embeddings)
    sections: list[str] = []
    drawn = list(_SECTIONS)
    (folder / "changes.png").unlink(missing_ok=True)
    if changes is not None and len(changes):
        drawn.insert(1, replace(_CHANGES, draw=partial(change_map, changes=changes)))
    for section in drawn:
        image = section.draw(table, cache)
        _write_bytes(folder / f"{section.name}.png", png_bytes(image))
        sections.append(_section_html(section, region, image))
        _log.info("%s: drew %s.png, %d by %d px", region, section.name, *image.size)
    n_distinct = len(components.distinct)
    figures = _figures(table, ground, n_distinct, components.variance_shares)
    page = Template(files(__name__).joinpath("report.html").read_text(encoding="utf-8")).substitute(
        region=html.escape(region.replace("_", " ").replace("-", " ").title()),
        encoder=html.escape(str(table.metadata.get("encoder", "?"))),
        figures="\n".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in figures
        ),
        links="".join(f'<a href="#{section.name}">{html.escape(section.link)}</a>' for section in drawn),
        sections="\n".join(sections),
        digest=html.escape(table.digest),
    )
    _write_bytes(folder / "report.html", page.encode("utf-8"))
    _log.info("%s: wrote %s", region, folder / "report.html")
    return Report(
        page=folder / "report.html",
        map=folder / "map.png",
        mosaic=folder / "mosaic.png",
        neighbours=folder / "neighbours.png",
        interpolation=folder / "interpolation.png",
        n_cells=len(table),
        n_distinct=n_distinct,
        variance_shares=components.variance_shares,
    )


def _figures(
    table: EmbeddingTable, ground: shapely.Geometry, n_distinct: int, shares: tuple[float, float, float]
) -> list[tuple[str, str]]:
    found = table.metadata
    return [
        ("Cells", f"{len(table):,} ({_kind_of_cells(found)})"),
        ("Ground", f"{_area_km2(ground):,.1f} km²"),
        ("Encoder", str(found.get("encoder", "?"))),
        ("Style", str(found.get("style", "?"))),
        ("OSM data of", str(found.get("osm_timestamp", "?"))[:10]),
        ("Window", f"{float(found['size_m']):g} m, seen at {found.get('size_px', '?')} px"),
        ("Embedding", f"{table.embeddings.shape[1]} numbers"),
        ("Distinct embeddings", f"{n_distinct:,} ({n_distinct / len(table):.1%} of cells)"),
        ("Variance in three components", " + ".join(f"{100 * share:.0f}" for share in shares) + " %"),
    ]


def _kind_of_cells(metadata: Mapping[str, Any]) -> str:
    if "cell_resolution" in metadata:
        return f"H3 resolution {metadata['cell_resolution']}"
    return f"of {metadata['cells']}; {metadata['n_outside']:,} lie outside the region"


def _area_km2(ground: shapely.Geometry) -> float:
    """Area of an area given in degrees: on the sphere, by Lambert's cylindrical projection, within 0.7 %."""
    projected = shapely.transform(
        ground, lambda lonlat: np.stack([np.radians(lonlat[:, 0]), np.sin(np.radians(lonlat[:, 1]))], axis=1)
    )
    return float(projected.area) * _EARTH_RADIUS_KM**2


def _section_html(section: _Section, region: str, image: Image.Image) -> str:
    alternative = html.escape(f"{region}: {section.text}")
    encoded = base64.b64encode(_page_bytes(image)).decode("ascii")
    return (
        f'<section id="{section.name}">\n<h2>{html.escape(section.heading)}</h2>\n<p>{html.escape(section.text)}</p>\n'
        f'<figure tabindex="0"><img src="data:image/webp;base64,{encoded}" alt="{alternative}" width="{image.width}" '
        f'height="{image.height}"></figure>\n</section>'
    )


def _page_bytes(image: Image.Image) -> bytes:
    """The picture for the page: WebP, a fifth of the PNG's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=88, method=4)
    return buffer.getvalue()


def _write_bytes(path: Path, content: bytes) -> None:
    with written_aside(path) as temporary:
        temporary.write_bytes(content)


def report_problems(folder: Path) -> list[str]:
    """What is wrong with a report: a page that is missing, or that would fetch something; nothing if all is well."""
    page = folder / "report.html"
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        return [f"{page} cannot be read: {problem}. Materialise embedding_report for the region."]
    fetched = re.findall(r"<(?:img|script|link|iframe|source)\b[^>]*?(?:src|href)=[\"']?(?!data:)([^\"'>\s]+)", text)
    return [f"{page} fetches {address}." for address in fetched]
