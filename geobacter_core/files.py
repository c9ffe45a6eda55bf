"""Files that are whole or not there at all: written aside, flushed, then renamed."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow.parquet as pq
import xxhash
from pydantic import BaseModel, ValidationError

from geobacter_core.errors import GeobacterError

TEMPORARY_PREFIX = ".tmp-"
_ABANDONED_S = 86400.0
_PIECE_BYTES = 1 << 20
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of a container, by Linux's control groups, version 2 and 1."""
_log = logging.getLogger(__name__)

Manifest = TypeVar("Manifest", bound=BaseModel)


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    A reader sees the old file or the new one, whatever happens; when the block raises, the temporary is removed.
    The temporary keeps `path`'s suffixes, because GDAL and Pillow choose a format by them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as temporary:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` for a file that is gone when the block ends."""
    temporary = temporary_beside(path)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Work on a folder alone: others who ask for this, in any process or thread of the machine, wait.

    The lock ends with the process that holds it, so a killed run leaves none behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("%s: %s works on it; waiting for it to end", folder, what)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def temporary_beside(path: Path) -> Path:
    """A name beside `path` for a file or folder in the making; it tells which process of which machine makes it."""
    return path.with_name(f"{TEMPORARY_PREFIX}{_host()}-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")


def remove_temporaries(folder: Path) -> int:
    """Remove files and folders that killed runs left in `folder`; returns how many. Those of live processes stay."""
    leftovers = orphans(folder)
    for leftover in leftovers:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    return len(leftovers)


def orphans(folder: Path) -> list[Path]:
    """Temporaries in `folder` whose process is dead; on another machine, those that nobody touched for a day."""
    found: list[Path] = []
    for path in sorted(folder.glob(f"{TEMPORARY_PREFIX}*")):
        host, _, rest = path.name.removeprefix(TEMPORARY_PREFIX).partition("-")
        pid = rest.partition("-")[0]
        with contextlib.suppress(FileNotFoundError):
            is_old = time.time() - path.stat().st_mtime > _ABANDONED_S
            if is_old or (host == _host() and not (pid.isdigit() and _is_alive(int(pid)))):
                found.append(path)
    return found


def _host() -> str:
    """A short name for this machine (or container), which process numbers belong to."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def n_processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory_bytes() -> int:
    """The memory that this process may fill: the machine's, or what its container is allowed of it."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in _MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not on Linux; "max"
            found.append(int(limit.read_text()))
    return min(found)


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def xxh3_of_file(path: Path) -> str:
    """Hex XXH3 (128 bits) of a file's bytes: whether they are still the same, at the speed of reading them."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as data:
        while piece := data.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def check_pages(path: Path) -> None:
    """Read a Parquet file through, row group by row group, against its pages' checksums.

    Raises:
        OSError: A page does not have its checksum, or cannot be decoded.
    """
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            file.read_row_group(group)


def digest_of(*parts: object) -> str:
    """Hex SHA-256 over the JSON of `parts`: the identity of a recipe (inputs, settings, code version)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, value: BaseModel) -> None:
    """Write a pydantic model as JSON, whole or not at all."""
    with written_aside(path) as temporary:
        temporary.write_text(value.model_dump_json(indent=2) + "\n")


def read_json(path: Path, model: type[Manifest], error: type[GeobacterError], remedy: str) -> Manifest:
    """Read a JSON file into `model`; a missing or wrong file raises `error`, which names it and ends with `remedy`."""
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise error(f"{path} does not exist. {remedy}") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise error(f"{path} is damaged: {where}: {first['msg']}. {remedy}") from None
