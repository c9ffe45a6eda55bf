"""Training data: pairs or triplets of windows, cut from the tile caches on the fly, a whole batch at once.

What a batch holds follows from the seed, its epoch and its number alone, so a training can go on in the middle.
"""

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from geobacter_core.ahead import produced_ahead
from geobacter_core.encoder.settings import TrainSettings
from geobacter_core.errors import EncoderError
from geobacter_core.geo import Floats, chunk_numbers
from geobacter_core.samples.triplets import Triplets
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.mosaic import ChunkMemory
from geobacter_core.tiles.source import Pixels
from geobacter_core.tiles.window import Scales, Views, WindowReader

ROLES = ("anchor", "positive", "negative")
_PREFETCHED = 4
_PREFETCHED_BYTES = 256 << 20
"""Fewer batches wait for the network where they are larger than this together."""
_HELD = 4
_HELD_BYTES = 256 << 20
"""So many batches are shown by turns, fewer where they are larger than this together."""
_CHUNKS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class RegionData:
    """What the encoder learns from in one region."""

    name: str
    triplets: Triplets
    cache: TileCache


@dataclass(frozen=True, slots=True)
class Batch:
    """Augmented windows of N pairs or triplets.

    Attributes:
        windows: uint8 `[R·N, S·C, size_px, size_px]`, all anchors first, then the positives, then the negatives if any.
        xyz: Where the anchors and positives are: points on the unit sphere, float32 `[2·N, 3]`, good to half a metre.
        near_m: How far from its anchor a positive may be in the place's region, ground metres, float32 `[2·N]`.
    """

    windows: torch.Tensor
    xyz: torch.Tensor
    near_m: torch.Tensor

    def turned(self, symmetry: int) -> "Batch":
        """The same places in one of a square's eight symmetries: `symmetry` mod 4 right angles, mirrored from 4 on."""
        windows = self.windows.transpose(2, 3) if symmetry >= 4 else self.windows
        if symmetry % 4:  # rot90 copies where there is nothing to turn, too
            windows = torch.rot90(windows, symmetry % 4, (2, 3))
        return replace(self, windows=windows)


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """What windows the training regions share.

    Attributes:
        style: Name of their style.
        style_version: Its version.
        scales: Their sides: of the window, of a context if all regions have one (the smallest of theirs), and of
            surroundings if the encoder is to have them.
        n_channels: C.
    """

    style: str
    style_version: str
    scales: Scales
    n_channels: int

    def seen_by(self, settings: TrainSettings) -> "WindowSpec":
        """What an encoder with these settings takes: with surroundings, where they are wanted."""
        is_wanted = settings.shares and settings.surroundings
        return replace(self, scales=self.scales.with_surroundings()) if is_wanted else self


def check_regions(regions: Sequence[RegionData]) -> WindowSpec:
    """What windows the regions hold: of one style and size in all, and with the context that fits all.

    Raises:
        EncoderError: There is no region, or two do not fit together, or samples and tiles do not.
    """
    if not regions:
        raise EncoderError(
            "There is no region to train on. Set train = true for one in regions.toml, and materialise its samples."
        )
    first = _window_spec(regions[0])
    for region in regions:
        if region.triplets.metadata.get("tiles") != region.cache.manifest.digest:
            raise EncoderError(
                f"Region '{region.name}': its triplets were drawn from other tiles than the cache now holds. "
                "Materialise triplet_samples for the region."
            )
        spec = _window_spec(region)
        if _without_context(spec) != _without_context(first):
            raise EncoderError(
                f"Region '{region.name}' has windows of {_described(spec)}, region '{regions[0].name}' of "
                f"{_described(first)}. One encoder takes one kind of window: materialise both with the same settings."
            )
    return replace(first, scales=_scales(regions))


def _scales(regions: Sequence[RegionData]) -> Scales:
    """What the triplets were drawn for, with the context that fits all regions; none if one of them has none.

    Triplets drawn for a wide context have room for a smaller one.
    """
    return Scales(regions[0].triplets.size_m, min(region.triplets.context_m or 0.0 for region in regions) or None)


