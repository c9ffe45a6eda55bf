"""A replication server on loopback, and an extract that follows it."""

import functools
import gzip
import http.server
import threading

import osmium

FIRST = 3046
BOX = (10.0, 50.0, 10.02, 50.02)


class Server:
    """A folder as a replication server; remembers what was asked for."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []
        folder.mkdir()
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                super().do_GET()

            def log_message(self, *_):
                return

        self._http = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
        )
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._http.server_port}"

    def path(self, number, kind):
        return self.folder / f"{number // 1_000_000:03}" / f"{number // 1000 % 1000:03}" / f"{number % 1000:03}.{kind}"

    def publish(self, number, xml="", day=None, state=None):
        """A change file and its state; `day` counts from 2024-05-06."""
        path = self.path(number, "osc.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(f'<osmChange version="0.6">{xml}</osmChange>'.encode(), mtime=0))
        day = number - FIRST if day is None else day
        text = state or f"sequenceNumber={number}\ntimestamp=2024-05-{6 + day:02}T08\\:00\\:00Z\n"
        self.path(number, "state.txt").write_text(text)
        (self.folder / "state.txt").write_text(text)

    def close(self):
        self._http.shutdown()
        self._http.server_close()


def node(id_, lon, lat, version=1, tags=""):
    return (
        f'<node id="{id_}" version="{version}" timestamp="2024-05-07T00:00:00Z" lon="{lon}" lat="{lat}">{tags}</node>'
    )


def way(id_, refs, version=1):
    nodes = "".join(f'<nd ref="{ref}"/>' for ref in refs)
    return (
        f'<way id="{id_}" version="{version}" timestamp="2024-05-07T00:00:00Z">{nodes}<tag k="highway" v="path"/></way>'
    )


def write_extract(write_pbf, path):
    """Write a made-up extract of four nodes and two ways at sequence 3046; returns the path."""
    plain = write_pbf(
        "plain.osm.pbf",
        {1: (10.0, 50.0), 2: (10.02, 50.0), 3: (10.02, 50.02), 4: (10.01, 50.01)},
        {1: ([1, 2, 3], {"highway": "path"}), 2: ([3, 4], {"highway": "path"})},
        box=BOX,
    )
    with osmium.io.Reader(str(plain)) as reader:
        header = reader.header()
    header.set("osmosis_replication_base_url", "https://example.org/updates")
    header.set("osmosis_replication_sequence_number", str(FIRST))
    header.set("osmosis_replication_timestamp", "2024-05-06T08:00:00Z")
    with osmium.SimpleWriter(str(path), header=header) as writer:
        for item in osmium.FileProcessor(str(plain)):
            writer.add(item)
    return path
