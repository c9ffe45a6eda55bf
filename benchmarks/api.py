"""What the HTTP API takes: load from a second process, too much of it, wrong tokens, a search in a million rows.

    make demo && .venv/bin/python benchmarks/api.py [--data data] [--requests 100000]

Starts `geobacter serve` on the installation in `--data` and asks it from this process over loopback, with 64
connections and places drawn anew for every request, so that no answer can be remembered. The limit is the bare forward
pass: the champion on windows of such places in memory, by the network as it is registered, with all of torch's threads
in the best of batches, and by the service's own passes, by as many threads. Client and server share the processors.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from bare import N_BARE, Bare

TOKEN = "a-token-for-the-benchmark"
PORT = 8699
ADDRESS = f"http://127.0.0.1:{PORT}"
CONNECTIONS = 64
AT_ONCE = 128
"""Windows that our own passes are given at a time, as by a server under load."""


@dataclass
class Load:
    """What clients saw: seconds to each answer by status, and places embedded."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    n_places: int = 0
    took_s: float = 0.0

    def quantile(self, share: float, status: int = 200) -> float:
        """Milliseconds to answers of a status."""
        return float(np.quantile(self.seconds.get(status, [float("nan")]), share)) * 1000


async def load(
    body: Callable[[np.random.Generator], dict[str, Any]], connections: int, n_requests: int, path: str = "/embeddings"
) -> Load:
    """Ask from `connections` clients at once until there were so many requests."""
    seen, left = Load(), n_requests
    begun = time.perf_counter()

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        nonlocal left
        rng = np.random.default_rng(number)
        while left > 0:
            left -= 1
            document = body(rng)
            at = time.perf_counter()
            async with session.post(ADDRESS + path, json=document) as answer:
                await answer.read()
                seen.seconds.setdefault(answer.status, []).append(time.perf_counter() - at)
                seen.n_places += len(document.get("places", ())) * (answer.status == 200)
                if answer.status == 503:
                    await asyncio.sleep(0.05)

    async with session_for(connections) as session:
        await asyncio.gather(*(client(number, session) for number in range(connections)))
    seen.took_s = time.perf_counter() - begun
    return seen


def session_for(connections: int, token: str = TOKEN) -> aiohttp.ClientSession:
    """Clients with a token."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        headers={"Authorization": f"Bearer {token}", "Accept": "application/vnd.apache.arrow.stream"},
        timeout=aiohttp.ClientTimeout(total=120),
    )


def places_in(bounds: list[float], n: int) -> Callable[[np.random.Generator], dict[str, Any]]:
    """Makes bodies of `n` places anywhere in the middle of a region."""
    west, south, east, north = bounds
    width, height = east - west, north - south

    def body(rng: np.random.Generator) -> dict[str, Any]:
        lon = west + width * rng.uniform(0.2, 0.8, n)
        lat = south + height * rng.uniform(0.2, 0.8, n)
        return {"places": [{"lon": float(x), "lat": float(y)} for x, y in zip(lon, lat, strict=True)]}

    return body


def resident_mb(pid: int) -> float:
    """What a process has in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


class Limit:
    """The champion on windows in memory, of places as clients ask for, measured again before each load."""

    def __init__(self, data: Path, region: dict[str, Any]) -> None:
        """Load the champion of an installation, and cut windows of a region."""
        import torch

        from geobacter_core.embeddings.places import Places, find_ground, style_of
        from geobacter_core.encoder.exported import load_graph, network_of
        from geobacter_core.encoder.registry import Registry
        from geobacter_core.settings import Settings

        settings = Settings.from_environment({**os.environ, "GEOBACTER_DATA": str(data)})
        registry = Registry(settings)
        encoder = registry.load(registry.champion())
        version = encoder.version
        network = network_of(load_graph(f"models:/{version.name}"), version).eval()
        places = Places(encoder, [find_ground(settings, region["name"], style_of(version))])
        asked = places_in(region["bounds"], N_BARE)(np.random.default_rng(0))["places"]
        lon, lat = (np.array([place[name] for place in asked]) for name in ("lon", "lat"))
        is_inside = places.is_inside(lon, lat)
        windows = torch.from_numpy(places.windows(lon[is_inside], lat[is_inside]))
        self._bare = Bare(encoder, network, windows, AT_ONCE)
        self._passes = self._network = float("nan")

    def measure(self, seconds: float = 8.0) -> None:
        """Measure both, in turns."""
        passes, network = [], []
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            passes.append(self._bare.by_passes())
            network.append(self._bare.by_network())
        self._passes, self._network = statistics.median(passes), statistics.median(network)

    def told(self, rate: float) -> str:
        """A rate, and its ratios to both."""
        return (
            f"{rate:,.0f} windows/s, {rate / self._network:.2f} of the registered network's ({self._network:,.0f}), "
            f"{rate / self._passes:.2f} of our own passes' ({self._passes:,.0f})"
        )