def _window_spec(region: RegionData) -> WindowSpec:
    manifest = region.cache.manifest
    return WindowSpec(manifest.style, manifest.style_version, _scales([region]), region.cache.n_channels)


def _without_context(spec: WindowSpec) -> WindowSpec:
    return replace(spec, scales=Scales(spec.scales.size_m))


def _described(spec: WindowSpec) -> str:
    return f"{spec.scales.size_m:g} m in style {spec.style}/{spec.style_version}"


class TripletWindows:
    """The triplets of several regions as batches of windows."""

    def __init__(
        self,
        regions: Sequence[RegionData],
        split: str,
        size_px: int,
        budget_bytes: int,
        scales: Scales | None = None,
    ) -> None:
        """Open the regions' caches; `budget_bytes` of decoded chunks are kept in memory.

        Unless `scales` says otherwise, windows have the size that the triplets were drawn for, and the smallest of
        their contexts.
        """
        self.size_px = size_px
        memory = ChunkMemory(budget_bytes)
        scales = scales or _scales(regions)
        learnt_m = scales.wider_m[: scales.n_learnt - 1]
        self._readers, self._learnt_readers = (
            [WindowReader(region.cache, scales.size_m, size_px, wider_m, memory) for region in regions]
            for wider_m in (scales.wider_m, learnt_m)
        )
        self.n_planes = self._learnt_readers[0].n_planes
        """S·C, the channels of the scales to learn from."""
        self._near_m = np.array([float(region.triplets.metadata["distance_m"] or 0) for region in regions])
        places = [region.triplets.lonlat(split) for region in regions]
        self._lonlat = np.concatenate(places)
        self.region = np.repeat(np.arange(len(places)), [len(part) for part in places])
        chunks = np.stack([*chunk_numbers(self._lonlat[:, 0]), self.region])
        self._chunk = np.unique(chunks, axis=1, return_inverse=True)[1]

    def __len__(self) -> int:
        return len(self._lonlat)

    def windows(self, index: NDArray[np.int64]) -> torch.Tensor:
        """Windows of triplets as they are, north up: uint8 `[3 N, S·C, size_px, size_px]`, all anchors first."""
        region, lonlat = self._places(index, len(ROLES))
        return torch.from_numpy(_cut(self._readers, region, lonlat))

    def n_batches(self, batch_size: int) -> int:
        """Full batches that an epoch cuts."""
        return len(self) // batch_size

    def batches(
        self,
        first: int,
        settings: TrainSettings,
        n_roles: int,
        device: torch.device,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> Generator[Batch, None, None]:
        """The batches of a training from number `first` on, on `device`, without end: the scales to learn from.

        Each epoch cuts the windows of each triplet of the split at most once, and shows them `settings.n_echoes` times:
        some batches by turns, then the same in another symmetry of the square. A place returns after some steps only
        (Choi et al., "Faster neural network training with data echoing", 2019, find that to be better than at once).
        Batches are made by a thread while the network computes. Which windows a batch holds does not depend on how many
        processes share it.

        Args:
            first: Batches to leave out at the beginning.
            settings: Size of a batch, views and seed.
            n_roles: 2 for pairs, 3 for triplets.
            device: Where the windows are wanted.
            rank: Which share of each batch is wanted.
            n_ranks: In how many shares a batch is split, all of as many pairs or triplets; a rest is left out.
        """
        size = min(settings.batch_size, len(self))
        share = size // n_ranks
        mine = np.arange(rank * share, (rank + 1) * share)

        n_bytes = n_roles * size * self.n_planes * self.size_px**2
        n_held = min(_HELD, max(1, _HELD_BYTES // n_bytes)) if settings.n_echoes > 1 else 1

        n_complete, n_shown = divmod(first, n_held * settings.n_echoes)

        def shown() -> Iterator[tuple[Batch, int]]:
            drawn = self._drawn(n_complete * n_held, size, settings.seed)
            while True:
                held = []
                for number in range(n_held * settings.n_echoes):
                    if number < n_held:
                        index, rng = next(drawn)
                        batch = self._batch(index, mine, settings, n_roles, rng, device)
                        held.append((batch, [0, *(1 + rng.permutation(7))]))
                    batch, symmetries = held[number % n_held]
                    yield batch, int(symmetries[number // n_held])

        def produce() -> Iterator[Batch]:
            return (batch.turned(symmetry) for batch, symmetry in itertools.islice(shown(), n_shown, None))

        n_ahead = min(_PREFETCHED, max(1, _PREFETCHED_BYTES * n_ranks // n_bytes))
        return produced_ahead(lambda: _in_one_thread(produce), n_ahead, "window-prefetch")

    def _drawn(self, first: int, size: int, seed: int) -> Iterator[tuple[NDArray[np.int64], np.random.Generator]]:
        """Which triplets each batch has, and the source of its views."""
        n_complete, skipped = divmod(first, self.n_batches(size))
        for epoch in itertools.count(n_complete + 1):
            order = self._order(np.random.default_rng([seed, epoch]))
            for number in range(skipped, self.n_batches(size)):
                yield order[number * size : (number + 1) * size], np.random.default_rng([seed, epoch, number])
            skipped = 0

    def _order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The triplets at random, but those of some chunks, picked anew for each epoch, before those of the next.

        A batch from all over a country would need more chunks than fit in memory, each for one window.
        """
        order = rng.permutation(len(self))
        n_chunks = int(self._chunk.max(initial=0)) + 1
        if n_chunks <= _CHUNKS_AT_ONCE:
            return order
        group = rng.permutation(n_chunks) // _CHUNKS_AT_ONCE
        return order[np.argsort(group[self._chunk[order]], kind="stable")]

    def _batch(
        self,
        index: NDArray[np.int64],
        mine: NDArray[np.int64],
        settings: TrainSettings,
        n_roles: int,
        rng: np.random.Generator,
        device: torch.device,
    ) -> Batch:
        """The share `mine` of a batch of triplets; views are drawn for all of it, and so are the same in any share."""
        n = n_roles * len(index)
        rows = (np.arange(n_roles)[:, None] * len(index) + mine).ravel()
        views = Views.draw(n, settings.max_shift, rng, settings.max_scale, settings.rotate).take(rows)
        kept = rng.random((n, self.n_planes))[rows] >= settings.channel_dropout
        region, lonlat = self._places(index[mine], n_roles)
        windows = _cut(self._learnt_readers, region, lonlat, views)
        if not kept.all():
            windows *= kept[:, :, None, None]
        pairs = slice(2 * len(mine))
        return Batch(
            torch.from_numpy(windows).to(device),
            torch.from_numpy(_on_unit_sphere(lonlat[pairs])).float().to(device),
            torch.from_numpy(self._near_m[region[pairs]]).float().to(device),
        )

    def _places(self, index: NDArray[np.int64], n_roles: int) -> tuple[NDArray[np.int64], Floats]:
        """Region `[R·N]` and place `[R·N, 2]` of the anchors, then of the positives, then of the negatives."""
        lonlat = self._lonlat[index, :n_roles]
        return np.tile(self.region[index], n_roles), lonlat.swapaxes(0, 1).reshape(-1, 2)


def _cut(
    readers: Sequence[WindowReader], region: NDArray[np.int64], lonlat: Floats, views: Views | None = None
) -> Pixels:
    """Windows of places in several regions, in the order of the places: uint8 `[M, S·C, size_px, size_px]`."""
    lon, lat = lonlat.T
    present = np.unique(region)
    if len(present) == 1:
        return readers[int(present[0])].windows(lon, lat, views)
    n_planes, size_px = readers[0].n_planes, readers[0].size_px
    windows = np.empty((len(region), n_planes, size_px, size_px), np.uint8)
    for number in present:
        rows = np.flatnonzero(region == number)
        windows[rows] = readers[int(number)].windows(lon[rows], lat[rows], views and views.take(rows))
    return windows


def _on_unit_sphere(lonlat: Floats) -> Floats:
    lon, lat = np.radians(lonlat).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def _in_one_thread(batches: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
    """Batches, made without other threads: the network would wait for those, and what waits keeps a core busy."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from batches()
    finally:
        torch.set_num_threads(n_threads)  # what threads to come begin with
