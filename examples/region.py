"""A whole region as coloured cells, from its table: GeoJSON or GeoParquet for a map of your own, and a PNG to look at.

    python examples/region.py data/embeddings/kotka/embeddings.parquet --output kotka.geojson

Like colours mean like surroundings. Needs geopandas and Pillow, and nothing of Geobacter.
"""

import argparse
from pathlib import Path

import geopandas as gpd
import numpy as np
from PIL import Image, ImageDraw

WIDTH_PX = 1600


def colours(vectors: np.ndarray) -> np.ndarray:
    """Embeddings `[N, D]` as colours, uint8 `[N, 3]`: their first three principal components, by rank."""
    centred = vectors - vectors.mean(axis=0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, :-4:-1]
    ranks = (centred @ directions).argsort(axis=0).argsort(axis=0) / max(len(vectors) - 1, 1)
    return np.round(40 + 200 * ranks).astype(np.uint8)


def picture(cells: gpd.GeoDataFrame, rgb: np.ndarray) -> Image.Image:
    """The cells as they lie on a web map."""
    shapes = cells.geometry.to_crs(3857)
    west, south, east, north = shapes.total_bounds
    scale = WIDTH_PX / (east - west)
    image = Image.new("RGB", (WIDTH_PX, round((north - south) * scale)), "white")
    draw = ImageDraw.Draw(image)
    for shape, colour in zip(shapes, rgb.tolist(), strict=True):
        corners = np.array(shape.exterior.coords) - [west, north]
        draw.polygon([tuple(corner) for corner in (corners * [scale, -scale]).tolist()], fill=tuple(colour))
    return image


def main() -> None:
    """Read the table, write the files."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("table", type=Path, help="data/embeddings/REGION/embeddings.parquet")
    arguments.add_argument("--output", type=Path, default=Path("region.geojson"), help=".geojson or .parquet")
    given = arguments.parse_args()

    table = gpd.read_parquet(given.table)
    rgb = colours(np.stack(table["embedding"]))
    cells = table[["cell", "geometry"]].assign(colour=["#" + bytes(each).hex() for each in rgb])
    if given.output.suffix == ".parquet":
        cells.to_parquet(given.output)
    else:
        cells.to_file(given.output, driver="GeoJSON")
    picture(cells, rgb).save(given.output.with_suffix(".png"))
    print(f"{given.output} and {given.output.with_suffix('.png')}: {len(cells):,} cells")


if __name__ == "__main__":
    main()