async def of_load(bounds: list[float], pid: int, limit: Limit, n_requests: int) -> None:
    """Load with small and large requests, too much of it, and its effect on memory."""
    await load(places_in(bounds, 16), 8, 100)  # warm: chunks are decoded
    for n, requests in ((1, 3000), (16, 1500), (256, 150)):
        limit.measure()
        seen = await load(places_in(bounds, n), CONNECTIONS, requests)
        rate = seen.n_places / seen.took_s
        print(
            f"{CONNECTIONS} connections, {n} places a request: {limit.told(rate)}; "
            f"{len(seen.seconds.get(200, [])) / seen.took_s:,.0f} requests/s; p50 "
            f"{seen.quantile(0.5):.0f} ms, p99 {seen.quantile(0.99):.0f} ms "
            f"({seen.quantile(0.99) / seen.quantile(0.5):.1f} × p50); statuses {statuses(seen)}",
            flush=True,
        )
    seen = await load(places_in(bounds, 256), 2 * CONNECTIONS, 600)
    print(
        f"overload, {2 * CONNECTIONS} connections of 256 places: {seen.n_places / seen.took_s:,.0f} windows/s; "
        f"accepted p50 {seen.quantile(0.5):.0f} ms, p99 {seen.quantile(0.99):.0f} ms; refused p50 "
        f"{seen.quantile(0.5, 503):.0f} ms; statuses {statuses(seen)}",
        flush=True,
    )
    if n_requests:
        before = resident_mb(pid)
        marks = []
        for _ in range(10):
            await load(places_in(bounds, 1), CONNECTIONS, n_requests // 10)
            marks.append(resident_mb(pid))
        print(
            f"memory over {n_requests:,} requests: {before:,.0f} MB before, then "
            f"{', '.join(f'{mark:,.0f}' for mark in marks)}",
            flush=True,
        )


def statuses(seen: Load) -> dict[int, int]:
    """How many answers of each status."""
    return {status: len(seconds) for status, seconds in sorted(seen.seconds.items())}


async def of_tokens(n: int = 10_000) -> None:
    """Wrong tokens of all kinds, in turn: how many got in, and how long each kind took."""
    rng = np.random.default_rng(0)
    kinds: dict[str, Callable[[], str]] = {
        "wrong from the first character": lambda: "x" + TOKEN[1:],
        "wrong in the last": lambda: TOKEN[:-1] + "x",
        "too short": lambda: TOKEN[:5],
        "too long": lambda: TOKEN + "x" * 100,
        "anything": lambda: "".join(chr(code) for code in rng.integers(33, 127, len(TOKEN))),
    }
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    found: Counter[int] = Counter()
    async with aiohttp.ClientSession() as session:
        for _ in range(n // len(kinds)):
            for kind, make in kinds.items():
                headers = {"Authorization": f"Bearer {make()}"}
                begun = time.perf_counter()
                async with session.get(f"{ADDRESS}/regions", headers=headers) as answer:
                    await answer.read()
                    found[answer.status] += 1
                took[kind].append(time.perf_counter() - begun)
    medians = {kind: statistics.median(each) * 1e6 for kind, each in took.items()}
    print(
        f"{sum(found.values()):,} requests with wrong tokens: statuses {dict(found)}; median by kind, µs: "
        + ", ".join(f"{kind} {median:.0f}" for kind, median in medians.items()),
        flush=True,
    )


async def of_swap(data: Path, bounds: list[float]) -> None:
    """Another champion while requests come: how many failed, and how long until it answers."""
    from geobacter_core.encoder.registry import CHAMPION, Registry
    from geobacter_core.encoder.version import MODEL_NAME
    from geobacter_core.settings import Settings

    registry = Registry(Settings.from_environment({**os.environ, "GEOBACTER_DATA": str(data)}))
    champion = registry.champion()
    others = [
        each for each in registry.versions() if each.version != champion.version and each.window == champion.window
    ]
    if not others:
        print("the champion's successor: there is no other version to put in its place (train another)")
        return
    found: Counter[tuple[int, int]] = Counter()
    swapped_at = seen_at = 0.0

    async def ask(session: aiohttp.ClientSession, rng: np.random.Generator) -> None:
        nonlocal seen_at
        while not seen_at and time.perf_counter() - swapped_at < 90:
            async with session.post(f"{ADDRESS}/embeddings", json=places_in(bounds, 1)(rng)) as answer:
                version = (await answer.json())["version"] if answer.status == 200 else 0
                found[answer.status, version] += 1
                if version == others[0].version:
                    seen_at = time.perf_counter()

    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:
        swapped_at = time.perf_counter()
        registry.client.set_registered_model_alias(MODEL_NAME, CHAMPION, str(others[0].version))
        try:
            await asyncio.gather(*(ask(session, np.random.default_rng(number)) for number in range(16)))
        finally:
            registry.client.set_registered_model_alias(MODEL_NAME, CHAMPION, str(champion.version))
    print(
        f"another champion under load: served after {seen_at - swapped_at:.1f} s; answers by (status, version) "
        f"{dict(found)}",
        flush=True,
    )


def of_search(n: int = 1_000_000, dim: int = 64, k: int = 10, repeats: int = 20) -> None:
    """`nearest` on a table in memory, to the bare product and to faiss's flat index; the same rows by all."""
    from geobacter_core.embeddings.mapped import MappedTable
    from geobacter_core.embeddings.search import nearest

    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = np.array([b"cell"] * n)
    table = MappedTable(
        vectors, np.zeros((n, 2)), {"region": "r", "digest": ""}, names, np.empty(0, np.uint8), np.empty(0, np.int64)
    )
    queries = rng.normal(size=(repeats, dim)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    ways: dict[str, Callable[[np.ndarray[Any, Any]], list[int]]] = {
        "bare product": lambda query: [int((vectors @ query).argmax())],
        "nearest": lambda query: [hit.row for hit in nearest([table], query, k)],
    }
    try:
        import faiss

        index = faiss.IndexFlatIP(dim)
        index.add(vectors)
        ways["faiss, flat"] = lambda query: index.search(query[None], k)[1][0].tolist()
    except ImportError:
        print("faiss is not installed: without it")
    took: dict[str, list[float]] = {name: [] for name in ways}
    for query in queries:
        answers = {}
        for name, way in ways.items():
            begun = time.perf_counter()
            answers[name] = way(query)
            took[name].append(time.perf_counter() - begun)
        expected = np.argsort(-(vectors @ query), kind="stable")[:k].tolist()
        assert answers["nearest"] == expected
        assert answers.get("faiss, flat", expected) == expected
    medians = {name: statistics.median(each) for name, each in took.items()}
    print(
        f"{n:,} × {dim}: "
        + ", ".join(f"{name} {median * 1000:.1f} ms" for name, median in medians.items())
        + f"; nearest to the bare product {medians['nearest'] / medians['bare product']:.2f}"
        + (f", to faiss {medians['nearest'] / medians['faiss, flat']:.2f}" if "faiss, flat" in medians else "")
        + f"; the same {k} rows by all, {repeats} times",
        flush=True,
    )


async def until_ready(server: subprocess.Popen[bytes]) -> float:
    """Wait for the server; returns the seconds that took."""
    begun = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        while server.poll() is None:
            try:
                async with session.get(f"{ADDRESS}/ready") as answer:
                    if answer.status == 200:
                        return time.perf_counter() - begun
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)
    sys.exit("The server ended.")


async def _regions() -> list[dict[str, Any]]:
    async with session_for(1) as session, session.get(f"{ADDRESS}/regions") as answer:
        found: list[dict[str, Any]] = (await answer.json())["regions"]
        return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--requests", type=int, default=0, help="for the memory's course; 0 leaves it out")
    arguments = parser.parse_args()
    of_search()
    environment = {**os.environ, "GEOBACTER_DATA": str(arguments.data), "GEOBACTER_TOKEN": TOKEN}
    command = [str(Path(sys.executable).with_name("geobacter")), "serve", "--port", str(PORT)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
        try:
            print(f"the server is ready {asyncio.run(until_ready(server)):.1f} s after its start", flush=True)
            region = max(asyncio.run(_regions()), key=lambda each: int(each["n_cells"]))
            steps: list[Awaitable[None]] = [
                of_tokens(),
                of_load(region["bounds"], server.pid, Limit(arguments.data, region), arguments.requests),
                of_swap(arguments.data, region["bounds"]),
            ]
            for step in steps:
                asyncio.run(step)  # type: ignore[arg-type]
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
