"""What every tile source offers: the tiles of one chunk."""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from geobacter_core.geo import CHUNK_TILES, Tile

Pixels = NDArray[np.uint8]
Result = TypeVar("Result")

ALL_ROWS = range(CHUNK_TILES)
"""Of the strips of a chunk."""


class TileSource(Protocol):
    """Makes tiles. Implementations are cheap to pickle and open what they need in the worker that uses them."""

    @property
    def name(self) -> str:
        """Kind and version or address of the source, as the cache records it; no secrets in it."""

    @property
    def n_channels(self) -> int:
        """C."""

    @property
    def max_processes(self) -> int | None:
        """How many processes of one build may use it at once; None for as many as there are processors."""

    def strips(self, chunk: Tile, rows: Sequence[int] = ALL_ROWS) -> Iterator[Pixels]:
        """Rows of a chunk's tiles in strips from north to south, each uint8 `[16, 256, 256, C]` from west to east.

        A strip is valid until the next one is asked for. Each is the same whichever others are asked for.
        """


class Chunks(Protocol):
    """What windows are cut from: chunks, strip by strip, from a tile cache or drawn when they are asked for."""

    @property
    def key(self) -> Hashable:
        """Equal for what has the same pixels: decoded chunks are remembered by it."""

    @property
    def n_channels(self) -> int:
        """C."""

    def map_strips(self, chunk: Tile, function: Callable[[Pixels], Result], rows: range = ALL_ROWS) -> Iterator[Result]:
        """What a function gives for each of some strips of a chunk, uint8 `[16, 256, 256, C]`, in their order.

        It may keep a strip.

        Raises:
            GeobacterError: The chunk cannot be had.
        """


class DrawnChunks:
    """Chunks that a tile source draws when they are asked for: no tile cache is needed, and none is written."""

    def __init__(self, source: TileSource, key: Hashable) -> None:
        """Draw with `source`; `key` tells its pixels from those of others."""
        self._source = source
        self._lock = threading.Lock()
        self.key = key

    @property
    def n_channels(self) -> int:
        """C."""
        return self._source.n_channels

    def map_strips(self, chunk: Tile, function: Callable[[Pixels], Result], rows: range = ALL_ROWS) -> Iterator[Result]:
        """As `Chunks`; one chunk is drawn after the other, since sources keep what they draw with open."""
        with self._lock:
            yield from [function(strip.copy()) for strip in self._source.strips(chunk, rows)]
