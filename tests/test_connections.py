"""Connections whose clients are slow, to a real server: closed if no request's head comes in time, else left alone."""

import asyncio
import contextlib

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from geobacter_core.api import connections
from geobacter_core.api.access import Guard, Limiter, Limits
from geobacter_core.api.connections import HeadInTime

HEAD_S = 0.4
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(params=[HttpToolsProtocol, H11Protocol], ids=["httptools", "h11"])
def protocol(request, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", HEAD_S)
    return type("Timed", (HeadInTime, request.param), {})


async def slow(scope, receive, send):
    """Answers later than a head may take, by how much body there was."""
    n = 0
    while (message := await receive())["type"] == "http.request":
        n += len(message["body"])
        if not message["more_body"]:
            break
    await asyncio.sleep(1.5 * HEAD_S)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
    await send({"type": "http.response.body", "body": b"%d" % n})


@contextlib.asynccontextmanager
async def connected(protocol):
    config = uvicorn.Config(slow, host="127.0.0.1", port=0, http=protocol, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await serving


async def answered(reader):
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 200")
    return await reader.readexactly(1)


async def closed(reader):
    return await asyncio.wait_for(reader.read(), 5) == b""


@pytest.mark.parametrize("sent", [b"", b"G", REQUEST])
def test_without_a_head_a_connection_is_closed(protocol, sent):
    async def check():
        async with connected(protocol) as (reader, writer):
            writer.write(sent)
            assert await closed(reader)

    asyncio.run(check())


def test_bytes_now_and_then_are_no_head_either(protocol):
    async def check():
        async with connected(protocol) as (reader, writer):
            ended = asyncio.create_task(closed(reader))
            for byte in REQUEST:
                if ended.done():
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(HEAD_S / 8)
            assert ended.done()
            assert ended.result()

    asyncio.run(check())


def test_a_request_may_take_longer_and_another_may_follow(protocol):
    async def check():
        async with connected(protocol) as (reader, writer):
            for _ in range(2):
                writer.write(REQUEST + b"\r\n")
                assert await answered(reader) == b"0"
            writer.write(REQUEST)
            assert await closed(reader)

    asyncio.run(check())


def test_a_slow_body_is_not_this_limits_business(protocol):
    async def check():
        async with connected(protocol) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
            for _ in range(4):
                await asyncio.sleep(HEAD_S / 2)
                writer.write(b"x")
            assert await answered(reader) == b"4"

    asyncio.run(check())


# What stands before the application: whoever is slow takes nobody's place.


def limited(answer, **limits):
    limiter = Limiter(answer, Limits(**limits))
    return Guard(limiter, ["a-token-for-the-test"]), limiter


def scope_of(path):
    headers = [(b"authorization", b"Bearer a-token-for-the-test"), (b"content-length", b"4")]
    return {"type": "http", "path": path, "headers": headers}


async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("path", ["/", "/openapi.json", "/health", "/explorer/main.js"])
def test_what_needs_no_token_counts_for_nothing_and_waits_for_no_body(path):
    async def check():
        app, _ = limited(answer, in_flight=0)
        sent = []

        async def send(message):
            sent.append(message)

        await asyncio.wait_for(app(scope_of(path) | {"headers": []}, asyncio.Event().wait, send), 1)
        assert sent[0]["status"] == 200

    asyncio.run(check())


@pytest.mark.parametrize("n_read", [0, 1])
def test_an_answer_that_nobody_reads_gives_its_place_up(n_read):
    async def check():
        app, limiter = limited(answer, answer_s=0.05)
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"1234"}

        async def send(message):
            if len(sent) == n_read:
                assert limiter.n_in_flight == 1
                await asyncio.Event().wait()
            sent.append(message)

        await asyncio.wait_for(app(scope_of("/embeddings"), receive, send), 2)
        assert limiter.n_in_flight == 0
        assert len(sent) == n_read

    asyncio.run(check())
