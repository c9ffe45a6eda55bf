"""What every tile source offers: the pixels of one chunk."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from geobacter_core.geo import Tile

Pixels = NDArray[np.uint8]


class TileSource(Protocol):
    """Makes tiles. Implementations are cheap to pickle and open what they need in the worker that uses them."""

    @property
    def name(self) -> str:
        """Kind and version of the source, as the cache records it; no secrets in it."""

    @property
    def n_channels(self) -> int:
        """C."""

    def chunk(self, chunk: Tile) -> Pixels:
        """All 256 tiles of a chunk, uint8 `[16, 16, 256, 256, C]`: row, column, then pixels, north up."""
