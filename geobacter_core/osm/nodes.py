"""Node locations outside of memory: osmium's table of them in a nameless file, 16 bytes a node.

Nearly all that an extract holds are nodes. The kernel writes this file's pages to disk when memory runs short, so a
country's nodes need no more memory than a town's; where there is enough, the table is as fast as one in memory.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import osmium
from numpy.typing import NDArray

from geobacter_core.errors import GeobacterError

_ENTRY = np.dtype([("id", "<i8"), ("location", "<i4", 2)])
_BATCH = 1 << 20


@dataclass(frozen=True, slots=True)
class NodeTable:
    """Node ids from 0 up with their locations, in the order in which osmium met them.

    Attributes:
        index: The table, an `osmium.index.LocationTable` for osmium to fill and to look up.
        file: What it is kept in.
    """

    index: Any
    file: IO[bytes]

    def __len__(self) -> int:
        return int(self.index.used_memory()) // _ENTRY.itemsize

    def locations(self) -> Iterator[NDArray[np.int32]]:
        """Longitude and latitude in units of 1e-7 degrees, `[N, 2]`, in batches."""
        self.file.seek(0)
        for begin in range(0, len(self), _BATCH):
            yield np.fromfile(self.file, _ENTRY, min(_BATCH, len(self) - begin))["location"]


@contextlib.contextmanager
def node_table(folder: Path, n_nodes: int) -> Iterator[NodeTable]:
    """An empty table for about `n_nodes` nodes, in a file in `folder` that goes away by itself.

    Raises:
        GeobacterError: The disk has no room for it. (Without room the kernel would kill the process.)
    """
    need_gb, free_gb = n_nodes * _ENTRY.itemsize / 1e9, shutil.disk_usage(folder).free / 1e9
    if need_gb > free_gb:
        raise GeobacterError(
            f"{folder}: the locations of about {n_nodes:,} nodes need {need_gb:.1f} GB of disk for a while, and "
            f"{free_gb:.1f} GB are free. Make room and materialise again."
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        yield NodeTable(osmium.index.create_map(f"sparse_file_array,/dev/fd/{file.fileno()}"), file)
