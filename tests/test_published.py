"""Sources on the web that are not fetched again while the server has the file still that was fetched before."""

import hashlib
import os

import pytest
from replication import Server
from test_extract import PBF

from geobacter_core.errors import DownloadError
from geobacter_core.osm import extract as extract_module
from geobacter_core.osm.changes import update_extract
from geobacter_core.osm.extract import fetch_extract, load_extract
from geobacter_core.osm.published import Published, load_published
from geobacter_core.regions import Region

TOKEN = "s3cret"


class Site:
    """An extract on a web server, asked for over HTTPS, which the test takes to HTTP on loopback."""

    def __init__(self, folder, monkeypatch):
        self.server = Server(folder)
        self.file = folder / "helsinki.osm.pbf"
        self.file.write_bytes(PBF.read_bytes())
        self.region = Region(name="helsinki", extract=f"https://user:{TOKEN}@127.0.0.1/helsinki.osm.pbf")
        url = f"{self.server.address}/{self.file.name}"
        monkeypatch.setattr(extract_module, "_credentials_as_header", lambda _: (url, {"Authorization": "Basic x"}))

    @property
    def n_downloads(self):
        return self.server.asked.count(f"/{self.file.name}")

    def publish_md5(self, data):
        line = f"{hashlib.md5(data).hexdigest()}  {self.file.name}\n"
        self.file.with_name(f"{self.file.name}.md5").write_text(line)


@pytest.fixture
def site(tmp_path, monkeypatch):
    made = Site(tmp_path / "www", monkeypatch)
    yield made
    made.server.close()


def test_what_is_there_already_is_not_fetched_again(site, tmp_path):
    first = fetch_extract(site.region, tmp_path / "extract")
    assert first.counts.nodes == 24260
    assert site.n_downloads == 1
    assert fetch_extract(site.region, tmp_path / "extract") == first
    assert update_extract(site.region, tmp_path / "extract").how == "unchanged"
    assert site.n_downloads == 1
    known = load_published(tmp_path / "extract")
    assert known.origin_sha256 == first.origin_sha256
    assert TOKEN not in (tmp_path / "extract" / "published.json").read_text()


def test_another_file_in_its_place_is_fetched(site, tmp_path):
    first = fetch_extract(site.region, tmp_path / "extract")
    site.file.write_bytes((PBF.parent / "test.osm.pbf").read_bytes())
    update = update_extract(site.region, tmp_path / "extract")
    assert (update.how, site.n_downloads) == ("fetched", 2)
    assert update.extract.sha256 != first.sha256


def test_a_published_digest_says_more_than_a_time(site, tmp_path):
    site.publish_md5(PBF.read_bytes())
    fetch_extract(site.region, tmp_path / "extract")
    os.utime(site.file, (1e9, 1e9))  # as a mirror does that copies it anew
    fetch_extract(site.region, tmp_path / "extract")
    assert site.n_downloads == 1


def test_a_file_without_the_published_digest_is_refused_and_the_extract_stays(site, tmp_path):
    first = fetch_extract(site.region, tmp_path / "extract")
    site.publish_md5(b"another file")
    site.file.write_bytes(PBF.read_bytes()[:-1])
    with pytest.raises(DownloadError, match=r"has the MD5 .* is published beside it.*Materialise again") as caught:
        fetch_extract(site.region, tmp_path / "extract")
    assert TOKEN not in str(caught.value)
    assert load_extract(tmp_path / "extract")[0] == first
    site.file.write_bytes(PBF.read_bytes())
    site.publish_md5(PBF.read_bytes())
    assert fetch_extract(site.region, tmp_path / "extract") == first


def test_where_the_extract_is_gone_it_is_fetched_again(site, tmp_path):
    first = fetch_extract(site.region, tmp_path / "extract")
    (tmp_path / "extract" / first.file).unlink()
    assert fetch_extract(site.region, tmp_path / "extract") == first
    assert site.n_downloads == 2


def test_a_server_that_says_nothing_of_its_files_is_downloaded_from(site, tmp_path, monkeypatch):
    monkeypatch.setattr(extract_module, "look_up", lambda *_: None)
    for n in (1, 2):
        fetch_extract(site.region, tmp_path / "extract")
        assert site.n_downloads == n
    assert load_published(tmp_path / "extract") is None


@pytest.mark.parametrize(
    ("ours", "theirs", "is_same"),
    [
        ({"md5": "a", "etag": "1"}, {"md5": "a", "etag": "2"}, True),
        ({"md5": "a", "etag": "1"}, {"md5": "b", "etag": "1"}, False),
        (
            {"etag": "1", "last_modified": "t", "size_bytes": 1},
            {"etag": "2", "last_modified": "t", "size_bytes": 1},
            False,
        ),
        ({"last_modified": "t", "size_bytes": 1}, {"last_modified": "t", "size_bytes": 1}, True),
        ({"last_modified": "t", "size_bytes": 1}, {"last_modified": "t", "size_bytes": 2}, False),
        ({"last_modified": "t"}, {"last_modified": "t"}, False),
        ({}, {}, False),
    ],
)
def test_what_makes_two_answers_the_same(ours, theirs, is_same):
    assert Published(address="a", **ours).is_same_file(Published(address="a", **theirs)) == is_same
    assert not Published(address="a", **ours).is_same_file(Published(address="b", **theirs))
