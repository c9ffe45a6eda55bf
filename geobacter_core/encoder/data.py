"""Training data: triplets of windows, cut from the tile caches on the fly, a whole batch at once."""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from geobacter_core.samples.triplets import MAX_SHIFT, Triplets
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.window import Patches, Views, WindowReader, reach, resample

_PREFETCHED = 4


@dataclass(frozen=True, slots=True)
class RegionData:
    """What the encoder learns from in one region."""

    name: str
    triplets: Triplets
    cache: TileCache


class TripletWindows:
    """The triplets of several regions as batches of windows."""

    def __init__(
        self,
        regions: Sequence[RegionData],
        split: str,
        size_px: int,
        budget_bytes: int,
        size_m: float | None = None,
    ) -> None:
        """Open the regions' caches; `budget_bytes` of decoded chunks are kept in memory, shared evenly.

        Windows have the size that the triplets were drawn for, unless `size_m` says another.
        """
        self.size_px = size_px
        share = budget_bytes // max(len(regions), 1)
        self._readers = [WindowReader(r.cache, size_m or r.triplets.size_m, size_px, share) for r in regions]
        places = [region.triplets.lonlat(split) for region in regions]
        self._lonlat = np.concatenate(places)
        self.region = np.repeat(np.arange(len(places)), [len(part) for part in places])

    def __len__(self) -> int:
        return len(self._lonlat)

    def windows(self, index: NDArray[np.int64]) -> torch.Tensor:
        """Windows of triplets as they are, north up: uint8 `[3 N, C, size_px, size_px]`, all anchors first."""
        return torch.cat([resample(self._patches(part, 1.0), self.size_px) for part in self._places(index)])

    def batches(
        self, batch_size: int, rng: np.random.Generator, device: torch.device, max_shift: float
    ) -> Iterator[torch.Tensor]:
        """One epoch of augmented windows, uint8 `[3 N, C, size_px, size_px]` on `device`, in random order.

        Patches are gathered by a thread while the network computes; they are turned into windows on the device.
        """
        order = rng.permutation(len(self))
        for patches, views in _prefetched(self._augmented(order, batch_size, rng, max_shift)):
            yield resample(patches, self.size_px, views, device)

    def _augmented(
        self, order: NDArray[np.int64], batch_size: int, rng: np.random.Generator, max_shift: float
    ) -> Iterator[tuple[Patches, Views]]:
        for begin in range(0, len(order) - batch_size + 1, batch_size):
            index = order[begin : begin + batch_size]
            patches = _stacked([self._patches(part, reach(MAX_SHIFT)) for part in self._places(index)])
            yield patches, Views.draw(3 * batch_size, max_shift, rng)

    def _places(self, index: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Region and place of the anchors, then of the positives, then of the negatives."""
        for role in range(3):
            yield self.region[index], self._lonlat[index, role]

    def _patches(self, places: tuple[NDArray[np.int64], NDArray[np.float64]], reach_: float) -> Patches:
        """Patches of places in several regions, in the order of the places."""
        region, lonlat = places
        present = np.unique(region)
        parts = [self._readers[r].patches(*lonlat[region == r].T, reach_) for r in present]
        order = np.argsort(np.concatenate([np.flatnonzero(region == r) for r in present]))
        stacked = _stacked(parts)
        if len(parts) == 1:
            return stacked
        return Patches(stacked.pixels[order], stacked.centre[order], stacked.half[order])


def _stacked(parts: Sequence[Patches]) -> Patches:
    if len(parts) == 1:
        return parts[0]
    return Patches(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.centre for part in parts]),
        np.concatenate([part.half for part in parts]),
    )


def _prefetched(items: Iterator[tuple[Patches, Views]]) -> Iterator[tuple[Patches, Views]]:
    """The items, produced by a thread a few ahead; its exception is raised here, and it ends when the consumer does."""
    ready: queue.Queue[tuple[Patches, Views] | BaseException | None] = queue.Queue(_PREFETCHED)
    stopped = threading.Event()

    def put(item: tuple[Patches, Views] | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(None)
        except BaseException as problem:
            put(problem)

    thread = threading.Thread(target=produce, name="window-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
