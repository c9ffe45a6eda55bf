"""Updates of an extract: the change files of a replication server, applied in order, or else another download.

OpenStreetMap's replication: a folder on a server has `state.txt`, the newest sequence number and its time, and for each
number a file of changes, `000/003/047.osc.gz`, and a state of its own. An extract says in its header which server it
follows and how far it has come (https://wiki.openstreetmap.org/wiki/Planet.osm/diffs).
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

import osmium
import requests
from osmium.replication.server import OsmosisState, ReplicationServer

from geobacter_core.errors import DownloadError, ExtractError
from geobacter_core.files import only_one, remove_temporaries, temporary_beside, written_aside
from geobacter_core.osm.cut import cut_to_region
from geobacter_core.osm.extract import (
    Extract,
    adopt,
    fetch_extract,
    known_extract,
    load_extract,
    present_extract,
    where,
)
from geobacter_core.regions import Region, parse_source
from geobacter_core.settings import redacted, without_secrets

_CHANGES = "changes"
_TIMEOUT_S = 60.0
_GONE = (requests.codes.forbidden, requests.codes.not_found, requests.codes.gone)
_DOWNLOADED = ("geofabrik", "bbbike", "https")
_log = logging.getLogger(__name__)

How = Literal["unchanged", "changes", "fetched"]


@dataclass(frozen=True, slots=True)
class Update:
    """What an update did to a region's extract.

    Attributes:
        extract: The extract as it is now.
        how: `unchanged`; `changes` were applied; or it was `fetched` from its source.
        n_changes: Change files that were applied.
        n_objects: Objects in them that lie in the region, or did.
        note: Why so, in a sentence; nothing where there is nothing to say.
    """

    extract: Extract
    how: How
    n_changes: int = 0
    note: str = ""
    n_objects: int = 0


@dataclass(frozen=True, slots=True)
class Pending:
    """How far an extract and its replication server have come: sequence numbers."""

    present: int
    newest: int

    @property
    def n_changes(self) -> int:
        """Change files that the extract is behind."""
        return self.newest - self.present


class _NotApplicableError(Exception):
    """Why change files cannot bring the extract up to date, so that only another download can."""


def update_extract(
    region: Region, folder: Path, on_change: Callable[[int, int], None] = lambda done, total: None
) -> Update:
    """Bring a region's extract up to date: by change files where it follows a replication server, else from its source.

    Change files that were fetched are kept until they have been applied, so an update that is killed goes on with
    them. Where they do not lead from the extract to the present (the server keeps too few, or they do not follow one
    another), a downloaded extract is downloaded anew, and a file stays as it is.

    Args:
        region: The region.
        folder: Where its extract lies.
        on_change: Called with the number of change files that are there, and of all.

    Raises:
        DownloadError: The server does not answer as it should; another try may succeed.
        ExtractError: The source cannot be had, or change files do not fit a file that cannot be downloaded.
        RegionGeometryError: The region lies where tiles cannot be.
    """
    with only_one(folder, "another update"):
        return _update(region, folder, on_change)


def _update(region: Region, folder: Path, on_change: Callable[[int, int], None]) -> Update:
    present = present_extract(region, folder)
    address = None if present is None else _address(region, present)
    if present is None or address is None:
        return _fetched(region, folder, present, "")
    is_download = parse_source(region.extract)[0] in _DOWNLOADED
    if not is_download:
        # Somebody may have put another file in its place.
        fetched = fetch_extract(region, folder)
        if fetched.origin_sha256 != present.origin_sha256:
            return Update(fetched, "fetched", note="the file is another one than before")
    try:
        return _follow(region, folder, present, address, on_change)
    except _NotApplicableError as reason:
        if not is_download:
            raise ExtractError(
                f"{where(region)}: {reason} Put a newer file in its place; the extract stays as it was."
            ) from None
        _log.warning("%s: %s Downloading the extract anew.", region.name, reason)
        return _fetched(region, folder, present, str(reason))


def pending_changes(region: Region, folder: Path) -> Pending | None:
    """How far a region's extract is behind its replication server: one small request, and nothing is changed.

    Returns:
        None where it follows no server, or there is no extract yet.

    Raises:
        DownloadError: The server does not answer as it should.
    """
    present = known_extract(region, folder)
    address = None if present is None else _address(region, present)
    if present is None or address is None or present.replication_sequence is None:
        return None
    return Pending(present.replication_sequence, newest_sequence(region, address))


def newest_sequence(region: Region, address: str) -> int:
    """The newest sequence number of a replication server: one small request.

    Raises:
        DownloadError: The server does not answer as it should.
    """
    with _server(region, address) as server:
        return _newest(server, region, address).sequence


def _fetched(region: Region, folder: Path, present: Extract | None, note: str) -> Update:
    extract = fetch_extract(region, folder)
    shutil.rmtree(folder / _CHANGES, ignore_errors=True)
    return Update(extract, "unchanged" if extract == present else "fetched", note=note)


def _address(region: Region, present: Extract) -> str | None:
    """The replication server to follow, if any."""
    if region.updates is not None:
        return None if region.updates == "off" or present.replication_sequence is None else region.updates
    is_download = parse_source(region.extract)[0] in _DOWNLOADED
    return present.replication_url if is_download and present.replication_sequence is not None else None


def _follow(
    region: Region, folder: Path, present: Extract, address: str, on_change: Callable[[int, int], None]
) -> Update:
    sequence = present.replication_sequence or 0
    with _server(region, address) as server:
        newest = _newest(server, region, address)
        if newest.sequence == sequence:
            return Update(present, "unchanged")
        if newest.sequence < sequence:
            note = f"the server is at sequence {newest.sequence}, behind the extract's {sequence}"
            _log.warning("%s: %s; nothing to do.", region.name, note)
            return Update(present, "unchanged", note=note)
        changes = folder / _CHANGES
        changes.mkdir(exist_ok=True)
        remove_temporaries(changes)
        numbers = range(sequence + 1, newest.sequence + 1)
        files = []
        for number in numbers:
            files.append(_fetch_change(server, region, address, changes, number))
            on_change(len(files), len(numbers))
        _check_order(server, region, address, present, newest)
    extract, n_objects = _apply(region, folder, present, files, newest)
    shutil.rmtree(changes, ignore_errors=True)
    return Update(extract, "changes", len(files), n_objects=n_objects)


@contextlib.contextmanager
def _server(region: Region, address: str) -> Iterator[ReplicationServer]:
    """A connection; what goes wrong on it is a DownloadError without secrets."""
    try:
        with ReplicationServer(address) as server:
            server.set_request_parameter("timeout", _TIMEOUT_S)
            yield server
    except requests.RequestException as problem:
        raise DownloadError(
            f"{where(region)}: {without_secrets(address)}: {redacted(str(problem), address)} "
            "The extract stays as it was; materialise again later."
        ) from None


def _newest(server: ReplicationServer, region: Region, address: str) -> OsmosisState:
    newest = _state(server, region, address, None)
    if newest is None:
        raise DownloadError(
            f"{where(region)}: {without_secrets(address)} does not answer with a state.txt that can be read. "
            "The extract stays as it was; materialise again later, or correct `updates` in regions.toml."
        )
    return newest


def _state(server: ReplicationServer, region: Region, address: str, number: int | None) -> OsmosisState | None:
    try:
        return server.get_state_info(number)
    except (ValueError, UnicodeDecodeError):  # a sequence number that is none; bytes that are no text
        _log.warning("%s: a state file of %s cannot be read", region.name, without_secrets(address))
        return None


def _fetch_change(server: ReplicationServer, region: Region, address: str, folder: Path, number: int) -> Path:
    """The change file of a number, whole: from an update that was cut short, or from the server, at the second try."""
    path = folder / f"{number}.osc.gz"
    if path.exists() and not _problem_of(path):
        return path
    problem = ""
    for _ in range(2):
        try:
            data = cast("bytes", server.get_diff_block(number))  # which is not a str, as it says
        except requests.HTTPError as refused:
            if refused.response is not None and refused.response.status_code in _GONE:
                raise _NotApplicableError(
                    f"change file {number} is not to be had at {without_secrets(address)} "
                    f"(HTTP {refused.response.status_code}); it has expired, or is missing."
                ) from None
            raise
        with written_aside(path) as temporary:
            temporary.write_bytes(data)
        problem = _problem_of(path)
        if not problem:
            return path
        path.unlink()
    raise DownloadError(
        f"{where(region)}: change file {number} of {without_secrets(address)} is truncated or damaged ({problem}). "
        "The extract stays as it was; materialise again later."
    )


class _Ignore:
    """Sees relations, which come last, so that a file is read to its end."""

    def relation(self, _: osmium.osm.Relation) -> None:
        return


def _problem_of(path: Path) -> str:
    """Why a change file cannot be read through; empty if it can."""
    try:
        with osmium.io.Reader(osmium.io.File(str(path), "osc.gz")) as reader:
            osmium.apply(reader, _Ignore())
    except RuntimeError as problem:
        return str(problem)
    return ""


def _check_order(
    server: ReplicationServer, region: Region, address: str, present: Extract, newest: OsmosisState
) -> None:
    """Hold the change files' own states against what they should be."""
    before = _time(present.osm_timestamp)
    for number in range((present.replication_sequence or 0) + 1, newest.sequence + 1):
        state = newest if number == newest.sequence else _state(server, region, address, number)
        if state is None:
            continue
        if state.sequence != number:
            raise _NotApplicableError(
                f"the state of change file {number} at {without_secrets(address)} says {state.sequence}: the files are "
                "out of order."
            )
        if before is not None and state.timestamp < before:
            raise _NotApplicableError(
                f"change file {number} at {without_secrets(address)} is of {state.timestamp:%Y-%m-%dT%H:%M:%SZ}, "
                f"earlier than what comes before it ({before:%Y-%m-%dT%H:%M:%SZ}): a clock was wrong, or the server "
                "is of another extract."
            )
        before = state.timestamp


