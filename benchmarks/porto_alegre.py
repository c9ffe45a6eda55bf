"""What an encoder is worth for a question that OpenStreetMap does not answer: people and jobs in Porto Alegre.

    .venv/bin/python benchmarks/porto_alegre.py ROADS.osm.pbf LABELS.csv [--seconds 900] [--only population jobs]

The map has roads only; the labels are known per H3 cell. In one run, on the same blocked folds: the default encoder
and the original recipe, each trained on that map for so many seconds, random weights, and what can be had without
a network. Nothing is trained on the labels but the probes. Any extract and file of labels will do.

Blocks are dealt to folds five times. A table has the mean R² of each label by ridge regression, which sees what lies
open in a representation, and by a forest; and by how much the default encoder is ahead on the mean of the labels, mean
and deviation over the deals.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from geobacter_core.encoder.data import RegionData, check_regions
from geobacter_core.encoder.train import Trained, train
from geobacter_core.evaluation.evaluate import folds_for, probed
from geobacter_core.evaluation.questions import Questions, questions
from geobacter_core.evaluation.representations import (
    Subject,
    embeddings_of,
    random_weights,
    representations,
    subject_of,
)
from geobacter_core.evaluation.ridge import Matrix
from geobacter_core.evaluation.settings import EvaluationSettings
from geobacter_core.evaluation.sweep import Choice, read_plan
from geobacter_core.osm.extract import fetch_extract, load_extract
from geobacter_core.osm.features import build_features
from geobacter_core.regions import Region
from geobacter_core.samples.triplets import build_triplets
from geobacter_core.settings import Settings
from geobacter_core.tiles.cache import open_cache
from geobacter_core.tiles.region import build_region
from geobacter_core.tiles.style import all_keys

N_DEALS = 5


def build(settings: Settings, region: Region, styles: set[str]) -> None:
    """Extract, map features and tiles."""
    fetch_extract(region, settings.extract_folder(region.name))
    extract, pbf = load_extract(settings.extract_folder(region.name))
    build_features(extract, pbf, all_keys(), settings.features_folder(region.name))
    for style in styles:
        build_region(settings, region, style)


def trained(settings: Settings, region: Region, name: str, choice: Choice) -> tuple[Subject, Trained]:
    """An encoder trained as a choice says."""
    settings = dataclasses.replace(settings, style=choice.style)
    extract, _ = load_extract(settings.extract_folder(region.name))
    cache = open_cache(settings, region)
    path = settings.data / f"{name.replace(' ', '-')}.parquet"
    data = [RegionData(region.name, build_triplets(path, cache, extract.box, extract.ground, choice.samples), cache)]
    begun = time.perf_counter()
    done = train(data, choice.train)
    print(
        f"{name}: {done.n_steps} steps, {done.images_per_s:,.0f} images/s, {done.train_seconds:.0f} s of training "
        f"({time.perf_counter() - begun:.0f} s with its tests), triplet accuracy {done.scores.triplet_accuracy:.3f}",
        file=sys.stderr,
        flush=True,
    )
    windows = check_regions(data).seen_by(choice.train)
    return subject_of(name, done.network, windows, choice.train.size_px), done


def asked(settings: Settings, region: Region, style: str) -> Questions:
    """The labels, with tiles in a style: they come first, and nothing is hidden for them."""
    return next(questions(dataclasses.replace(settings, style=style), region, EvaluationSettings()))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extract", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="words in the names of the labels to ask about")
    parser.add_argument("--skip-original", action="store_true")
    options = parser.parse_args()
    region = Region(
        name="labelled", extract=str(options.extract.resolve()), labels=str(options.labels.resolve()), train=True
    )
    budget = {"max_seconds": options.seconds, "seed": options.seed}
    recipe = read_plan("").others["original"]
    default, original = Choice().changed(budget), Choice().changed({**recipe, **budget, "max_steps": None})
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(Path(folder), Path(folder) / "regions.toml", "", default.style)
        build(settings, region, {default.style, original.style})
        ours, done = trained(settings, region, "default encoder", default)
        windows = torch.cat([done.test.anchor, done.test.positive])[:1024]
        subjects = [ours, random_weights(done.network.spec, ours, options.seed, windows)]
        part = asked(settings, region, default.style)
        wanted = [label for label in part.labels if any(word in label.name for word in options.only or [""])]
        part = dataclasses.replace(part, labels=wanted)
        found = dict(representations(subjects, part, options.seed))
        extent_m = ours.extent_m
        if not options.skip_original:
            theirs, _ = trained(settings, region, "original's recipe", original)
            found[theirs.name] = embeddings_of(theirs, asked(settings, region, original.style))
    print(compared(part, found, ours.name, extent_m))


def compared(part: Questions, found: Mapping[str, Matrix], name: str, extent_m: float) -> str:
    """A table of R² by label, representation and probe, and how far the representation of a name is ahead; Markdown."""
    scores: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for seed in range(1, N_DEALS + 1):
        folds = folds_for(part.places, extent_m, seed)
        with threadpool_limits(1, "blas"):
            for result in probed(found, part, folds, EvaluationSettings(seed=seed)):
                scores[result.representation, result.label, result.model].append(result.score)
    labels = list(dict.fromkeys(label for _, label, _ in scores))
    columns = [(label, model) for label in labels for model in ("ridge", "forest")]
    names = [*(f"{label}, {model}" for label, model in columns), *(f"ahead, {model}" for model in ("ridge", "forest"))]
    lines = [
        f"{len(part.places)} places; {N_DEALS} deals of blocks {folds.block_m:.0f} m wide to {len(folds)} folds, "
        f"training places at least {folds.buffer_m:.0f} m from those tested; `ahead` is the mean over labels.",
        "",
        f"| | {' | '.join(names)} |",
        "|---|" + "--:|" * len(names),
    ]
    for other in found:
        row = [f"{np.mean(scores[other, *column]):.3f}" for column in columns]
        for model in ("ridge", "forest"):
            ahead = np.mean(
                [np.subtract(scores[name, label, model], scores[other, label, model]) for label in labels], axis=0
            )
            row.append("" if other == name else f"{ahead.mean():+.3f} ± {ahead.std(ddof=1):.3f}")
        lines.append(f"| {other} | {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
