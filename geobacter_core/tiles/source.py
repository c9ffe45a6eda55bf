"""What every tile source offers: the tiles of one chunk."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from geobacter_core.geo import CHUNK_TILES, Tile

Pixels = NDArray[np.uint8]

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
