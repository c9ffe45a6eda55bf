"""A tile server on loopback that can be told to misbehave: for a share of requests, or in one way always."""

import io
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import PIL.Image

FAULTS = ("500", "503", "reset", "stall", "html", "truncated", "flipped", "wrong size", "empty", "json")
STALL_S = 6.0


def tile_pixels(x: int, y: int) -> np.ndarray:
    """What the tile 16/x/y looks like: uint8 `[256, 256, 3]`, another picture for every tile."""
    pixels = np.full((256, 256, 3), (x % 251, y % 241, (x * 7 + y * 13) % 239), np.uint8)
    pixels[x % 200 : x % 200 + 50, y % 200 : y % 200 + 50] = (y % 256, x % 256, 200)
    return pixels


def png(pixels: np.ndarray) -> bytes:
    return png_of(PIL.Image.fromarray(pixels))


def png_of(image: PIL.Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@lru_cache(maxsize=4096)
def tile_png(x: int, y: int) -> bytes:
    return png(tile_pixels(x, y))


class Server(ThreadingHTTPServer):
    """Answers `/tiles/16/x/y.png`; `fault` says, for a tile and how often it has been asked for, what goes wrong."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault: Callable[[int, int, int], str | None] = lambda x, y, n: None
        self.asked: Counter[tuple[int, int]] = Counter()
        self.n_open = 0
        self.most_open = 0
        self.connections = 0
        self.headers_seen: dict[str, str] = {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/tiles/{{z}}/{{x}}/{{y}}.png"

    def handle_error(self, request, client_address) -> None:
        """Clients that give up are what is being tested."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format, *args) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_GET(self) -> None:
        server = self.server
        zoom, x, y = (int(part.removesuffix(".png")) for part in self.path.partition("?")[0].split("/")[2:5])
        assert zoom == 16
        with server.lock:
            server.asked[x, y] += 1
            n = server.asked[x, y]
            server.n_open += 1
            server.most_open = max(server.most_open, server.n_open)
            server.headers_seen = dict(self.headers)
        try:
            self.answer(server.fault(x, y, n), tile_png(x, y), x, y)
        finally:
            with server.lock:
                server.n_open -= 1

    def answer(self, fault: str | None, body: bytes, x: int, y: int) -> None:
        match fault:
            case None:
                self.send(200, body)
            case "reset":
                # A linger time of zero makes close() send a reset.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
            case "stall":
                self.close_connection = True
                threading.Event().wait(STALL_S)
            case "html":
                self.send(200, b"<!DOCTYPE html><html><body>Please log in</body></html>", "text/html")
            case "truncated":
                self.send(200, body[: len(body) * 2 // 3])
            case "short":  # the connection ends before the length that was announced
                self.send(200, body[: len(body) // 2], length=len(body))
                self.close_connection = True
            case "flipped":
                middle = len(body) // 2
                self.send(200, body[:middle] + bytes([body[middle] ^ 0x55]) + body[middle + 1 :])
            case "wrong size":
                self.send(200, png(np.zeros((512, 512, 3), np.uint8)))
            case "empty":
                self.send(200, b"")
            case "json":
                self.send(200, b'{"error": "no tile for you"}', "application/json")
            case "redirect loop":
                self.send(302, b"", headers={"Location": self.path})
            case "endless":
                self.send_response(200)
                self.send_header("Content-Type", "image/png")
                self.end_headers()
                self.close_connection = True
                while True:
                    self.wfile.write(bytes(1 << 16))
            case "palette":
                image = PIL.Image.fromarray(tile_pixels(x, y)).quantize(8)
                self.send(200, png_of(image))
            case "rgba":
                self.send(200, png(np.dstack([tile_pixels(x, y), np.full((256, 256), 255, np.uint8)])))
            case "transparent":
                self.send(200, png(np.dstack([tile_pixels(x, y), np.full((256, 256), 128, np.uint8)])))
            case "16 bit":
                self.send(200, png_of(PIL.Image.fromarray(np.zeros((256, 256), np.uint16))))
            case "placeholder":
                self.send(404, body)
            case _ if fault.startswith("redirect "):
                self.send(302, b"", headers={"Location": fault.removeprefix("redirect ")})
            case _:
                status, _, retry_after = fault.partition(" after ")
                self.send(int(status), b"not now", "text/plain", headers={"Retry-After": retry_after})

    def send(
        self,
        status: int,
        body: bytes,
        kind: str = "image/png",
        length: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (headers or {}).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def tile_server():
    """A server that runs until the block ends."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def at_random(share: float, seed: int) -> Callable[[int, int, int], str | None]:
    """One of the faults for a share of all requests, the same for the same tile and try."""

    def fault(x: int, y: int, n: int) -> str | None:
        draw = random.Random(f"{seed} {x} {y} {n}")
        return draw.choice(FAULTS) if draw.random() < share else None

    return fault
