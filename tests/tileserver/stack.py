"""A real OSM tile server for the length of a `with`: PostgreSQL, osm2pgsql, renderd, Apache with mod_tile, OSM Carto.

    with TileServer(Path("liechtenstein.osm.pbf")) as server:
        urlopen(server.url.format(z=16, x=34480, y=22968))

Everything lives in one temporary folder, listens on loopback or on sockets in that folder, and runs without rights:
as the user `postgres` where root starts it (PostgreSQL refuses root), else as whoever starts it. The settings are those
of the image `overv/openstreetmap-tile-server`, but for what makes PostgreSQL keep data through a crash.
The style's external data (coastlines, ice, national borders at low zoom) is empty: the sea is not drawn.
"""

import logging
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import urlopen

import yaml

from tileserver.debian import find_programs

START_LIMIT_S = 60
STOP_LIMIT_S = 20
IMPORT_LIMIT_S = 1800

_DATABASE = "gis"
_ROLE = "geobacter"
_LOG_LINES = 15
_POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "work_mem": "128MB",
    "maintenance_work_mem": "256MB",
    "random_page_cost": "1.1",
    "jit": "off",
}
_EMPTY_SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>\n'
_RENDERD_CONF = """\
[renderd]
socketname={run}/renderd.sock
stats_file={run}/renderd.stats
num_threads={render_threads}
tile_dir={tiles}

[mapnik]
plugins_dir={mapnik_inputs}
font_dir=/usr/share/fonts
font_dir_recurse=true

[default]
URI=/tile/
XML={style}/style.xml
HOST=localhost
TILESIZE=256
MAXZOOM=20
"""
_APACHE_CONF = """\
ServerRoot {run}
ServerName localhost
Listen 127.0.0.1:{port}
PidFile {run}/apache.pid
DefaultRuntimeDir {run}
DocumentRoot {run}
ErrorLog {logs}/apache.log
LogLevel warn tile:info

LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule tile_module {modules}/mod_tile.so

# Before the tile sets are read, which take the folder as it is then.
ModTileTileDir {tiles}
LoadTileConfigFile {run}/renderd.conf
ModTileRenderdSocketName {run}/renderd.sock
ModTileRequestTimeout 0
ModTileMissingRequestTimeout {missing_timeout_s}
"""
_log = logging.getLogger(__name__)


class StackError(Exception):
    """The stack did not come up; the message quotes the end of the log that says why."""


