"""An OSM tile server over HTTP: the second tile source.

A response becomes a tile only when it is a PNG of 256 × 256 px that decodes completely. Whatever else comes is tried
again, after a pause that grows, or the one that the server asks for; then the chunk fails, by name.
"""

import asyncio
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any

import aiohttp
import anyio.from_thread
import numpy as np
import PIL.Image
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from geobacter_core.errors import RegionsFileError, TileServerDownError, TileServerError
from geobacter_core.geo import CHUNK_TILES, TILE_PX, TILE_ZOOM, Tile
from geobacter_core.regions import TILE_POLICY, Region, check_tile_server, is_public_tile_server, tile_server_name
from geobacter_core.settings import redacted, without_secrets
from geobacter_core.tiles.settings import ServerSettings
from geobacter_core.tiles.source import ALL_ROWS, Pixels
from geobacter_core.tiles.style import Style

USER_AGENT = f"Geobacter/{version('geobacter')} (builds a tile cache; aiohttp/{aiohttp.__version__})"

_MAX_TILE_BYTES = 4 << 20
"""A PNG of 256 × 256 px has at most 256 kB of pixels; whoever sends more than this sends something else."""
_MAX_REDIRECTS = 5
_MAX_PAUSE_S = 10.0
_METATILE = 8
"""mod_tile renders squares of so many tiles at once."""
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_NOT_YET = {202, 404, 429, 503}
"""What mod_tile, and proxies before it, answer while a tile is not rendered yet or the load is high."""
_LOST_CHUNKS = 3
"""When so many chunks in a row fail without a single tile, the others would too."""


