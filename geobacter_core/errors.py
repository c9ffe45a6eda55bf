"""The error tree. A message has three parts: what was wrong, where, what to do."""


class GeobacterError(Exception):
    """Base of every error that Geobacter raises on purpose."""


class RegionsFileError(GeobacterError):
    """`regions.toml` is missing, is not TOML, or a field of a region is wrong."""


class UnknownRegionError(GeobacterError):
    """No region of that name is defined."""


class RegionGeometryError(GeobacterError):
    """The region's ground cannot be mapped: antimeridian, poles, or no extent at all."""


class PlaceError(GeobacterError):
    """A coordinate is not a number or lies outside its range."""


class OutsideError(PlaceError):
    """A place lies in no region that could answer."""


class PlacesFileError(GeobacterError):
    """A file of places cannot be read, or has no places in it."""


class ExtractError(GeobacterError):
    """An OSM extract cannot be had, or is not readable OSM data."""


class DownloadError(ExtractError):
    """A download failed; another try may succeed."""


class FeaturesError(GeobacterError):
    """The map features of a region are missing, damaged, or empty."""


class StyleError(GeobacterError):
    """A style's files are missing or do not say what they must."""


class TileCacheError(GeobacterError):
    """A chunk of the tile cache is missing, damaged, or made from something else."""


class TileServerError(GeobacterError):
    """A tile server does not give a tile, or gives something else."""


class TileServerDownError(TileServerError):
    """A tile server gives nothing at all."""


class SamplesError(GeobacterError):
    """Triplets cannot be drawn, or a table of triplets is missing or damaged."""


class EncoderError(GeobacterError):
    """An encoder cannot be trained, exported, loaded, or does not fit its input."""


class EvaluationError(GeobacterError):
    """Labels cannot be read, folds cannot be cut, or a label cannot be scored."""


class RegistryError(GeobacterError):
    """MLflow's tracking server or registry cannot be reached or lacks what was asked for."""


class GridError(GeobacterError):
    """A user's grid of cells is missing, is not GeoParquet, or has wrong ids or geometries."""


class EmbeddingsError(GeobacterError):
    """An embedding table is missing, damaged, or cannot be made."""


class QueryError(EmbeddingsError):
    """An embedding cannot be searched for."""


class ApiSettingsError(GeobacterError):
    """The HTTP API cannot be served with these settings."""