class TileServer:
    """The stack over one extract, from `__enter__`, which imports it, to `__exit__`, which leaves nothing behind.

    The processes die with the thread that started them, whatever kills it; only the folder outlives a `kill -9`.

    Attributes:
        folder: Holds everything; exists while the server runs.
        port: Apache's, on 127.0.0.1.
        seconds: How long each phase of the start took, by its name.
    """

    def __init__(self, pbf: Path, render_threads: int = 2, missing_timeout_s: int = 30) -> None:
        """Describe the stack; `with` starts it.

        Args:
            pbf: The extract to import.
            render_threads: Threads of renderd.
            missing_timeout_s: How long mod_tile waits for a tile to be rendered before it answers 404; it is rendered
                all the same. At 0 every tile is answered so the first time.

        Raises:
            UnavailableError: Packages are missing.
        """
        self._pbf = pbf
        self._render_threads = render_threads
        self._missing_timeout_s = missing_timeout_s
        self._programs = find_programs()
        self._account = pwd.getpwnam("postgres").pw_name if os.geteuid() == 0 else None
        self._cleanup = ExitStack()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.folder = Path()
        self.port = 0
        self.seconds: dict[str, float] = {}

    @property
    def url(self) -> str:
        """The template of the tiles' addresses, with `{z}`, `{x}` and `{y}`."""
        return f"http://127.0.0.1:{self.port}/tile/{{z}}/{{x}}/{{y}}.png"

    def __enter__(self) -> Self:
        """Bring the stack up.

        Raises:
            StackError: A part of it failed, or was not ready in time. Whatever had started is stopped.
        """
        try:
            self._make_folders()
            for phase in (self._start_postgres, self._import, self._start_renderd, self._start_apache):
                begun = time.monotonic()
                phase()
                name = phase.__name__.removeprefix("_")
                self.seconds[name] = time.monotonic() - begun
                _log.info("tile server: %s took %.1f s", name, self.seconds[name])
        except BaseException:  # Ctrl-C too
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop every process, last started first, and remove the folder."""
        self._close()

    def _close(self) -> None:
        # Apache and PostgreSQL leave shared memory behind when they are stopped before they have fully started.
        segments = {segment for process in processes_in(self.folder) for segment in _shared_memory_of(process)}
        try:
            self._cleanup.close()
        finally:
            for segment in segments:
                segment.unlink(missing_ok=True)

    def cpu_seconds(self) -> float:
        """Processor time that the server has spent so far, in all its processes."""
        ticks = 0
        for process in processes_in(self.folder):
            try:
                after_name = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2]
            except OSError:  # it ended meanwhile, and its parent has its time
                continue
            # Fields 14 to 17 of proc(5): its own time, and that of its children that ended.
            ticks += sum(int(field) for field in after_name.split()[11:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    def forget_tiles(self) -> None:
        """Drop every rendered tile, so that the server is as cold as on its first day."""
        for path in self._path("tiles").iterdir():
            if path.is_dir():
                shutil.rmtree(path)

    def _path(self, *names: str) -> Path:
        return self.folder.joinpath(*names)

    def _hand_over(self, path: Path) -> None:
        if self._account:
            shutil.chown(path, self._account, self._account)

    def _log_file(self, name: str) -> Path:
        path = self._path("logs", f"{name}.log")
        path.touch()
        self._hand_over(path)
        return path

    def _make_folders(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="geobacter-tileserver-"))
        self._cleanup.callback(shutil.rmtree, self.folder, ignore_errors=True)
        for name in ("", "database", "run", "logs", "tiles", "style"):
            path = self._path(name)
            path.mkdir(exist_ok=True, mode=0o700)
            self._hand_over(path)
        # The extract may lie where only root can read.
        shutil.copyfile(self._pbf, self._path("extract.osm.pbf"))

    def _start_postgres(self) -> None:
        data = self._path("database")
        initdb = [f"--pgdata={data}", f"--username={_ROLE}", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]
        self._run("initdb", [str(self._programs.postgres / "initdb"), "--no-sync", *initdb])
        settings = [f"--{name}={value}" for name, value in _POSTGRES_SETTINGS.items()]
        server = [str(self._programs.postgres / "postgres"), "-D", str(data), "-k", str(self._path("run"))]
        # Asked with SIGINT, PostgreSQL does not wait for renderd's connections to end.
        self._start("postgres", [*server, *settings], signal.SIGINT, self._has_database)

    def _has_database(self) -> bool:
        """Whether PostgreSQL takes queries; it listens a little earlier."""
        command = [self._programs.postgres / "pg_isready", "--quiet", f"--host={self._path('run')}"]
        return subprocess.run(command, timeout=START_LIMIT_S, check=False).returncode == 0

    def _import(self) -> None:
        carto = self._programs.carto
        external = yaml.safe_load((carto / "external-data.yml").read_text(encoding="utf-8"))["sources"]
        self._psql("postgres", f"CREATE DATABASE {_DATABASE}")
        self._psql(_DATABASE, "CREATE EXTENSION postgis", "CREATE EXTENSION hstore")
        self._psql(
            _DATABASE,
            *(f"CREATE TABLE {table} (way geometry(Geometry, 3857), ice_edge text)" for table in external),
        )
        style = ["--style", str(carto / "openstreetmap-carto.style")]
        transform = ["--tag-transform-script", str(carto / "openstreetmap-carto.lua")]
        osm2pgsql = [str(self._programs.osm2pgsql), "--create", "--database", _DATABASE, "--multi-geometry", "--hstore"]
        self._run("osm2pgsql", [*osm2pgsql, *style, *transform, str(self._path("extract.osm.pbf"))])
        self._psql(_DATABASE, (carto / "indexes.sql").read_text(encoding="utf-8"))
        # By the age of this file mod_tile tells tiles that were rendered from older data.
        self._path("tiles", "planet-import-complete").touch()

    def _start_renderd(self) -> None:
        self._lay_out_style()
        conf = self._path("run", "renderd.conf")
        folders = {name: self._path(name) for name in ("run", "tiles", "style")}
        text = _RENDERD_CONF.format(
            **folders, render_threads=self._render_threads, mapnik_inputs=self._programs.mapnik_inputs
        )
        conf.write_text(text, encoding="utf-8")
        command = [str(self._programs.renderd), "--foreground", f"--config={conf}"]
        self._start("renderd", command, signal.SIGTERM, lambda: _accepts(self._path("run", "renderd.sock")))

    def _lay_out_style(self) -> None:
        """The style beside its symbols, and an empty picture for each that Debian's package leaves out."""
        style = self._path("style")
        xml = (self._programs.carto / "style.xml").read_text(encoding="utf-8")
        (style / "style.xml").write_text(xml, encoding="utf-8")
        (style / "symbols").symlink_to(self._programs.carto / "symbols")
        for name in set(re.findall(r'file="([^"\[]+\.svg)"', xml)):
            if not (style / name).exists():
                (style / name).parent.mkdir(exist_ok=True)
                (style / name).write_text(_EMPTY_SVG, encoding="utf-8")

    def _start_apache(self) -> None:
        self.port = _free_port()
        folders = {name: self._path(name) for name in ("run", "logs", "tiles")}
        conf = self._path("run", "apache.conf")
        text = _APACHE_CONF.format(
            **folders,
            modules=self._programs.mod_tile.parent,
            port=self.port,
            missing_timeout_s=self._missing_timeout_s,
        )
        conf.write_text(text, encoding="utf-8")
        command = [str(self._programs.apache), "-D", "FOREGROUND", "-f", str(conf)]
        self._start("apache", command, signal.SIGTERM, lambda: _accepts(self.port))
        self._await("renderd", self._serves)

    def _serves(self) -> bool:
        """Whether the tile of the whole world comes: renderd could load the style, and reaches the database."""
        try:
            with urlopen(self.url.format(z=0, x=0, y=0), timeout=START_LIMIT_S) as response:
                return response.headers["Content-Type"] == "image/png"
        except (OSError, HTTPException):
            return False

    def _psql(self, database: str, *statements: str) -> None:
        psql = [str(self._programs.postgres / "psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
        commands = [f"--command={statement}" for statement in statements]
        self._run("psql", [*psql, f"--dbname={database}", *commands])

    def _confined(self, command: list[str], death: signal.Signals) -> list[str]:
        """The command without rights, and with a signal that it gets when the thread that started it ends."""
        identity = [f"--reuid={self._account}", f"--regid={self._account}", "--init-groups"] if self._account else []
        return ["setpriv", *identity, f"--pdeathsig={death.name}", "--", *command]

    @property
    def _environment(self) -> dict[str, str]:
        """What every process sees: the way to the database, and a home that exists."""
        run = str(self._path("run"))
        return {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": run, "TMPDIR": run, "PGHOST": run, "PGUSER": _ROLE}

    def _run(self, name: str, command: list[str]) -> None:
        process = self._spawn(name, command, signal.SIGINT)
        try:
            code = process.wait(IMPORT_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise StackError(f"{name} was not done after {IMPORT_LIMIT_S} s.{_tail(self._log_file(name))}") from None
        if code != 0:
            raise StackError(f"{name} ended with {code}.{_tail(self._log_file(name))}")

    def _start(self, name: str, command: list[str], stop: signal.Signals, is_ready: Callable[[], bool]) -> None:
        self._processes[name] = self._spawn(name, command, stop)
        self._await(name, is_ready)

    def _spawn(self, name: str, command: list[str], stop: signal.Signals) -> "subprocess.Popen[bytes]":
        """Start a process that gets the signal `stop` when the stack ends."""
        with self._log_file(name).open("ab") as output:
            # A session of its own: a Ctrl-C in the terminal reaches this process only, which then stops them in order.
            process = subprocess.Popen(
                self._confined(command, stop),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._environment,
                start_new_session=True,
            )
        self._cleanup.callback(_stop, process, stop)
        return process

    def _await(self, name: str, is_ready: Callable[[], bool]) -> None:
        log = self._log_file(name)
        deadline = time.monotonic() + START_LIMIT_S
        while not is_ready():
            if (code := self._processes[name].poll()) is not None:
                raise StackError(f"{name} ended with {code} instead of starting.{_tail(log)}")
            if time.monotonic() > deadline:
                raise StackError(f"{name} was not ready after {START_LIMIT_S} s.{_tail(log)}")
            time.sleep(0.05)


def processes_in(folder: Path) -> list[Path]:
    """The `/proc` folders of the processes that work in a folder, also in one that is gone: every part does."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append(process)
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


def _shared_memory_of(process: Path) -> list[Path]:
    """The files of shared memory that a process, given by its folder in `/proc`, has open."""
    try:
        maps = (process / "maps").read_text(encoding="utf-8")
    except OSError:  # it ended meanwhile
        return []
    return [Path(name) for name in re.findall(r"/dev/shm/\S+$", maps, re.MULTILINE)]


def _stop(process: "subprocess.Popen[bytes]", stop: signal.Signals) -> None:
    """Ask it and its children to end, and make them end where they do not."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, stop)
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        _log.warning("tile server: %s did not end within %d s", process.args, STOP_LIMIT_S)
    finally:  # after a second Ctrl-C too
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _accepts(address: Path | int) -> bool:
    """Whether somebody listens on a Unix socket or a port of loopback."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(1)
        return probe.connect_ex(str(address) if isinstance(address, Path) else ("127.0.0.1", address)) == 0


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "".join(f"\n  {line}" for line in [f" The end of {log.name}:", *lines[-_LOG_LINES:]]) if lines else ""
