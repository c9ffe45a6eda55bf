"""A route through a city, coloured by what is around it: embeddings of its points, got from the HTTP API.

    geobacter serve &
    python examples/route.py --output route.html

Like colours mean like surroundings. The page is self-contained: Leaflet and the map's tiles are in it.
"""

import argparse
import base64
import json
import math
import os
from pathlib import Path

import numpy as np
import requests

ROUTE = [(24.9385, 60.1700), (24.9414, 60.1719), (24.9473, 60.1690)]
"""Through the centre of Helsinki, which the demo has; a GeoJSON file with a LineString is another."""
STEP_M = 20.0
ZOOMS = (15, 16)
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A route by its embeddings</title>
<style>{css} html, body, #map {{ margin: 0; height: 100% }}</style><div id="map"></div>
<script>{script}</script><script>
const tiles = {tiles}, points = {points};
const map = L.map("map", {{minZoom: 14, maxZoom: 18}});
L.GridLayer.Tiles = L.GridLayer.extend({{createTile({{x, y, z}}) {{
  const image = document.createElement("img");
  const png = tiles[`${{z}}/${{x}}/${{y}}`];
  if (png) image.src = "data:image/png;base64," + png;
  return image;
}}}});
const options = {{minNativeZoom: {first}, maxNativeZoom: {last}, attribution: "© OpenStreetMap contributors"}};
new L.GridLayer.Tiles(options).addTo(map);
for (const {{lon, lat, colour}} of points)
  L.circleMarker([lat, lon], {{radius: 9, weight: 1, color: "#fff", fillColor: colour, fillOpacity: 1}}).addTo(map);
map.fitBounds(points.map(({{lon, lat}}) => [lat, lon]), {{padding: [40, 40]}});
</script></html>
"""


def along(route: list[tuple[float, float]]) -> np.ndarray:
    """Points every 20 m along a route of lon, lat: `[N, 2]`."""
    corners = np.array(route)
    metres = np.diff(corners, axis=0) * 111_320 * [math.cos(math.radians(corners[:, 1].mean())), 1]
    distance = np.concatenate([[0], np.cumsum(np.hypot(*metres.T))])
    at = np.arange(0, distance[-1], STEP_M)
    return np.stack([np.interp(at, distance, corners[:, axis]) for axis in (0, 1)], axis=1)


def colours(vectors: np.ndarray) -> list[str]:
    """Embeddings `[N, D]` as colours: their first three principal components as red, green and blue."""
    centred = vectors - vectors.mean(axis=0)
    scores = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
    low, high = np.percentile(scores, [5, 95], axis=0)
    rgb = np.clip((scores - low) / np.maximum(high - low, 1e-9), 0, 1)
    return ["#" + bytes(np.round(40 + 200 * each).astype(np.uint8)).hex() for each in rgb]


def tiles_around(points: np.ndarray, zoom: int) -> list[tuple[int, int, int]]:
    """Slippy tiles under the points and one around them."""
    lon, lat = points.T
    x = (lon + 180) / 360 * 2**zoom
    y = (1 - np.arcsinh(np.tan(np.radians(lat))) / np.pi) / 2 * 2**zoom
    columns, rows = (range(int(each.min()) - 1, int(each.max()) + 2) for each in (x, y))
    return [(zoom, column, row) for column in columns for row in rows]


def main() -> None:
    """Ask the API and write the page."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--url", default="http://localhost:8600", help="of the API; GEOBACTER_TOKEN has its token")
    arguments.add_argument("--route", type=Path, help="GeoJSON file: a LineString geometry")
    arguments.add_argument("--output", type=Path, default=Path("route.html"))
    given = arguments.parse_args()
    route = json.loads(given.route.read_text())["coordinates"] if given.route else ROUTE
    points = along(route)

    session = requests.Session()
    if token := os.environ.get("GEOBACTER_TOKEN"):
        session.headers["Authorization"] = f"Bearer {token}"

    def get(path: str) -> requests.Response:
        answer = session.get(given.url + path, timeout=60)
        answer.raise_for_status()
        return answer

    places = [{"lon": lon, "lat": lat} for lon, lat in points.tolist()]
    answer = session.post(f"{given.url}/embeddings", json={"places": places}, timeout=60)
    if not answer.ok:
        raise SystemExit(answer.json()["detail"])
    found = colours(np.array(answer.json()["embeddings"]))

    images = {}
    for z, x, y in (tile for zoom in ZOOMS for tile in tiles_around(points, zoom)):
        if png := get(f"/tile/{z}/{x}/{y}.png").content:  # nothing where the region ends
            images[f"{z}/{x}/{y}"] = base64.b64encode(png).decode()
    page = PAGE.format(
        css=get("/explorer/vendor/leaflet/leaflet.css").text,
        script=get("/explorer/vendor/leaflet/leaflet.js").text,
        tiles=json.dumps(images),
        points=json.dumps([{**place, "colour": colour} for place, colour in zip(places, found, strict=True)]),
        first=ZOOMS[0],
        last=ZOOMS[-1],
    )
    given.output.write_text(page, encoding="utf-8")
    print(f"{given.output}: {len(points)} points by {answer.json()['encoder']}, {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
