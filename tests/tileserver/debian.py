"""Debian's packages of the OSM tile server: where they are, and getting them when they are not.

Nothing here starts a service: what is installed is only ever run by `stack.TileServer`.
"""

import configparser
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DOWNLOAD_LIMIT_S = 300
INSTALL_LIMIT_S = 300

_PROGRAMS = {
    "osm2pgsql": Path("/usr/bin/osm2pgsql"),
    "renderd": Path("/usr/bin/renderd"),
    "apache2-bin": Path("/usr/sbin/apache2"),
    "libapache2-mod-tile": Path("/usr/lib/apache2/modules/mod_tile.so"),
    "openstreetmap-carto": Path("/usr/share/openstreetmap-carto-common/style.xml"),
}
"""The packages whose name does not depend on a version, and the file of each that the stack uses."""
_SERVER = "lib/postgresql/*/bin/postgres"
_RENDERD_CONF = Path("/etc/renderd.conf")
_POLICY = Path("/usr/sbin/policy-rc.d")
_CREATE_CLUSTER = Path("/etc/postgresql-common/createcluster.conf")
_APT_OPTIONS = ("-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20", "-o", "DPkg::Lock::Timeout=60")
_log = logging.getLogger(__name__)


class UnavailableError(Exception):
    """The tile server's packages are not here and cannot be had; the message is a reason to skip."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the packages put what the stack runs.

    Attributes:
        postgres: Folder of PostgreSQL's programs, of the newest version that has PostGIS.
        osm2pgsql: The importer.
        renderd: The renderer.
        mapnik_inputs: Folder of the Mapnik plugins that renderd loads.
        apache: The web server.
        mod_tile: Its module.
        carto: Folder of OSM Carto: the style's XML, and what osm2pgsql needs.
    """

    postgres: Path
    osm2pgsql: Path
    renderd: Path
    mapnik_inputs: Path
    apache: Path
    mod_tile: Path
    carto: Path


def unavailable() -> str | None:
    """Install what is missing if this process may; the reason why the packages cannot be had, or None."""
    try:
        install()
    except UnavailableError as reason:
        return str(reason)
    return None


def find_programs() -> Programs:
    """Where everything is.

    Raises:
        UnavailableError: Some packages are not installed; it names them.
    """
    postgres = _postgres_with_postgis()
    missing = _missing()
    if missing or postgres is None:
        raise UnavailableError(f"Debian packages are missing: {', '.join(missing)}. Install them with apt-get.")
    conf = configparser.ConfigParser(strict=False)
    conf.read(_RENDERD_CONF)
    return Programs(
        postgres=postgres,
        osm2pgsql=_PROGRAMS["osm2pgsql"],
        renderd=_PROGRAMS["renderd"],
        mapnik_inputs=Path(conf["mapnik"]["plugins_dir"]),
        apache=_PROGRAMS["apache2-bin"],
        mod_tile=_PROGRAMS["libapache2-mod-tile"],
        carto=_PROGRAMS["openstreetmap-carto"].parent,
    )


def install() -> None:
    """Install the packages that are missing, from the machine's own sources, and start no service.

    Packages that are there are not upgraded.

    Raises:
        UnavailableError: This is no Debian, this user may not install, or apt cannot get the packages.
    """
    missing = _missing()
    if not missing:
        return
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise UnavailableError(f"The tile server needs Debian's {', '.join(missing)}; this system has no apt-get.")
    if os.geteuid() != 0:
        raise UnavailableError(f"Only root may install what is missing: apt-get install {' '.join(missing)}")
    _log.info("installing %s", ", ".join(missing))
    _apt("update", limit_s=DOWNLOAD_LIMIT_S)
    missing = _missing()  # with PostGIS under the name that the sources have for it
    with _no_service_starts(), _no_main_cluster():
        _decline_downloads()
        _download_and_install(*missing)
    if missing := _missing():
        raise UnavailableError(f"apt-get installed the packages, and yet nothing is found of {', '.join(missing)}.")


def _missing() -> list[str]:
    names = [name for name, path in _PROGRAMS.items() if not path.exists()]
    return names if _postgres_with_postgis() else [*names, _postgis_package()]


def _postgres_versions(pattern: str) -> dict[int, Path]:
    """PostgreSQL's major versions that have such a file, and the file."""
    found = ((re.search(r"/postgresql/(\d+)/", str(path)), path) for path in Path("/usr").glob(pattern))
    return {int(match[1]): path for match, path in found if match}


def _postgres_with_postgis() -> Path | None:
    servers = _postgres_versions(_SERVER)
    both = servers.keys() & _postgres_versions("share/postgresql/*/extension/postgis.control").keys()
    return servers[max(both)].parent if both else None


def _postgis_package() -> str:
    """PostGIS for the server that is installed, else for the newest that the sources have."""
    if shutil.which("apt-cache") is None:
        return "postgresql-postgis"
    listed = subprocess.run(
        ["apt-cache", "pkgnames", "postgresql-"], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    offered = {int(version) for version in re.findall(r"^postgresql-(\d+)-postgis-3$", listed, re.MULTILINE)}
    wanted = offered & _postgres_versions(_SERVER).keys() or offered
    return f"postgresql-{max(wanted)}-postgis-3" if wanted else "postgresql-postgis"


def _download_and_install(*packages: str) -> None:
    """In two steps, so that the limit which a slow network meets does not strike while packages are unpacked."""
    _apt("install", "--download-only", *packages, limit_s=DOWNLOAD_LIMIT_S)
    _apt("install", *packages, limit_s=INSTALL_LIMIT_S)


def _apt(*arguments: str, limit_s: int) -> None:
    command = ["apt-get", "-y", "--no-install-recommends", "--no-upgrade", *_APT_OPTIONS, *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"`{' '.join(command)}` was not done after {limit_s} s.") from None
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-8:])
        raise UnavailableError(f"`{' '.join(command)}` failed:\n{tail}")


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Packages ask `policy-rc.d` before they start a service; where a machine has one, its word stands."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


@contextmanager
def _no_main_cluster() -> Iterator[None]:
    """Keep a first PostgreSQL from making a cluster of the system's own, which would start with the machine."""
    if _postgres_versions(_SERVER):
        yield
        return
    _download_and_install("postgresql-common")
    present = _CREATE_CLUSTER.read_text(encoding="utf-8")
    _CREATE_CLUSTER.write_text(f"{present}\ncreate_main_cluster = false\n", encoding="utf-8")
    try:
        yield
    finally:
        _CREATE_CLUSTER.write_text(present, encoding="utf-8")


def _decline_downloads() -> None:
    """OSM Carto's package offers to download coastlines of the whole world (some 900 MB)."""
    answer = "openstreetmap-carto-common openstreetmap-carto/fetch-data boolean false\n"
    subprocess.run(["debconf-set-selections"], input=answer, text=True, timeout=60, check=False)
