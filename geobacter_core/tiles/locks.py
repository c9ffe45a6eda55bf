"""Who builds what: several builds of one tile cache share the work, and a chunk has one maker at a time.

POSIX record locks on bytes of two empty files. They end with the process that holds them, so a killed build leaves none
behind, and they work between machines on a shared file system that has locks.
"""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from geobacter_core.geo import CHUNK_ZOOM, Tile

# Two files, because a process loses all its locks on a file as soon as it closes that file anywhere.
_BUILDS = ".builds.lock"
_CHUNKS = ".chunks.lock"

_RECIPES = 1 << 28
_ADMISSION = _RECIPES
"""Bytes 0 to 2^28 - 1 stand for recipes; the byte after them is held by whoever asks to be let in."""
_log = logging.getLogger(__name__)


@contextmanager
def building(folder: Path, recipe: str) -> Iterator[None]:
    """Hold the right to build in `folder` by a recipe (a hex digest).

    Any number of processes may build by one recipe at once. Whoever comes with another waits until they are done:
    chunks of two recipes never mix.
    """
    ours = int(recipe[:7], 16)
    with _opened(folder / _BUILDS) as file:
        _lock(file, fcntl.LOCK_EX, _ADMISSION)
        others = ((0, ours), (ours + 1, _RECIPES - ours - 1))
        for start, length in others:
            if length and not _try_lock(file, start, length):
                _log.info("%s: another build works on it with other inputs; waiting for it to end", folder)
                _lock(file, fcntl.LOCK_EX, start, length)
        _lock(file, fcntl.LOCK_SH, ours)
        for start, length in (*others, (_ADMISSION, 1)):
            if length:
                _lock(file, fcntl.LOCK_UN, start, length)
        yield


@contextmanager
def taking_part(folder: Path, recipe: str) -> Iterator[None]:
    """Hold the same right in a worker of a build, so that it outlives a build that is killed until its worker is done.

    Not for the process that holds `building` itself: it would lose that at the end.
    """
    with _opened(folder / _BUILDS) as file:
        _lock(file, fcntl.LOCK_SH, int(recipe[:7], 16))
        yield


@contextmanager
def making(folder: Path, chunk: Tile, wait: bool) -> Iterator[bool]:
    """Hold the right to make a chunk; False if another process has it and `wait` is not set."""
    byte = (chunk.x << CHUNK_ZOOM) + chunk.y
    with _opened(folder / _CHUNKS) as file:
        if wait:
            _lock(file, fcntl.LOCK_EX, byte)
            yield True
        else:
            yield _try_lock(file, byte)


def _opened(path: Path) -> IO[bytes]:
    return path.open("ab+")


def _lock(file: IO[bytes], kind: int, start: int, length: int = 1) -> None:
    fcntl.lockf(file, kind, length, start)


def _try_lock(file: IO[bytes], start: int, length: int = 1) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except (BlockingIOError, PermissionError):
        return False
    return True