def _time(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None


def _apply(
    region: Region, folder: Path, present: Extract, files: list[Path], newest: OsmosisState
) -> tuple[Extract, int]:
    """Write the extract with the changes, keep its cut, and put it in the place of the present one.

    Returns the extract and how many of the changes' objects are of the region.
    """
    _, pbf = load_extract(folder)
    scratch = temporary_beside(folder / "update")
    scratch.mkdir()
    try:
        kept = cut_to_region(files, pbf, present.box, scratch)
        if kept.n_inside == 0 and kept.n_objects:
            _log.warning(
                "%s: none of the %d objects in the change files lies in the region. Is the server its own?",
                region.name,
                kept.n_objects,
            )
        target = scratch / "updated.osm.pbf"
        merge = osmium.MergeInputReader()
        for file in kept.files:
            merge.add_file(str(file))
        with osmium.io.Reader(osmium.io.File(str(pbf), "pbf")) as reader:
            writer = osmium.io.Writer(osmium.io.File(str(target), "pbf"), _header(reader.header(), newest))
            try:
                merge.apply_to_reader(reader, writer)
            finally:
                writer.close()
        return adopt(target, region, folder, scratch, present.origin_sha256), kept.n_inside
    except RuntimeError as problem:
        raise ExtractError(
            f"{where(region)}: the changes cannot be applied: {problem}. The extract stays as it was."
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _header(before: osmium.io.Header, newest: OsmosisState) -> osmium.io.Header:
    """That of the extract before, with the new state."""
    header = osmium.io.Header()
    if before.box().valid():
        header.add_box(before.box())
    header.set("sorting", "Type_then_ID")
    for name in ("generator", "osmosis_replication_base_url"):
        if before.get(name):
            header.set(name, before.get(name))
    header.set("osmosis_replication_sequence_number", str(newest.sequence))
    header.set("osmosis_replication_timestamp", newest.timestamp.strftime("%Y-%m-%dT%H:%M:%SZ"))
    return header
