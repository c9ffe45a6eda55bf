"""Who may ask, and how much: the token, and limits on bodies, on their time, and on requests under way.

Plain ASGI, in front of everything else: what is refused costs next to nothing, and no token reaches code that logs.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geobacter_core.api.problems import MEDIA_TYPE, problem_body, problem_headers
from geobacter_core.errors import ApiSettingsError

TOKEN_VARIABLE = "GEOBACTER_TOKEN"
MIN_TOKEN_LENGTH = 16
_OPEN_PATHS = ("/", "/health", "/ready", "/favicon.ico", "/openapi.json")
_OPEN_PREFIX = "/explorer/"
_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes on.

    Attributes:
        body_bytes: Of a request.
        body_s: In which it must have come.
        in_flight: Requests under way.
        answer_s: In which a client must have read some of its answer, if that does not fit the buffers.
    """

    body_bytes: int = 4 << 20
    body_s: float = 15.0
    in_flight: int = 256
    answer_s: float = 15.0


def tokens_from(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The tokens in `GEOBACTER_TOKEN`, separated by commas or blanks: several while an old one is replaced.

    Raises:
        ApiSettingsError: One is too short to be safe, or cannot stand in a header.
    """
    tokens = tuple(environment.get(TOKEN_VARIABLE, "").replace(",", " ").split())
    for number, token in enumerate(tokens, 1):
        if len(token) < MIN_TOKEN_LENGTH or not (token.isascii() and token.isprintable()):
            raise ApiSettingsError(
                f"{TOKEN_VARIABLE}: token {number} of {len(tokens)} has {len(token)} characters; {MIN_TOKEN_LENGTH} "
                "printable ASCII characters are the least. Make one: "
                "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
    return tokens


class Guard:
    """Lets in who has a token, where tokens are set; without, only requests that name this machine itself."""

    def __init__(self, app: ASGIApp, tokens: Sequence[str] = ()) -> None:
        self._app = app
        # Digests have one length: comparing them takes the same time, however wrong or long what is sent.
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let in or refuse."""
        if scope["type"] == "http":
            if not self._digests:
                # A page of another site may make a browser ask this server under a name of its own.
                host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
                name = host if host.endswith("]") else host.rpartition(":")[0] or host
                if name not in _LOOPBACK_HOSTS:
                    detail = "Without a token this server answers on loopback only: ask localhost or 127.0.0.1."
                    return await refuse(send, 421, detail)
            elif not _is_open(scope["path"]) and not self._is_known(scope["headers"]):
                detail = "Send a token that this server knows, as: Authorization: Bearer TOKEN"
                return await refuse(send, 401, detail, {"WWW-Authenticate": "Bearer"})
            # Nothing behind this needs it, and what is not there cannot be logged.
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"authorization"]
        return await self._app(scope, receive, send)

    def _is_known(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        sent = [value for name, value in headers if name == b"authorization"]
        scheme, _, token = (sent[0] if len(sent) == 1 else b"").partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(found) and scheme.lower() == b"bearer"


def _is_open(path: str) -> bool:
    """Whether everybody may ask for a path: small files, and how the server is."""
    return path in _OPEN_PATHS or path.startswith(_OPEN_PREFIX)


class _UnreadError(Exception):
    """A client does not read its answer."""


class Limiter:
    """Refuses requests beyond a number under way, bodies that are too large or too slow, and clients that do not read.

    What everybody may ask for does not count and has no body: nobody without a token can take others' places.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self.n_in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, once the body is there, or refuse."""
        if scope["type"] != "http" or _is_open(scope["path"]):
            return await self._app(scope, receive, send)
        limits = self._limits
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > limits.body_bytes:
            return await self._refuse_size(send)
        if self.n_in_flight >= limits.in_flight:
            detail = f"{limits.in_flight} requests are under way, which is as many as this server takes. Try again."
            return await refuse(send, 503, detail, problem_headers(1))
        self.n_in_flight += 1
        try:
            return await self._with_body(scope, receive, self._in_time(send))
        except _UnreadError:
            return None  # uvicorn closes the connection
        finally:
            self.n_in_flight -= 1

    def _in_time(self, send: Send) -> Send:
        is_unread = False

        async def send_in_time(message: Message) -> None:
            nonlocal is_unread
            try:
                if not is_unread:
                    async with asyncio.timeout(self._limits.answer_s):
                        return await send(message)
            except TimeoutError:
                is_unread = True
            raise _UnreadError

        return send_in_time

    async def _refuse_size(self, send: Send) -> None:
        await refuse(send, 413, f"A body may have {self._limits.body_bytes:,} bytes. Send several requests.")

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take in the whole body first: whoever is slow with it keeps nobody else waiting."""
        limits = self._limits
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    pieces.append(message.get("body", b""))
                    size += len(pieces[-1])
                    if size > limits.body_bytes:
                        return await self._refuse_size(send)
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            return await refuse(send, 408, f"The body did not come within {limits.body_s:g} s. Send it faster.")
        return await self._app(scope, _replayed(b"".join(pieces), receive), send)


def _replayed(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    is_told = False

    async def replay() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def refuse(send: Send, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
    """Answer with a problem, before any of the application."""
    body = problem_body(status, detail)
    pairs: dict[str, Any] = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **problem_headers()}
    # What is left of the request's body is not read; the connection cannot be used again.
    pairs |= {"connection": "close"} if status in (408, 413) else {}
    encoded = [(name.lower().encode(), str(value).encode()) for name, value in {**pairs, **(headers or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
