"""Requests that are under way share forward passes: a worker takes places of several of them at a time.

Workers, on a CPU one a processor, each cut the windows of a batch and encode it. One that is free waits a few ms
for a batch to fill up, and no longer. Where more waits, each takes its share of it. Of a long request each batch takes
a part, and then it is the next one's turn, so that short ones do not wait for long ones. What cannot be answered soon
is refused at once.
"""

import asyncio
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch

from geobacter_core.embeddings.places import Places
from geobacter_core.encoder.device import encoding_threads, keep_freed_memory
from geobacter_core.encoder.evaluate import Embeddings
from geobacter_core.geo import Floats

LATENCY_BUDGET_S = 0.004
"""So long a worker that is free waits for a batch to fill up."""
MAX_WAIT_S = 2.0
"""A request that would wait longer for its turn is refused, unless it is the only one."""
_MOST_AT_ONCE = 128
"""So many places a worker takes that wait, if that is more than a batch: in four batches they take a sixth longer."""
_FIRST_RATE = 500.0


class BusyError(Exception):
    """More is waiting than can be answered soon.

    Attributes:
        retry_after_s: When to ask again.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"Too much is being asked for at the moment. Try again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


@dataclass(eq=False, slots=True)
class _Request:
    """Places that somebody waits for; `embeddings` `[N, D]` fills up, and `done` is set when it is full."""

    places: Places
    lon: Floats
    lat: Floats
    embeddings: Embeddings
    loop: asyncio.AbstractEventLoop
    done: "asyncio.Future[Embeddings]"
    since: float = field(default_factory=time.monotonic)
    n_taken: int = 0
    n_filled: int = 0
    is_over: bool = False


_Piece = tuple[_Request, slice]


class Batcher:
    """The workers, and what waits for them."""

    def __init__(self, n_workers: int | None = None, max_wait_s: float = MAX_WAIT_S) -> None:
        """Prepare; nothing is encoded before `start`."""
        self.max_wait_s = max_wait_s
        self.n_windows = self.n_batches = 0
        self._waiting: deque[_Request] = deque()
        self._n_waiting = 0
        self._rate = _FIRST_RATE
        self._is_closed = True
        self._changed = threading.Condition()
        self._n_workers = n_workers or encoding_threads()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the workers."""
        keep_freed_memory()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"encoding-{number}", daemon=True)
            for number in range(self._n_workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def n_waiting(self) -> int:
        """Places that no worker has taken yet."""
        return self._n_waiting

    async def embed(self, places: Places, lon: Floats, lat: Floats) -> Embeddings:
        """Embeddings of places in degrees, float32 `[N, D]`.

        Raises:
            BusyError: Too many places wait already, or the server ends.
            GeobacterError: As `Places.windows`.
        """
        loop = asyncio.get_running_loop()
        embeddings = np.empty((len(lon), places.encoder.version.embedding_dim), np.float32)
        if not len(lon):
            return embeddings
        request = _Request(places, lon, lat, embeddings, loop, loop.create_future())
        with self._changed:
            if self._is_closed:
                raise BusyError(1)
            if self._n_waiting and self._n_waiting + len(lon) > self.max_wait_s * self._rate:
                raise BusyError(max(1, math.ceil(self._n_waiting / self._rate)))
            self._waiting.append(request)
            self._n_waiting += len(lon)
            self._changed.notify()
        try:
            return await request.done
        finally:
            request.is_over = True  # whoever asked has left, or has got it: what is left of it is not encoded

    def close(self) -> None:
        """End the workers when they are done with what they have in hand."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        while self._waiting:
            self._fail(self._waiting.popleft(), BusyError(1))
        self._n_waiting = 0

    def _work(self) -> None:
        torch.set_num_threads(1)
        while (pieces := self._next_batch()) is not None:
            begun = time.monotonic()
            try:
                self._encode(pieces)
            except Exception as problem:
                if len({id(request) for request, _ in pieces}) == 1:
                    self._fail(pieces[0][0], problem)
                else:
                    for piece in pieces:  # one of them is at fault; the others are to have their answers
                        self._try(piece)
            n, took_s = sum(part.stop - part.start for _, part in pieces), time.monotonic() - begun
            with self._changed:
                self._rate += 0.05 * (self._n_workers * n / max(took_s, 1e-6) - self._rate)

    def _next_batch(self) -> list[_Piece] | None:
        """Pieces of requests that share an encoder: a batch, or more where more waits; None when all is over."""
        with self._changed:
            while True:
                self._drop_abandoned()
                if self._is_closed:
                    return None
                if not self._waiting:
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                size = first.places.encoder.batch_size
                rest_s = first.since + LATENCY_BUDGET_S - time.monotonic()
                if self._n_waiting >= size or rest_s <= 0:
                    share = math.ceil(self._n_waiting / self._n_workers)
                    return self._take(first.places, max(size, min(share, _MOST_AT_ONCE)))
                self._changed.wait(rest_s)

    def _take(self, places: Places, size: int) -> list[_Piece]:
        """Places that wait, in all up to `size`: of each request at most a batch, then it is the next one's turn."""
        pieces: list[_Piece] = []
        passed_over: list[_Request] = []
        while self._waiting and size:
            request = self._waiting.popleft()
            if request.places is not places:
                passed_over.append(request)
                continue
            n = min(size, places.encoder.batch_size, len(request.lon) - request.n_taken)
            pieces.append((request, slice(request.n_taken, request.n_taken + n)))
            request.n_taken += n
            size -= n
            self._n_waiting -= n
            if request.n_taken < len(request.lon):
                self._waiting.append(request)
        self._waiting.extendleft(reversed(passed_over))
        self.n_windows += sum(part.stop - part.start for _, part in pieces)
        self.n_batches += 1
        if self._waiting:
            self._changed.notify()
        return pieces

    def _drop_abandoned(self) -> None:
        if any(request.is_over for request in self._waiting):
            kept = [request for request in self._waiting if not request.is_over]
            self._waiting = deque(kept)
            self._n_waiting = sum(len(request.lon) - request.n_taken for request in kept)

    def _encode(self, pieces: list[_Piece]) -> None:
        lon = np.concatenate([request.lon[part] for request, part in pieces])
        lat = np.concatenate([request.lat[part] for request, part in pieces])
        embeddings = pieces[0][0].places.embed(lon, lat)
        at = 0
        for request, part in pieces:
            n = part.stop - part.start
            request.embeddings[part] = embeddings[at : at + n]
            at += n
            with self._changed:
                request.n_filled += n
                is_full = request.n_filled == len(request.lon)
            if is_full:
                self._answer(request, None)

    def _try(self, piece: _Piece) -> None:
        if piece[0].is_over:
            return
        try:
            self._encode([piece])
        except Exception as problem:
            self._fail(piece[0], problem)

    def _fail(self, request: _Request, problem: Exception) -> None:
        request.is_over = True
        self._answer(request, problem)

    @staticmethod
    def _answer(request: _Request, problem: Exception | None) -> None:
        def answer() -> None:
            if request.done.done():
                return
            if problem is None:
                request.done.set_result(request.embeddings)
            else:
                request.done.set_exception(problem)

        try:
            request.loop.call_soon_threadsafe(answer)
        except RuntimeError:
            return  # the server has ended meanwhile
