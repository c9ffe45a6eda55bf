"""A registered encoder's evaluation on a region from end to end: what is asked, of whom, and where the figures go."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from geobacter_core.encoder.data import RegionData
from geobacter_core.encoder.evaluate import TestWindows
from geobacter_core.encoder.registry import Registry
from geobacter_core.encoder.version import EncoderVersion
from geobacter_core.errors import SamplesError
from geobacter_core.evaluation.evaluate import VERSION, Evaluation, evaluate
from geobacter_core.evaluation.questions import centres, questions
from geobacter_core.evaluation.representations import Subject, random_weights, some_windows
from geobacter_core.evaluation.semantics import probe_cells
from geobacter_core.evaluation.settings import EvaluationSettings
from geobacter_core.evaluation.store import write_evaluation
from geobacter_core.files import digest_of, sha256_of_file
from geobacter_core.osm.extract import load_extract
from geobacter_core.osm.features import load_features
from geobacter_core.regions import Region
from geobacter_core.samples.triplets import load_triplets
from geobacter_core.settings import Settings
from geobacter_core.tiles.cache import open_cache

_CALIBRATION_CELLS = 1000


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation and its table.

    Attributes:
        evaluation: The figures.
        path: The Parquet file.
        digest: Hex SHA-256 of the file: the asset's data version.
    """

    evaluation: Evaluation
    path: Path
    digest: str


def evaluate_region(
    settings: Settings,
    region: Region,
    registry: Registry,
    version: EncoderVersion,
    evaluation_settings: EvaluationSettings,
    on_progress: Callable[[str], None] = lambda note: None,
) -> Evaluated:
    """Evaluate a registered encoder on a region and write the figures to `evaluations/<region>/evaluation.parquet`.

    Raises:
        EvaluationError: Nothing can be asked of the region.
        RegistryError: The encoder cannot be loaded.
        GeobacterError: The region's extract, features or tiles are missing, or of another style.
    """
    settings = dataclasses.replace(settings, style=version.style)
    encoder = registry.load(version)
    subject = Subject(version.name, encoder.encode, version.scales, version.size_px)
    extract, _ = load_extract(settings.extract_folder(region.name))
    cells = probe_cells(extract.ground, region.cell_resolution, _CALIBRATION_CELLS, evaluation_settings.seed)
    windows = some_windows(subject, open_cache(settings, region), centres(cells))
    subjects = [subject, random_weights(version.spec, subject, version.seed, windows)]
    asked = questions(settings, region, evaluation_settings)
    evaluation = evaluate(region.name, subjects, asked, evaluation_settings, on_progress)
    data = _triplets(settings, region)
    if data is not None:
        on_progress("test triplets")
        test = TestWindows([data], version.size_px, version.scales)
        evaluation.scores = {subject.name: test.score(subject.encode) for subject in subjects}
    path = settings.evaluation_file(region.name)
    recipe = _recipe(settings, region, version, evaluation_settings)
    return Evaluated(evaluation, path, write_evaluation(path, evaluation, recipe))


def _triplets(settings: Settings, region: Region) -> RegionData | None:
    """The region's triplets, where it has any; a region that is not trained on need not."""
    try:
        triplets = load_triplets(settings.triplets_file(region.name))
    except SamplesError:
        return None
    return RegionData(region.name, triplets, open_cache(settings, region))


def _recipe(
    settings: Settings, region: Region, version: EncoderVersion, evaluation_settings: EvaluationSettings
) -> str:
    features, _ = load_features(settings.features_folder(region.name))
    tiles = open_cache(settings, region).manifest.digest
    files = (region.labels, region.cells) if region.labels is not None else ()
    labels = "".join(sha256_of_file(Path(file)) for file in files if file is not None)
    return digest_of(
        "evaluation", VERSION, version.name, version.digest, features.digest, tiles, labels, evaluation_settings
    )
