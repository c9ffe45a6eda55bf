"""The limit of all that encodes: a network on windows that lie in memory."""

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from geobacter_core.encoder.network import EncoderNetwork
    from geobacter_core.encoder.version import Encoder

N_BARE = 2048
"""Windows that the bare network encodes in a turn."""
_PLAIN_SIZES = (32, 64, 128, 256)


class Bare:
    """Windows a second of an encoder, and of the network that it comes from.

    Args:
        encoder: The encoder.
        network: Its network as it is registered.
        windows: uint8 `[N, S·C, size_px, size_px]`; a pixel of each image is changed, so that none is of one colour,
            which an encoder would look at once.
        at_once: Windows that the encoder is given at a time.
    """

    def __init__(self, encoder: "Encoder", network: "EncoderNetwork", windows: "torch.Tensor", at_once: int) -> None:
        self._encoder, self._network, self._windows, self._at_once = encoder, network, windows, at_once
        windows[:, :: encoder.version.n_channels, 0, 0] ^= 1

    def by_passes(self) -> float:
        """By the encoder's own passes, by as many threads as encode."""
        return len(self._windows) / seconds(self._passes)

    def by_network(self) -> float:
        """By the network as it is registered, with all of torch's threads, in the best of batches."""
        return len(self._windows) / min(seconds(partial(self._plain, size)) for size in _PLAIN_SIZES)

    def _passes(self) -> None:
        from geobacter_core.encoder.device import encoding_threads, single_threads

        with single_threads(encoding_threads()) as pool:
            list(pool.map(self._encoder.encode, self._windows.split(self._at_once)))

    def _plain(self, size: int) -> None:
        import torch

        from geobacter_core.encoder.device import best_device
        from geobacter_core.encoder.network import embed

        device = best_device()
        with torch.inference_mode():
            for batch in self._windows.split(size):
                embed(self._network, batch.to(device), device).cpu()


def seconds(function: Callable[[], None]) -> float:
    """How long a function takes."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun
