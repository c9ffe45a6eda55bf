"""What every tile source offers: the tiles of one chunk."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from geobacter_core.geo import Tile

Pixels = NDArray[np.uint8]


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

    def strips(self, chunk: Tile) -> Iterator[Pixels]:
        """The tiles of a chunk in 16 strips from north to south, each uint8 `[16, 256, 256, C]` from west to east.

        A strip is valid until the next one is asked for.
        """
