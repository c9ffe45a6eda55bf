"""The MLflow run of a training: parameters and inputs at its start, metrics on the way, card and encoder at its end."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from mlflow.entities import Dataset, DatasetInput, InputTag, Param
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from geobacter_core.encoder.card import CardFacts, RegionFacts, model_card
from geobacter_core.encoder.data import RegionData, WindowSpec, check_regions
from geobacter_core.encoder.evaluate import Examples
from geobacter_core.encoder.journal import RunLog
from geobacter_core.encoder.network import untrained_like, weights_digest
from geobacter_core.encoder.outcomes import measure
from geobacter_core.encoder.registry import Registry
from geobacter_core.encoder.settings import TrainSettings
from geobacter_core.encoder.train import (
    VERSION,
    Epoch,
    Step,
    Trained,
    encode_with,
    forget,
    train,
)
from geobacter_core.encoder.unsent import finish, leave_failure, leave_result, send_killed
from geobacter_core.encoder.version import EncoderVersion, tags_of
from geobacter_core.settings import Settings

if TYPE_CHECKING:
    import PIL.Image

_N_EXAMPLES = 10
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Registration:
    """A training that has been tracked and registered."""

    trained: Trained
    version: EncoderVersion
    experiment_id: str
    picture: "PIL.Image.Image"


def train_tracked(
    registry: Registry,
    regions: Sequence[RegionData],
    settings: TrainSettings,
    tags: Mapping[str, str],
    draw: Callable[[Examples], "PIL.Image.Image"],
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Registration:
    """Train an encoder in an MLflow run and register it as the challenger.

    The run has every parameter, the inputs as datasets with their digests, loss and throughput per step, scores
    per evaluation and for random weights, the picture that `draw` makes of ten test triplets, a model card, and the
    model. MLflow must answer at the beginning. If it goes away later, the training goes on. One that was killed goes on
    from its last checkpoint, in a run of its own.

    Raises:
        RegistryError: MLflow does not answer at the beginning; or at the end, and then it says how to send the results.
        EncoderError: The training fails; the run is marked as failed.
    """
    windows, checkpoints = check_regions(regions).seen_by(settings), registry.settings.checkpoints_folder
    send_killed(registry)
    run_id = _start(registry, regions, settings, windows, tags)
    log = RunLog(registry, run_id)
    try:
        with log:
            trained = train(regions, settings, _stepped(log, on_step), _evaluated(log, on_epoch), checkpoints)
            log.write(_totals(trained), trained.n_steps)
            picture = draw(trained.test.examples(encode_with(trained.network, _CPU), _N_EXAMPLES))
            card = model_card(card_facts(run_id, regions, settings, windows, trained))
            leave_result(registry.settings, run_id, trained, tags_of(trained, windows, settings), card, picture)
    except BaseException:
        leave_failure(registry, run_id)
        raise
    version = finish(registry, run_id, log.sent_bytes)
    forget(checkpoints, regions, settings)
    return Registration(trained, version, registry.experiment_id, picture)


def card_facts(
    run_id: str, regions: Sequence[RegionData], settings: TrainSettings, windows: WindowSpec, trained: Trained
) -> CardFacts:
    """What the model card is written from; the scores per region are measured here."""
    untrained = untrained_like(trained.network, settings.seed)
    ours, theirs = (
        measure(trained.test, encode_with(network, _CPU), len(regions)) for network in (trained.network, untrained)
    )
    found = []
    for region, scores, random_ in zip(regions, ours, theirs, strict=True):
        drawn, manifest = region.triplets.metadata, region.cache.manifest
        found.append(
            RegionFacts(
                name=region.name,
                osm_timestamp=manifest.osm_timestamp,
                extract_sha256=manifest.extract_sha256,
                triplets_digest=region.triplets.digest,
                near=f"{drawn.get('near', 'disc')} of {float(drawn['distance_m'] or 0):g} m",
                n_train=int(drawn["n_train"] or 0),
                n_test=len(scores),
                scores=scores.figures,
                random=random_.figures,
            )
        )
    return CardFacts(
        run_id=run_id,
        digest=weights_digest(trained.network),
        style=f"{windows.style}/{windows.style_version}",
        channels=regions[0].cache.manifest.channels,
        scales=windows.scales,
        size_px=settings.size_px,
        network=settings.network,
        embedding_dim=settings.embedding_dim,
        learnt_dim=sum(trained.network.spec.part_dims),
        loss=settings.loss,
        settings={name: str(value) for name, value in settings.model_dump().items()},
        n_steps=trained.n_steps,
        train_seconds=trained.train_seconds,
        regions=found,
    )


def _start(
    registry: Registry,
    regions: Sequence[RegionData],
    settings: TrainSettings,
    windows: WindowSpec,
    tags: Mapping[str, str],
) -> str:
    """Create the run with its parameters and inputs; returns its id."""
    params = {**settings.model_dump(), "style": windows.style, **asdict(windows.scales)}
    with registry.trouble():
        run = registry.client.create_run(registry.experiment_id, tags=resolve_tags({**tags, "code_version": VERSION}))
        run_id = str(run.info.run_id)
        registry.client.log_batch(run_id, params=[Param(name, str(value)) for name, value in params.items()])
        registry.client.log_inputs(run_id, [_input(region, registry.settings) for region in regions])
    return run_id


def _input(region: RegionData, settings: Settings) -> DatasetInput:
    """A region's triplets as an input of the run, with the data versions behind them."""
    manifest = region.cache.manifest
    dataset = Dataset(
        name=f"{region.name} (tiles {manifest.digest[:12]}, extract {manifest.extract_sha256[:12]})",
        digest=region.triplets.digest[:32],
        source_type="local",
        source=json.dumps({"uri": settings.triplets_file(region.name).as_uri()}),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])


def _stepped(log: RunLog, on_step: Callable[[Step], None]) -> Callable[[Step], None]:
    def done(step: Step) -> None:
        metrics = {
            "loss": step.loss,
            "active_share": step.active_share,
            "learning_rate": step.learning_rate,
            "step_images_per_s": step.images_per_s,
        }
        log.write(metrics, step.step)
        on_step(step)

    return done


def _totals(trained: Trained) -> dict[str, float]:
    return {
        "images_per_s": trained.images_per_s,
        "train_seconds": trained.train_seconds,
        "resumed_from_step": trained.resumed_from,
    }


def _evaluated(log: RunLog, on_epoch: Callable[[Epoch], None]) -> Callable[[Epoch], None]:
    def done(epoch: Epoch) -> None:
        log.write(epoch.scores.as_metrics("test_" if epoch.step else "random_"), epoch.step)
        on_epoch(epoch)

    return done
