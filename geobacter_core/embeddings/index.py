"""An index for very large tables: where one product over all rows would take longer than a forward pass or two.

faiss' inverted file with embeddings of a byte a number (Jégou, Douze, Schmid: "Product quantization for nearest
neighbor search", TPAMI 2011, for the inverted file) names some hundred candidates, whose similarities are then computed
exactly. What it can miss is a row in a list that was not looked at.
"""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geobacter_core.embeddings.mapped import MappedTable
from geobacter_core.files import written_aside

INDEX_FROM = 400_000_000
"""Numbers in a table (rows × D) from which an index takes over: 1.6 GB, a tenth of a second on two cores."""
_FILE = "index.faiss"
_TRAINED_ROWS_PER_LIST = 64
_PIECE_ROWS = 100_000
_LOOKED_AT = 32
_CANDIDATES = 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Index:
    """The index of a table."""

    _faiss: Any

    def candidates(self, query: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Rows among which the k nearest of a query `[D]` of length 1 nearly always are, ascending."""
        _, rows = self._faiss.search(query[None].astype(np.float32), max(_CANDIDATES * k, 200))
        return np.unique(rows[rows >= 0])


def is_wanted(table: MappedTable) -> bool:
    """Whether a table is so large that an index pays, and faiss is installed."""
    if table.embeddings.size < INDEX_FROM:
        return False
    try:
        import faiss  # noqa: F401
    except ImportError:
        _log.warning(
            "region '%s': %s embeddings are searched without an index. Install faiss-cpu to have one.",
            table.region,
            f"{len(table):,}",
        )
        return False
    return True


def index_of(table: MappedTable) -> Index:
    """The index of a table, made beside its arrays if it is not there yet: minutes, in pieces that fit into memory."""
    import faiss

    path = table.folder / _FILE
    if not path.exists():
        begun = time.monotonic()
        n, dim = table.embeddings.shape
        n_lists = max(1, int(4 * math.sqrt(n)))
        made = faiss.index_factory(dim, f"IVF{n_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        rows = np.linspace(0, n - 1, min(n, _TRAINED_ROWS_PER_LIST * n_lists)).astype(np.int64)
        made.train(np.ascontiguousarray(table.embeddings[rows]))
        for first in range(0, n, _PIECE_ROWS):
            made.add(np.ascontiguousarray(table.embeddings[first : first + _PIECE_ROWS]))
        with written_aside(path) as temporary:
            faiss.write_index(made, str(temporary))
        _log.info("region '%s': indexed %s embeddings in %.0f s", table.region, f"{n:,}", time.monotonic() - begun)
    found: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    found.nprobe = _LOOKED_AT
    return Index(found)
