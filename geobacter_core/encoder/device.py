"""Where and how to compute: device and precision are chosen by what the machine has."""

import contextlib
import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import torch

from geobacter_core.files import n_processors

_THREADS_BESIDE_A_GPU = 4
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""From glibc's malloc.h."""


def best_device() -> torch.device:
    """CUDA where there is one, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def encoding_threads() -> int:
    """Threads that cut and encode: one a processor, but few beside a GPU, where cutting is the work.

    It holds Python's lock for a part of the time: on 16 processors 16 threads cut half as many windows as 4.
    """
    return n_processors() if best_device().type == "cpu" else min(n_processors(), _THREADS_BESIDE_A_GPU)


def batch_size(device: torch.device) -> int:
    """Windows that are encoded together: on a CPU as many as its cache holds, which is 1.5 times as fast as 256."""
    return 32 if device.type == "cpu" else 512


def images_a_pass(device: torch.device) -> int:
    """Images of one scale that an encoder computes together; fewer only where they have the same bits all the same."""
    return 32 if device.type == "cpu" else 256


def keep_freed_memory() -> None:
    """Have the C library keep what was freed for the next arrays, instead of giving it back to the system each time.

    Every batch frees and asks for the same arrays; that each page of them comes zeroed from the kernel took a fifth of
    the time that a table takes. Only glibc can be told.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)


@contextlib.contextmanager
def single_threads(n: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in each of which torch computes without others; what they have not begun when the block ends, is dropped.

    On a CPU as many forward passes at once, each in one thread, are faster than all threads at one after the other.
    """
    keep_freed_memory()
    n_before = torch.get_num_threads()
    pool = ThreadPoolExecutor(n, "one-thread", initializer=lambda: torch.set_num_threads(1))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_before)  # what threads to come begin with


def fast_type(device: torch.device) -> torch.dtype:
    """bfloat16 where it is computed in hardware, else float32: emulated, it is slower."""
    is_fast = False
    if device.type == "cuda":
        is_fast = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        is_fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if is_fast else torch.float32


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast where it is fast, else nothing."""
    if fast_type(device) == torch.bfloat16:
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