class _Fault(Exception):  # noqa: N818 - not an error yet
    """An answer that is no tile: why, whether it means "not yet", and the pause that the server asks for."""

    def __init__(self, reason: str, is_not_yet: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.is_not_yet = is_not_yet
        self.retry_after_s = retry_after_s


class ServerSource:
    """Fetches tiles from a server. It lives as long as a build, and remembers how the server does."""

    def __init__(self, url: str, settings: ServerSettings | None = None) -> None:
        """Make the source; it connects when tiles are asked for.

        Args:
            url: With `{z}`, `{x}` and `{y}`; user, password and query are sent, and shown nowhere.
            settings: How patiently to ask.

        Raises:
            TileServerError: The address is none that may be used.
        """
        try:
            self.url = check_tile_server(url)
        except ValueError as problem:
            raise TileServerError(f"Tile server {problem}.") from None
        self.settings = settings or ServerSettings()
        self._n_tiles = 0
        self._n_lost_chunks = 0

    @property
    def name(self) -> str:
        """The address without secrets."""
        return tile_server_name(self.url)

    @property
    def n_channels(self) -> int:
        """Red, green, blue."""
        return 3

    @property
    def max_processes(self) -> int:
        """One: the server's load is bounded by its connections."""
        return 1

    def strips(self, chunk: Tile, rows: Sequence[int] = ALL_ROWS) -> Iterator[Pixels]:
        """Rows of a chunk's tiles in strips, uint8 `[16, 256, 256, 3]`.

        Raises:
            TileServerError: A tile could not be had.
            TileServerDownError: Neither in this chunk nor in the last ones could any tile be had.
        """
        n_before = self._n_tiles
        try:
            # In a thread of its own, because the caller may be inside another event loop (a notebook, a web server).
            with anyio.from_thread.start_blocking_portal() as portal:
                tiles = portal.call(self._fetch, chunk, rows)
        except ExceptionGroup as group:
            failure = group.exceptions[0]
            if not isinstance(failure, TileServerError):
                raise
            self._n_lost_chunks = self._n_lost_chunks + 1 if self._n_tiles == n_before else 0
            if self._n_lost_chunks >= _LOST_CHUNKS:
                raise TileServerDownError(
                    f"No tile came in {_LOST_CHUNKS} chunks, so the others are not asked for. {failure}"
                ) from None
            raise failure from None
        self._n_lost_chunks = 0
        yield from tiles

    async def _fetch(self, chunk: Tile, rows: Sequence[int]) -> Pixels:
        tiles = np.empty((len(rows), CHUNK_TILES, TILE_PX, TILE_PX, 3), np.uint8)
        n_connections = self.settings.connections
        turns = asyncio.Semaphore(n_connections)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=n_connections),
            timeout=aiohttp.ClientTimeout(total=self.settings.timeout_s),
            headers={"User-Agent": USER_AGENT, "Accept": "image/png"},
            trust_env=True,
        ) as session:

            async def fetch(column: int, row: int) -> None:
                tile = Tile(TILE_ZOOM, chunk.x * CHUNK_TILES + column, chunk.y * CHUNK_TILES + row)
                tiles[rows.index(row), column] = await self._tile(session, turns, tile)

            # The first tile that cannot be had ends the others: the chunk is lost either way.
            async with asyncio.TaskGroup() as group:
                for column, row in _order():
                    if row in rows:
                        group.create_task(fetch(column, row))
        return tiles

    async def _tile(self, session: aiohttp.ClientSession, turns: asyncio.Semaphore, tile: Tile) -> Pixels:
        """A tile, asked for until it comes.

        Raises:
            TileServerError: It does not come.
        """
        course = _Course(self.settings, is_trusted=lambda: self._n_tiles > 0)
        url = self.url.replace("{z}", str(tile.z)).replace("{x}", str(tile.x)).replace("{y}", str(tile.y))
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(_Fault), stop=course.is_over, wait=course.pause, reraise=True
            ):
                # A tile that waits for its next try leaves its turn to others.
                with attempt:
                    async with turns:
                        pixels = await self._try(session, url)
        except _Fault as fault:
            raise TileServerError(
                f"Tile {tile} from {without_secrets(self.url)}: {redacted(str(fault), self.url)} (asked for "
                f"{course.n_tries} times). Check that the server runs and has this place, and `tile_server` in "
                "regions.toml."
            ) from None
        self._n_tiles += 1
        return pixels

    async def _try(self, session: aiohttp.ClientSession, url: str) -> Pixels:
        try:
            body = await self._body(session, url)
        except TimeoutError:
            raise _Fault(f"no whole answer within {self.settings.timeout_s:g} s") from None
        except aiohttp.ClientConnectorError as problem:
            raise _Fault(f"cannot connect: {problem.os_error}") from None
        except (aiohttp.ClientError, OSError, ValueError) as problem:
            raise _Fault(f"{problem or type(problem).__name__}") from None
        return await asyncio.to_thread(decode, body)

    async def _body(self, session: aiohttp.ClientSession, url: str) -> bytes:
        target = url
        for _ in range(_MAX_REDIRECTS + 1):
            async with session.get(target, allow_redirects=False) as response:
                if response.status in (301, 302, 303, 307, 308):
                    target = _redirected(response)
                    continue
                if response.status != 200:
                    raise _Fault(
                        f"HTTP {response.status} {response.reason or ''}".rstrip(),
                        is_not_yet=response.status in _NOT_YET,
                        retry_after_s=_retry_after_s(response.headers.get("Retry-After", "")),
                    )
                body = await response.content.read(_MAX_TILE_BYTES + 1)
                parts = bytearray(body)
                while body and len(parts) <= _MAX_TILE_BYTES:
                    body = await response.content.read(_MAX_TILE_BYTES + 1 - len(parts))
                    parts += body
                if len(parts) > _MAX_TILE_BYTES:
                    response.close()
                    raise _Fault(f"an answer of more than {_MAX_TILE_BYTES >> 20} MB, which is no tile")
                return bytes(parts)
        raise _Fault(f"more than {_MAX_REDIRECTS} redirects, the last to {without_secrets(target)}")


