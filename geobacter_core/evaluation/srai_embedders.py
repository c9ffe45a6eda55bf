"""Baselines from kraina-ai/srai: its embedders of OSM tags, on the same cells and the same extract.

srai is an optional extra (`pip install geobacter[srai]`); without it there are no such baselines. It gets the tags that
`tags.tag_counts` counts, after the hidden ones were taken off, and two rings of cells around each cell that is asked
for, so that its contextual embedders have a context everywhere.
"""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h3
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from geobacter_core.evaluation.hidden import Hidden, read_hidden, tags_of
from geobacter_core.evaluation.semantics import Geometries, geometries_of, mercator_hexagons, touching
from geobacter_core.evaluation.tags import common_tags
from geobacter_core.osm.features import LAYERS

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd
    from srai.neighbourhoods import H3Neighbourhood

N_RINGS = 2
HEX2VEC_EPOCHS = 5
HEX2VEC_BATCH = 128

_log = logging.getLogger(__name__)


def srai_is_installed() -> bool:
    """Whether the optional extra `srai` is there."""
    return all(importlib.util.find_spec(name) is not None for name in ("srai", "pytorch_lightning"))


def srai_baselines(
    files: Path, cells: Sequence[str], hidden: Hidden | None, seed: int
) -> dict[str, NDArray[np.float32]]:
    """Embed H3 cells by srai's CountEmbedder, ContextualCountEmbedder and Hex2VecEmbedder.

    The contextual one (Raczycki and Szymański, ARIC 2021) adds the mean of each ring to the cell's counts, with weight
    1/4 and 1/9, as is srai's default; the rings as columns of their own scored less in ridge probes of Porto, the only
    region where both were tried. Hex2Vec (Woźniak and Szymański, GeoAI 2021) has srai's own layers of 150, 75 and 50,
    and learns for five epochs which cells are neighbours, on the CPU.

    Args:
        files: Folder with `points.fgb`, `lines.fgb` and `polygons.fgb`, nothing hidden.
        cells: H3 indexes, N of them.
        hidden: The question set that is hidden; None for the whole map.
        seed: Of Hex2Vec's weights, batches and negatives.

    Returns:
        float32 `[N, D]` by the embedder's name, in the order of `cells`; nothing where srai is not installed.
    """
    if not srai_is_installed():
        _log.info("srai is not installed, so its embedders are not among the baselines. pip install 'geobacter[srai]'")
        return {}
    with _quiet(), _repeatable(seed):
        joined = _joined(files, cells, hidden)
        tables = {
            "srai count": _count(joined),
            "srai contextual count": _contextual_count(joined, cells),
            "srai hex2vec": _hex2vec(joined, cells),
        }
    return {name: table.loc[list(cells)].to_numpy(np.float32) for name, table in tables.items()}


@dataclass(frozen=True, slots=True)
class _Joined:
    """What srai's embedders take: cells (index `region_id`), objects (index `feature_id`), and which touch which."""

    regions: "gpd.GeoDataFrame"
    features: "gpd.GeoDataFrame"
    joint: "gpd.GeoDataFrame"


def _count(joined: _Joined) -> "pd.DataFrame":
    from srai.embedders import CountEmbedder

    return CountEmbedder(count_subcategories=True).transform(joined.regions, joined.features, joined.joint)


def _contextual_count(joined: _Joined, cells: Sequence[str]) -> "pd.DataFrame":
    from srai.embedders import ContextualCountEmbedder

    embedder = ContextualCountEmbedder(
        neighbourhood=_neighbourhood(joined, cells),
        neighbourhood_distance=N_RINGS,
        count_subcategories=True,
        num_of_multiprocessing_workers=1,
    )
    return embedder.transform(joined.regions, joined.features, joined.joint)


