"""Launch runs from the command line, on the persistent Dagster instance, and only those that are needed.

`python -m geobacter_pipeline demo` (or `region`, `build`, `train`, `embed`, `evaluate`, `sweep`) is what `make` calls.
Every step is a run of one of the jobs in `jobs.py`, recorded in `DAGSTER_HOME` and seen in the UI like any other.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import dagster as dg

from geobacter_core.errors import GeobacterError
from geobacter_core.regions import find_region
from geobacter_pipeline.definitions import defs
from geobacter_pipeline.partitions import REGIONS, training_regions
from geobacter_pipeline.staleness import Staleness
from geobacter_pipeline.summary import figures, summary

DEMO_REGIONS = ("helsinki", "kotka")
_DEMO_TRAINING = {"max_steps": 150, "max_seconds": 3600.0}
"""Steps and not seconds: on a slow or busy machine the demo takes longer, and comes to the same."""


class Launcher:
    """Runs what is missing or stale."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._begun = time.monotonic()
        self.n_runs = 0

    def build(self, region: str) -> None:
        """A region's extract, features, tiles and, where the encoder is trained on it, triplets."""
        samples = ["triplet_samples"] if region in training_regions else []
        self._run_needed("build_region", ["osm_extract", "map_features", "tile_cache", *samples], region)

    def train(self, settings: dict[str, float]) -> None:
        """An encoder, whether or not there is one; `settings` are those that are not to be the defaults."""
        config = {"ops": {"location_encoder": {"config": settings}}} if settings else {}
        self._run("train_encoder", ["location_encoder", "champion_encoder"], None, config)

    def train_if_needed(self, settings: dict[str, float]) -> None:
        """An encoder, if there is none or what it was trained on has changed."""
        if Staleness(self._instance, defs).needs("location_encoder", None):
            self.train(settings)

    def embed(self, region: str) -> None:
        """A region's embedding table and report."""
        staleness = Staleness(self._instance, defs)
        if staleness.needs("region_embeddings", region):
            # The champion is observed in the same run, so that the UI knows what the table was made with.
            self._run("reembed_region", ["champion_encoder", "region_embeddings", "embedding_report"], region, {})
        elif staleness.needs("embedding_report", region):
            self._run("reembed_region", ["embedding_report"], region, {})

    def refresh(self, region: str) -> None:
        """A region's table and report brought up to date with the map: no more is launched than a change asks for."""
        self._run("reembed_region", ["osm_extract"], region, {})
        self._run_needed("reembed_region", ["map_features", "tile_cache"], region)
        self.embed(region)

    def evaluate(self, region: str) -> None:
        """What the champion's embeddings of a region are worth, whether or not it has been asked before."""
        self._run("evaluate_encoder", ["champion_encoder", "encoder_evaluation"], region, {})

    def sweep(self, plan: str) -> None:
        """Short trainings on every training region, by a plan."""
        config = {"ops": {"encoder_sweep": {"config": {"plan": plan}}}}
        self._run("sweep_encoders", ["encoder_sweep"], None, config)

    def _run_needed(self, job: str, assets: Sequence[str], region: str) -> None:
        """Run from the first asset that is missing or stale; what follows it is then stale too."""
        staleness = Staleness(self._instance, defs)
        needed = [asset for asset in assets if staleness.needs(asset, region)]
        if needed:
            self._run(job, assets[assets.index(needed[0]) :], region, {})

    def _run(self, job: str, assets: Sequence[str], region: str | None, config: dict[str, Any]) -> None:
        self._say(f"{job}{f' {region}' if region else ''}: {', '.join(assets)}")
        result = defs.resolve_job_def(job).execute_in_process(
            instance=self._instance,
            partition_key=region,
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            run_config={**config, "loggers": {"concise": {"config": {}}}},
            raise_on_error=False,
        )
        self.n_runs += 1
        refused = [check for check in result.get_asset_check_evaluations() if not check.passed]
        for check in refused:
            sys.stderr.write(f"Check {check.check_name} did not pass: {check.description}\n")
        if not result.success and not refused:
            raise GeobacterError(f"Run {result.run_id} of {job} failed: {_failure(result)}")
        broken = [check for check in refused if check.severity == dg.AssetCheckSeverity.ERROR]
        if broken and job != "train_encoder":
            raise GeobacterError(f"Run {result.run_id} of {job}: {len(broken)} checks did not pass.")

    def _say(self, text: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - self._begun:4.0f} s] {text}\n")


def _failure(result: dg.ExecuteInProcessResult) -> str:
    """The message of the first failure, as the core wrote it."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return str(data.user_failure_data.description)
            if data.error is not None:
                error = data.error.cause or data.error
                return error.message.strip()
    return "see the run in the Dagster UI."


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m geobacter_pipeline", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", help="the whole graph for helsinki and kotka, without a network")
    for name, text in (
        ("region", "everything for one region: build, an encoder if there is none, embed"),
        ("build", "extract, map features, tiles and triplets of a region"),
        ("embed", "embedding table and report of a region"),
        ("refresh", "bring a region's extract, tiles, table and report up to date"),
        ("evaluate", "what the champion knows about a region, against baselines"),
    ):
        commands.add_parser(name, help=text).add_argument("region")
    commands.add_parser("train", help="train an encoder").add_argument("--seconds", type=float)
    commands.add_parser("sweep", help="find good settings by short trainings").add_argument("--plan", default="")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; returns the exit status."""
    options = _parse(arguments)
    try:
        regions = list(DEMO_REGIONS) if options.command == "demo" else [getattr(options, "region", "")]
        if options.command not in ("train", "sweep"):
            for region in regions:
                find_region(REGIONS, region)
        with dg.DagsterInstance.get() as instance:
            launcher = Launcher(instance)
            if options.command in ("demo", "region", "build"):
                for region in regions:
                    launcher.build(region)
            if options.command == "train":
                launcher.train({} if options.seconds is None else {"max_seconds": options.seconds})
            elif options.command in ("demo", "region"):
                launcher.train_if_needed(_DEMO_TRAINING if options.command == "demo" else {})
            if options.command in ("demo", "region", "embed"):
                for region in regions:
                    launcher.embed(region)
            if options.command == "refresh":
                launcher.refresh(options.region)
            if options.command == "evaluate":
                launcher.evaluate(options.region)
            if options.command == "sweep":
                launcher.sweep(options.plan)
            if not launcher.n_runs:
                sys.stdout.write("Everything is up to date; nothing was launched.\n")
        if options.command in ("demo", "region", "embed", "refresh"):
            sys.stdout.write(summary(regions))
        if options.command in ("evaluate", "sweep"):
            sys.stdout.write(figures(None if options.command == "sweep" else options.region))
    except GeobacterError as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    return 0
