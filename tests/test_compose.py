"""The tile server's `docker-compose.yml`. Where no Docker engine runs, the file is held against the schema of Compose
and against what the image documents, and its two scripts are run by bash with stand-ins for what is in the image.
"""

import copy
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
FILE = REPOSITORY / "docker-compose.yml"
SCHEMA = Path(__file__).parent / "data" / "compose-spec.json"  # where it is from: data/README.md
SCHEMA_SHA256 = "1f91e091f16b2dd50ab8860e02bb391d22df553d91c145eacedb1b6eff9c3f0e"
VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+):-(?P<default>[^}]*)\})?")
EVERYTHING_SET = {
    "EXTRACT": "data/extracts/liechtenstein/0123456789abcdef.osm.pbf",
    "THREADS": "16",
    "TILESERVER_PORT": "8099",
    "SHM_SIZE": "1gb",
    "OSM2PGSQL_EXTRA_ARGS": "--drop -C 4096",
}
API_SET = {
    "GEOBACTER_DATA": "/srv/geobacter",
    "GEOBACTER_STYLE": "carto",
    "GEOBACTER_TOKEN": "a-token-that-is-long-enough",
    "GEOBACTER_PORT": "8700",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
}


def interpolated(value, variables):
    """What Compose makes of a value that YAML has read: `$$` and `${NAME:-default}`, the forms that the file has."""
    if isinstance(value, dict):
        return {key: interpolated(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def replacement(found):
        assert found["dollar"] or found["name"], f"a form that this test does not know: {value}"
        return "$" if found["dollar"] else variables.get(found["name"]) or found["default"]

    return VARIABLE.sub(replacement, value)


def compose(**variables):
    """The file as Compose holds it against its schema: read, then interpolated. Values stay the strings they become."""
    return interpolated(yaml.safe_load(FILE.read_text(encoding="utf-8")), variables)


def errors(document):
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(document)]


def named_volumes(service):
    """Target → volume, of a service's volumes that are written `volume:/target/`."""
    return {target: name for name, target in (v.split(":") for v in service["volumes"] if isinstance(v, str))}


def test_the_schema_is_the_published_one():
    assert hashlib.sha256(SCHEMA.read_bytes()).hexdigest() == SCHEMA_SHA256


@pytest.mark.parametrize("variables", [{}, EVERYTHING_SET | API_SET], ids=["nothing set", "everything set"])
def test_the_file_is_valid_compose(variables):
    assert errors(compose(**variables)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("services", "tileserver", "helthcheck"), {}),
        (("services", "tileserver", "healthcheck", "interval"), 30),
        (("services", "tileserver", "ports"), "8080:80"),
        (("services", "tileserver", "ports", 0), {"published": 8080, "container": 80}),
        (("services", "tileserver", "restart"), False),  # what YAML makes of a bare no
        (("services", "import", "volumes", 0, "type"), "file"),
        (("services", "import", "volumes", 0, "bind", "readonly"), True),
        (("services", "import", "environment", "UPDATES"), ["disabled"]),
        (("services", "tile server"), {"image": "nginx:1"}),
        (("volumes", "tiles"), "/srv/tiles"),
        (("servces",), {}),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_wrong_file_is_not(path, value):
    document = copy.deepcopy(compose())
    *parents, key = path
    place = document
    for parent in parents:
        place = place[parent]
    place[key] = value
    assert errors(document) != []


def test_compose_itself_reads_the_file_with_and_without_an_extract():
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed (its config command needs no engine)")
    inherited = {name: value for name, value in os.environ.items() if name not in EVERYTHING_SET}
    command = [docker, "compose", "--file", FILE, "--env-file", os.devnull, "--profile", "import", "config"]
    for variables in ({}, EVERYTHING_SET):
        environment = {**inherited, **variables}
        text = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
        services = yaml.safe_load(text)["services"]
        extract = str(REPOSITORY / variables["EXTRACT"]) if variables else "/dev/null"
        assert services["import"]["volumes"][0]["source"] == extract
        assert [port["host_ip"] for port in services["tileserver"]["ports"]] == ["127.0.0.1"]


def tile_services(document):
    return [document["services"][name] for name in ("import", "tileserver")]


def test_both_services_run_one_released_version_of_the_image():
    (image,) = {service["image"] for service in tile_services(compose())}
    assert re.fullmatch(r"overv/openstreetmap-tile-server:\d+\.\d+\.\d+", image)


def test_tiles_are_published_on_loopback_and_nothing_else_is():
    assert compose()["services"]["tileserver"]["ports"] == ["127.0.0.1:8080:80"]
    assert compose(TILESERVER_PORT="8099")["services"]["tileserver"]["ports"] == ["127.0.0.1:8099:80"]
    assert "ports" not in compose()["services"]["import"]
    assert not any("network_mode" in service for service in compose()["services"].values())


def test_database_and_tiles_are_declared_volumes_that_both_services_have():
    document = compose()
    volumes = [named_volumes(service) for service in tile_services(document)]
    assert volumes == [{"/data/database/": "database", "/data/tiles/": "tiles"}] * 2
    assert set(document["volumes"]) == {"database", "tiles"}
    assert document["name"] == "geobacter"


def test_the_extract_is_mounted_read_only_and_never_made():
    (mount,) = [v for v in compose(**EVERYTHING_SET)["services"]["import"]["volumes"] if isinstance(v, dict)]
    assert mount == {
        "type": "bind",
        "source": EVERYTHING_SET["EXTRACT"],
        "target": "/data/region.osm.pbf",
        "read_only": True,
        "bind": {"create_host_path": False},
    }


def test_no_variable_is_needed_to_start_and_stop_the_server():
    # Compose demands a ${NAME:?} of every command, whichever service it is in, and warns of a ${NAME}.
    text = "\n".join(line.split("#")[0] for line in FILE.read_text(encoding="utf-8").splitlines())
    assert set(re.findall(r"\$\{(\w+)(?!\w|:-)", text)) == set()
    assert set(re.findall(r"\$\{(\w+):-", text)) == set(EVERYTHING_SET) | API_SET.keys()


def test_only_the_server_starts_by_itself():
    services = compose()["services"]
    assert {name: service.get("profiles") for name, service in services.items()} == {
        "import": ["import"],
        "tileserver": None,
        "api": ["api"],
    }
    assert services["import"]["restart"] == "no"


def test_threads_are_set_for_both_services_and_updates_are_off():
    for variables, threads in (({}, "4"), ({"THREADS": "16"}, "16")):
        for service in tile_services(compose(**variables)):
            assert service["environment"]["THREADS"] == threads
            assert service["environment"]["UPDATES"] == "disabled"


def test_the_health_check_asks_for_a_tile_and_outwaits_its_rendering():
    check = compose()["services"]["tileserver"]["healthcheck"]
    assert check["test"].endswith(" http://localhost/tile/0/0/0.png")
    rendering_s, asking_s = 30, int(re.search(r"--timeout=(\d+)", check["test"])[1])
    assert rendering_s < asking_s < int(check["timeout"].removesuffix("s"))
    assert subprocess.run(["sh", "-n", "-c", check["test"]], check=False).returncode == 0


def test_the_api_is_served_on_loopback_over_a_data_folder_that_lies_where_it_lies():
    api = compose(**API_SET)["services"]["api"]
    assert api["ports"] == ["127.0.0.1:8700:8600"]
    (mount,) = api["volumes"]
    assert mount["source"] == mount["target"] == api["environment"]["GEOBACTER_DATA"] == "/srv/geobacter"
    assert api["environment"]["GEOBACTER_TOKEN"] == API_SET["GEOBACTER_TOKEN"]
    assert api["command"][:2] == ["geobacter", "serve"]
    assert (REPOSITORY / "constraints.txt").exists()
    assert "'/src[serve]'" in api["build"]["dockerfile_inline"]
    test = api["healthcheck"]["test"].removeprefix("python -c ").strip('"')
    compile(test, "healthcheck", "exec")


def _unignore():
    """As Docker starts a process.

    Dagster has its process do at SIGTERM what it does at SIGINT: nothing, if a shell runs the tests in the background.
    Bash cannot trap what was ignored when it began.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Container:
    """A folder in place of the image's root: a `run.sh` and a `service` that say what they were called with."""

    RUN = """#!/bin/bash
        set -euo pipefail  # as the image's, whose SIGTERM handling this has, too
        if [ "$1" = import ]; then
            echo "run.sh import" >> {root}/log
            exit {code}
        fi
        trap 'kill -TERM "$child"' SIGTERM
        sleep {seconds} &
        child=$!
        echo "run.sh $*" >> {root}/log
        wait "$child"
        service postgresql stop
        exit {code}
    """

    def __init__(self, root, service, run_code=0, run_s=0, **variables):
        self.root = root
        self.service = compose(**variables)["services"][service]
        (root / "data" / "database").mkdir(parents=True, exist_ok=True)
        self.extract = root / "data" / "region.osm.pbf"
        for name, program in {
            "run.sh": self.RUN.replace("{code}", str(run_code)).replace("{seconds}", str(run_s)),
            "service": '#!/bin/bash\necho "service $*" >> {root}/log\n',
        }.items():
            (root / name).write_text(program.replace("{root}", str(root)))
            (root / name).chmod(0o755)

    def start(self):
        def here(text):
            return text.replace("/data/", f"{self.root}/data/").replace("/run.sh", f"{self.root}/run.sh")

        command = [*self.service["entrypoint"], *map(here, self.service["command"])]
        environment = {"PATH": f"{self.root}:{os.environ['PATH']}", **self.service["environment"]}
        return subprocess.Popen(
            command,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_unignore,  # noqa: PLW1509 - it needs no lock that another thread could hold
        )

    def run(self):
        process = self.start()
        _, stderr = process.communicate(timeout=60)
        return process.returncode, stderr

    @property
    def log(self):
        log = self.root / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def root(tmp_path):
    assert " " not in str(tmp_path)
    return tmp_path


@pytest.mark.parametrize("extract", ["none", "device", "empty", "folder"])
def test_the_import_asks_for_an_extract(root, extract):
    container = Container(root, "import")
    if extract == "device":  # what is mounted when EXTRACT is not set
        container.extract.symlink_to("/dev/null")
    elif extract == "empty":
        container.extract.touch()
    elif extract == "folder":
        (container.extract / "of a mistyped path").mkdir(parents=True)
    code, message = container.run()
    assert code == 2
    assert 'EXTRACT="$(.venv/bin/geobacter regions extract NAME)" docker compose run --rm import' in message
    assert container.log == []


def test_an_extract_is_imported_once(root):
    container = Container(root, "import", EXTRACT="extracts/porto/1.osm.pbf")
    container.extract.write_bytes(b"osm")
    assert container.run() == (0, "")
    code, message = Container(root, "import", EXTRACT="extracts/porto/2.osm.pbf").run()
    assert code == 2
    assert "extracts/porto/1.osm.pbf" in message
    assert "docker compose down --volumes" in message
    assert container.log == ["run.sh import"]


def test_a_failed_import_fails_and_is_not_imported_over(root):
    container = Container(root, "import", run_code=7, EXTRACT="extracts/porto/1.osm.pbf")
    container.extract.write_bytes(b"osm")
    assert container.run()[0] == 7
    assert container.run()[0] == 2
    assert container.log == ["run.sh import"]


def test_the_server_wants_an_import_first(root):
    container = Container(root, "tileserver")
    (root / "data" / "database" / "geobacter-extract").write_text("extracts/porto/1.osm.pbf")  # broken off
    code, message = container.run()
    assert code == 2
    assert "docker compose run --rm import" in message
    assert container.log == []


def test_a_stopped_server_stops_postgres(root):
    container = Container(root, "tileserver", run_s=60)
    (root / "data" / "database" / "planet-import-complete").touch()
    process = container.start()
    for _ in range(100):
        if container.log:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert container.log == ["run.sh run", "service postgresql stop"]


def test_a_server_that_ends_by_itself_hands_on_its_exit_code(root):
    container = Container(root, "tileserver", run_code=7)
    (root / "data" / "database" / "planet-import-complete").touch()
    assert container.run()[0] == 7  # and `restart` starts it again
    assert container.log[-1] == "service postgresql stop"