def _hex2vec(joined: _Joined, cells: Sequence[str]) -> "pd.DataFrame":
    from srai.embedders import Hex2VecEmbedder

    class Sorted(Hex2VecEmbedder):  # type: ignore[misc]
        """Learns from the cells in their order; srai's join of tables gives them in another one every time."""

        def _get_raw_counts(
            self, regions_gdf: "gpd.GeoDataFrame", features_gdf: "gpd.GeoDataFrame", joint_gdf: "gpd.GeoDataFrame"
        ) -> "pd.DataFrame":
            return super()._get_raw_counts(regions_gdf, features_gdf, joint_gdf).loc[regions_gdf.index]

    trainer = {
        "max_epochs": HEX2VEC_EPOCHS,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Sorted(count_subcategories=True).fit_transform(
        joined.regions,
        joined.features,
        joined.joint,
        _neighbourhood(joined, cells),
        batch_size=HEX2VEC_BATCH,
        trainer_kwargs=trainer,
    )


def _joined(files: Path, cells: Sequence[str], hidden: Hidden | None) -> _Joined:
    import geopandas as gpd
    import pandas as pd
    from srai.joiners import IntersectionJoiner

    around = sorted({near for cell in cells for near in h3.grid_disk(cell, N_RINGS)})
    hexagons = mercator_hexagons(around)
    regions = gpd.GeoDataFrame(geometry=hexagons, index=pd.Index(around, name="region_id"), crs="EPSG:3857")
    geometry, tags = _objects(files, hexagons, hidden)
    names = pd.Index([str(number) for number in range(len(geometry))], name="feature_id")
    features = gpd.GeoDataFrame(tags.to_pandas().set_index(names), geometry=geometry, crs="EPSG:3857")
    return _Joined(regions, features, IntersectionJoiner().transform(regions, features))


def _objects(files: Path, hexagons: Geometries, hidden: Hidden | None) -> tuple[Geometries, pa.Table]:
    """The objects that touch a cell and have a common tag: geometry `[N]`, and their common tags as columns by key."""
    common = common_tags(files, hidden)
    values = {key: pa.array([value for of, value in common if of == key]) for key, _ in common}
    tree = shapely.STRtree(hexagons)
    geometries: list[Geometries] = []
    tables: list[pa.Table] = []
    for layer in LAYERS:
        for batch in read_hidden(files, layer, hidden):
            columns = tags_of(batch)
            kept = {key: _only(columns[key], wanted) for key, wanted in values.items()}
            has_one = np.any([column.is_valid().to_numpy(zero_copy_only=False) for column in kept.values()], axis=0)
            geometry = geometries_of(batch)
            touched = np.intersect1d(touching(tree, geometry)[0], np.nonzero(has_one)[0])
            geometries.append(geometry[touched])
            tables.append(pa.table(kept).take(pa.array(touched)))
    tags = pa.concat_tables(tables)
    # A column without a value has no type in pandas, and srai's counting wants one.
    return np.concatenate(geometries), tags.select([name for name in values if tags[name].null_count < len(tags)])


def _only(column: pa.Array, values: pa.Array) -> pa.Array:
    """The column with null in place of all other values."""
    return pc.if_else(pc.is_in(column, values), column, pa.scalar(None, pa.string()))


def _neighbourhood(joined: _Joined, cells: Sequence[str]) -> "H3Neighbourhood":
    from srai.neighbourhoods import H3Neighbourhood

    asked_for = frozenset(cells)

    class Neighbourhood(H3Neighbourhood):  # type: ignore[misc]
        """Sorted, for a set of strings has another order in every process; and rings only of what is asked for."""

        def get_neighbours_up_to_distance(
            self, index: str, distance: int, include_center: bool | None = None, unchecked: bool = False
        ) -> list[str]:
            return sorted(super().get_neighbours_up_to_distance(index, distance, include_center, unchecked))

        def get_neighbours_at_distance(
            self, index: str, distance: int, include_center: bool | None = None
        ) -> list[str]:
            if index not in asked_for:
                return []
            return sorted(super().get_neighbours_at_distance(index, distance, include_center))

    return Neighbourhood(joined.regions)


@contextlib.contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Seed the global generators, which are what srai draws from, and put them back afterwards.

    One thread only: Hex2Vec's layers are so small that several cost more than they bring, and sums come out the same.
    """
    import torch

    before, n_threads = np.random.get_state(), torch.get_num_threads()  # noqa: NPY002
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
        torch.set_num_threads(n_threads)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and advertisements of srai and Lightning."""
    lightning = logging.getLogger("pytorch_lightning")
    before = lightning.level
    lightning.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        lightning.setLevel(before)
