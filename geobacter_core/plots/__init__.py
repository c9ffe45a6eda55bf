"""Pictures of tiles, triplets, embeddings and evaluations, for people: reports, Dagster's and MLflow's pages, README.

Plain functions from data to a Pillow image; the same input gives the same pixels. Nothing here reads a whole tile cache
at once: a map is put together chunk by chunk, each reduced as soon as it has been read.
"""

from geobacter_core.plots.arrange import (
    Components,
    component_colours,
    distinct_rows,
    principal_components,
    snap_to_grid,
    tsne_layout,
)
from geobacter_core.plots.cells import change_map, embedding_map
from geobacter_core.plots.colours import to_rgb
from geobacter_core.plots.evaluation import SweepRow, label_curve_chart, probe_chart, spread_chart, sweep_chart
from geobacter_core.plots.page import ATTRIBUTION, png_bytes
from geobacter_core.plots.samples import samples_map, triplet_picture
from geobacter_core.plots.tiles import tile_contact_sheet
from geobacter_core.plots.windows import interpolation_strips, neighbour_strips, window_mosaic

__all__ = [
    "ATTRIBUTION",
    "Components",
    "SweepRow",
    "change_map",
    "component_colours",
    "distinct_rows",
    "embedding_map",
    "interpolation_strips",
    "label_curve_chart",
    "neighbour_strips",
    "png_bytes",
    "principal_components",
    "probe_chart",
    "samples_map",
    "snap_to_grid",
    "spread_chart",
    "sweep_chart",
    "tile_contact_sheet",
    "to_rgb",
    "triplet_picture",
    "tsne_layout",
    "window_mosaic",
]
