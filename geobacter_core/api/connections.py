"""Connections: one whose client does not come to the point is closed; of bodies and answers `access.Limiter` sees."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_S = 15.0
"""A request's line and headers have to be there by then; uvicorn itself waits for ever."""


class HeadInTime:
    """What is put before one of uvicorn's protocols: the time that a request's head may take.

    A body that still comes after its request was refused counts as a head that does not end, too.
    """

    cycle: Any
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client may begin."""
        super().connection_made(transport)  # type: ignore[misc]
        self._watch()

    def connection_lost(self, problem: Exception | None) -> None:
        """The client is gone."""
        self._unwatch()
        super().connection_lost(problem)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        """Part of a request, or several."""
        super().data_received(data)  # type: ignore[misc]
        if not self._lacks_head():
            self._unwatch()
        elif self._head_timer is None and not self.transport.is_closing():
            self._watch()

    def _lacks_head(self) -> bool:
        """Whether no request is being answered or taken in: of each, uvicorn makes a cycle when its head is there."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._close)

    def _unwatch(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close(self) -> None:
        self._head_timer = None
        if self._lacks_head():
            # An answer that nobody reads would keep it open.
            if self.transport.get_write_buffer_size():
                self.transport.abort()
            else:
                self.transport.close()


class TimedProtocol(HeadInTime, AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """The protocol that uvicorn would choose, with a limit on a head's time."""