@dataclass(slots=True)
class _Course:
    """The tries for one tile.

    Until the server has given a first tile, "not there" more likely means a wrong address than a busy server, and is
    counted like any fault.
    """

    settings: ServerSettings
    is_trusted: Callable[[], bool]
    n_tries: int = 0
    n_faults: int = 0
    waiting_since_s: float = 0.0

    def is_over(self, state: RetryCallState) -> bool:
        """Whether to give up after this try."""
        self.n_tries += 1
        if _fault_of(state).is_not_yet and self.is_trusted():
            self.waiting_since_s = self.waiting_since_s or time.monotonic()
            return time.monotonic() - self.waiting_since_s > self.settings.wait_s
        self.n_faults += 1
        return self.n_faults >= self.settings.tries

    def pause(self, state: RetryCallState) -> float:
        """Seconds until the next try."""
        drawn = wait_random_exponential(multiplier=self.settings.pause_s, max=_MAX_PAUSE_S)(state)
        return max(drawn, min(_fault_of(state).retry_after_s, self.settings.wait_s))


def source_of(region: Region, style: Style, settings: ServerSettings | None = None) -> ServerSource:
    """The tile server of a region, for a style that one draws.

    Raises:
        RegionsFileError: The region has none.
    """
    if region.tile_server is None:
        raise RegionsFileError(
            f"Region '{region.name}' has no `tile_server`, and style '{style.name}' is drawn by one. Add "
            'tile_server = "http://HOST/…/{z}/{x}/{y}.png" to it in regions.toml, or choose another GEOBACTER_STYLE.'
        )
    return ServerSource(region.tile_server, settings)


def decode(body: bytes) -> Pixels:
    """The pixels of a PNG of 256 × 256 px, uint8 `[256, 256, 3]`, whatever its colour type.

    Raises:
        _Fault: It is something else, is cut off, or has transparent pixels, through which there is no map.
    """
    try:
        with PIL.Image.open(io.BytesIO(body), formats=("PNG",)) as image:
            if image.size != (TILE_PX, TILE_PX):
                raise _Fault(f"a picture of {image.width} × {image.height} px, not {TILE_PX} × {TILE_PX}")
            if image.mode not in _MODES:
                raise _Fault(f"a PNG with pixels of mode {image.mode}, not 8 bits a channel")
            image.verify()  # checksums; the picture must be opened again after that
        if _PNG_END not in body:  # which Pillow does not miss
            raise _Fault(f"a PNG that is cut off after {len(body):,} bytes")
        with PIL.Image.open(io.BytesIO(body), formats=("PNG",)) as image:
            if image.has_transparency_data:
                rgba = np.asarray(image.convert("RGBA"))
                if rgba[..., 3].min() < 255:
                    raise _Fault("a picture with transparent pixels, an overlay and not a map")
                return np.ascontiguousarray(rgba[..., :3])
            return np.array(image.convert("RGB"))
    except PIL.UnidentifiedImageError:
        raise _Fault(f"not a PNG but {_kind_of(body)}") from None
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as problem:
        raise _Fault(f"a damaged PNG of {len(body):,} bytes: {problem}") from None


def _kind_of(body: bytes) -> str:
    """What bytes that are no PNG seem to be."""
    start = body[:512].lstrip().lower()
    if not start:
        return "an empty answer"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    return f"{len(body):,} other bytes"


def _order() -> Iterator[tuple[int, int]]:
    """The tiles of a chunk, one of each metatile in turn: the server renders several of them, and none twice."""
    corners = range(0, CHUNK_TILES, _METATILE)
    for dy in range(_METATILE):
        for dx in range(_METATILE):
            for row in corners:
                for column in corners:
                    yield column + dx, row + dy


def _redirected(response: aiohttp.ClientResponse) -> str:
    location = response.headers.get("Location", "")
    target = response.url.join(type(response.url)(location)) if location else None
    if target is None or target.scheme not in ("http", "https") or target.host is None:
        raise _Fault(f"HTTP {response.status} without an address to go to")
    if is_public_tile_server(target.host):
        raise _Fault(f"a redirect to {target.host}, whose usage policy forbids bulk downloads ({TILE_POLICY})")
    return str(target)


def _retry_after_s(value: str) -> float:
    """Seconds that a `Retry-After` header asks for, as a number or a date; 0 where there is none."""
    if value.strip().isdigit():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (until - datetime.now(UTC)).total_seconds()) if until.tzinfo else 0.0


def _fault_of(state: RetryCallState) -> _Fault:
    outcome: Any = state.outcome
    fault = outcome.exception()
    assert isinstance(fault, _Fault)
    return fault
