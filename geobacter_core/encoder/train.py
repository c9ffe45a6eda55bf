"""Training: a metric-learning loss over windows cut on the fly, within a budget of seconds, steps or epochs.

A training that is killed goes on from its last checkpoint, to the same weights as if nothing had happened: a batch
follows from the seed and its number alone, and how many steps there are is settled before the first.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from statistics import median

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from geobacter_core.encoder.checkpoint import Checkpoint, Tensors, checkpoint_of, held
from geobacter_core.encoder.data import Batch, RegionData, TripletWindows, WindowSpec, check_regions
from geobacter_core.encoder.device import batch_size, best_device
from geobacter_core.encoder.evaluate import Embeddings, Scores, TestWindows
from geobacter_core.encoder.learner import diagnosis, network_spec, new_learner, take_step
from geobacter_core.encoder.losses import n_roles
from geobacter_core.encoder.network import EncoderNetwork, embed, random_network
from geobacter_core.encoder.parallel import ALONE, Team, n_processes, together
from geobacter_core.encoder.settings import TrainSettings
from geobacter_core.errors import EncoderError
from geobacter_core.files import digest_of

VERSION = "9"
"""Raise when the same samples and settings would give another encoder."""

_TIMED_STEPS = 12
_UNTIMED_STEPS = 3
_EVALUATIONS = 10
_TEST_TRIPLETS = 1000
"""Half as many as the gate takes: eleven evaluations of more would take a large part of a short training's time."""
_STRETCHES = 20
_WITHOUT_EFFECT = {"window_memory_mb", "checkpoint_seconds"}
"""Settings that do not change what comes out."""
_LEARNER, _OPTIMISER, _RANDOM, _RANDOM_CUDA = "learner.", "optimiser.", "random", "random.cuda"
"""Names, or their beginnings, of a checkpoint's tensors."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of training reports; `progress` is the share of the plan done, 0 to 1."""

    step: int
    epoch: int
    loss: float
    active_share: float
    learning_rate: float
    images_per_s: float
    progress: float


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an evaluation reports: scores on the test windows. At step 0 they are those of random weights."""

    epoch: int
    step: int
    scores: Scores
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained network, on the CPU in evaluation mode, and how it got there.

    Attributes:
        network: The encoder.
        random: Scores of the random-weights encoder that it was.
        scores: Its scores.
        n_steps: Steps it has had.
        n_planned: Steps it was to have; more than `n_steps` if the loss no longer fell.
        n_epochs: Epochs, the last one perhaps not in full.
        resumed_from: The step of the checkpoint that this call went on from; 0 without one.
        images_per_s: Windows a second while it trained.
        train_seconds: How long that was, earlier calls included, evaluations not.
        test: The windows that the scores are measured on.
    """

    network: EncoderNetwork
    random: Scores
    scores: Scores
    n_steps: int
    n_planned: int
    n_epochs: int
    resumed_from: int
    images_per_s: float
    train_seconds: float
    test: TestWindows


class Progress(BaseModel):
    """How far a training has come: what its checkpoint says beside the tensors.

    Attributes:
        step: Steps done.
        n_planned: Steps to do; the learning rate follows from both. 0 before that is settled.
        is_over: Whether there is nothing left to do.
        train_seconds: Time spent on steps.
        n_images: Windows seen in them.
        losses: Mean loss of each twentieth of the plan that is complete.
        loss_sum: Sum of the losses since.
        evaluations: All that there were; the first one is that of random weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = 0
    n_planned: int = 0
    is_over: bool = False
    train_seconds: float = 0.0
    n_images: int = 0
    losses: tuple[float, ...] = ()
    loss_sum: float = 0.0
    evaluations: tuple[Epoch, ...] = ()

    def after(self, loss: float, seconds: float, n_images: int, patience: int) -> "Progress":
        """One step further."""
        step, losses, loss_sum = self.step + 1, self.losses, self.loss_sum + loss
        stretch = max(1, self.n_planned // _STRETCHES)
        if step % stretch == 0:
            losses, loss_sum = (*losses, loss_sum / stretch), 0.0
        return self.model_copy(
            update={
                "step": step,
                "is_over": step >= self.n_planned or is_flat(losses, patience),
                "train_seconds": self.train_seconds + seconds,
                "n_images": self.n_images + n_images,
                "losses": losses,
                "loss_sum": loss_sum,
            }
        )

    @property
    def is_evaluated(self) -> bool:
        """Whether an evaluation is due after this step."""
        return self.is_over or self.step % max(1, self.n_planned // _EVALUATIONS) == 0


def is_flat(losses: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` losses are no better than the best before them; never with a patience of 0."""
    return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])


def train(
    regions: Sequence[RegionData],
    settings: TrainSettings,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    checkpoints: Path | None = None,
) -> Trained:
    """Train an encoder on the triplets of regions, in as many processes as the settings say.

    Args:
        regions: What to train on.
        settings: How.
        on_step: Called, in this process, with each step that is done.
        on_epoch: Called with each evaluation, also with those from before the checkpoint that is gone on from.
        checkpoints: A folder. What was begun there by the same settings on the same data is finished; the checkpoint
            stays when it is, until `forget`. Without a folder nothing is kept.

    Raises:
        EncoderError: The regions do not fit together or hold too few triplets, the loss is not a number, a process
            died, or a checkpoint cannot be written.
        TileCacheError: A chunk is missing or damaged.
    """
    spec = check_regions(regions).seen_by(settings)
    size = n_processes(settings.n_processes)
    network_spec(spec, settings)  # before windows are cut for nothing
    _check_batch(regions, settings, size)
    with held(checkpoints, training_key(regions, settings)) as checkpoint:
        begun = checkpoint.load(Progress)
        resumed_from = 0 if begun is None else begun[1].step
        test = TestWindows(regions, settings.size_px, spec.scales, _TEST_TRIPLETS)
        if size == 1 or (begun is not None and begun[1].is_over):
            _Training(regions, settings, checkpoint, best_device(), ALONE).run(test, on_step, on_epoch)
        else:
            work = partial(_take_part, tuple(regions), settings, checkpoint)
            with contextlib.closing(together(size, work)) as events:
                for event in events:
                    if isinstance(event, Step):
                        on_step(event)
                    else:
                        on_epoch(event)
        return _result(spec, settings, checkpoint, resumed_from, test)


def _check_batch(regions: Sequence[RegionData], settings: TrainSettings, size: int) -> None:
    batch_size = min(settings.batch_size, sum(len(region.triplets.lonlat("train")) for region in regions))
    if batch_size < 2 * size:
        raise EncoderError(
            f"A batch of {batch_size} train triplets is less than two for each process ({size}). Draw more triplets "
            "with triplet_samples' sample_count, or raise batch_size."
        )


def forget(checkpoints: Path, regions: Sequence[RegionData], settings: TrainSettings) -> None:
    """Remove the checkpoint of a training whose encoder is safe elsewhere."""
    checkpoint_of(checkpoints, training_key(regions, settings)).remove()


def training_key(regions: Sequence[RegionData], settings: TrainSettings) -> str:
    """Hex digest of all that a training's result follows from; where it runs is not part of it."""
    data = [(region.triplets.digest, region.cache.manifest.recipe, region.cache.manifest.digest) for region in regions]
    return digest_of("training", VERSION, settings.model_dump(exclude=_WITHOUT_EFFECT), data)


def _take_part(
    regions: Sequence[RegionData],
    settings: TrainSettings,
    checkpoint: Checkpoint,
    team: Team,
    report: Callable[[Step | Epoch], None],
) -> None:
    """What each process of a team does; the first one leaves the result in the checkpoint."""
    device = torch.device("cuda", team.rank) if torch.cuda.is_available() else torch.device("cpu")
    scales = check_regions(regions).seen_by(settings).scales
    test = TestWindows(regions, settings.size_px, scales, _TEST_TRIPLETS) if team.leads else None
    _Training(regions, settings, checkpoint, device, team).run(test, report, report)


def _result(
    spec: WindowSpec, settings: TrainSettings, checkpoint: Checkpoint, resumed_from: int, test: TestWindows
) -> Trained:
    """What the last checkpoint holds."""
    found = checkpoint.load(Progress)
    if found is None or not found[1].is_over:
        raise EncoderError(f"Checkpoint {checkpoint.path} was changed from outside while it was written. Train again.")
    tensors, progress = found
    network = random_network(network_spec(spec, settings), settings.seed)
    prefix = f"{_LEARNER}encoder."
    network.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    )
    return Trained(
        network=network.eval(),
        random=progress.evaluations[0].scores,
        scores=progress.evaluations[-1].scores,
        n_steps=progress.step,
        n_planned=progress.n_planned,
        n_epochs=progress.evaluations[-1].epoch,
        resumed_from=resumed_from,
        images_per_s=progress.n_images / max(progress.train_seconds, 1e-9),
        train_seconds=progress.train_seconds,
        test=test,
    )


class _Training:
    """A training under way, as one process has it: the learner, its optimiser, and how far they are."""

    def __init__(
        self,
        regions: Sequence[RegionData],
        settings: TrainSettings,
        checkpoint: Checkpoint,
        device: torch.device,
        team: Team,
    ) -> None:
        """Go on from the checkpoint, or begin where there is none."""
        self._settings, self._checkpoint, self._device, self._team = settings, checkpoint, device, team
        spec = check_regions(regions).seen_by(settings)
        budget = (settings.window_memory_mb << 20) // team.size
        self._data = TripletWindows(regions, "train", settings.size_px, budget, spec.scales)
        batch_size = min(settings.batch_size, len(self._data))
        self._n_images = n_roles(settings) * (batch_size // team.size) * team.size
        self._per_epoch = self._data.n_batches(batch_size) * settings.n_echoes
        self._learner = new_learner(spec, settings, self._data, device)
        self._optimiser = _optimiser(self._learner, settings)
        found = checkpoint.load(Progress)
        self._restored, self._progress = ({}, Progress()) if found is None else found
        self._saved_at_s = self._progress.train_seconds

    def run(self, test: TestWindows | None, on_step: Callable[[Step], None], on_epoch: Callable[[Epoch], None]) -> None:
        """Do what is left to do. `test` is for the process that leads: it alone evaluates and writes checkpoints."""
        with _own_random_state(self._device):
            self._begin(test)
            for evaluation in self._progress.evaluations:
                on_epoch(evaluation)
            with contextlib.closing(self._batches()) as batches:
                while not self._progress.is_over:
                    on_step(self._advance(batches))
                    is_evaluated = self._progress.is_evaluated
                    if is_evaluated:
                        self._evaluate(test)
                    if is_evaluated or self._is_due:
                        self._save()
                    if is_evaluated and self._team.leads:
                        on_epoch(self._progress.evaluations[-1])

    def _begin(self, test: TestWindows | None) -> None:
        if self._restored:
            _restore(self._restored, self._learner, self._optimiser, self._device)
            self._restored = {}
            return
        self._progress = Progress(n_planned=self._planned())
        torch.manual_seed(self._settings.seed)
        self._evaluate(test)
        self._save()

    def _planned(self) -> int:
        """How many steps there will be: as many as were asked for, or as many as fit the time.

        Some are taken and timed for that, by a copy of the learner, so that nothing of them stays: a training with as
        many steps as another one has planned comes to the same weights.
        """
        settings = self._settings
        asked_for = self._per_epoch * settings.max_epochs
        asked_for = min(asked_for, settings.max_steps or asked_for)
        if asked_for <= _UNTIMED_STEPS + _TIMED_STEPS:
            return asked_for
        learner = copy.deepcopy(self._learner).train()
        optimiser = _optimiser(learner, settings)
        times = [time.perf_counter()]
        with contextlib.closing(self._batches()) as batches:
            for batch in islice(batches, _UNTIMED_STEPS + _TIMED_STEPS):
                float(take_step(learner, optimiser, batch, settings, 0.0, self._team).loss)
                times.append(time.perf_counter())
        # The median, for the first batches read the chunks, and another program may be busy for a moment.
        per_step_s = median(after - before for before, after in pairwise(times[_UNTIMED_STEPS:]))
        (fitting,) = self._team.agree(settings.max_seconds / per_step_s)
        return max(1, min(asked_for, int(fitting)))

    def _batches(self) -> Generator[Batch, None, None]:
        return self._data.batches(
            self._progress.step, self._settings, n_roles(self._settings), self._device, self._team.rank, self._team.size
        )

    def _advance(self, batches: Iterator[Batch]) -> Step:
        """Take one step."""
        done, settings = self._progress, self._settings
        rate = settings.learning_rate * rate_share(done.step / done.n_planned, settings.warmup)
        begun = time.perf_counter()
        batch = next(batches)
        value = take_step(self._learner, self._optimiser, batch, settings, rate, self._team)
        (loss,) = self._team.agree(float(value.loss))
        seconds = time.perf_counter() - begun
        self._progress = done.after(loss, seconds, self._n_images, settings.patience)
        # A step whose loss was a number may have broken the weights: no checkpoint must have them.
        is_kept = self._progress.is_evaluated or self._is_due
        if not math.isfinite(loss) or (is_kept and not _is_finite(self._learner)):
            raise EncoderError(diagnosis(done.step + 1, loss, rate, batch, self._learner))
        return Step(
            step=self._progress.step,
            epoch=self._epoch,
            loss=loss,
            active_share=float(value.active_share),
            learning_rate=rate,
            images_per_s=self._n_images / seconds,
            progress=self._progress.step / done.n_planned,
        )

    @property
    def _epoch(self) -> int:
        return -(-self._progress.step // self._per_epoch)

    @property
    def _is_due(self) -> bool:
        return self._progress.train_seconds - self._saved_at_s >= self._settings.checkpoint_seconds

    def _evaluate(self, test: TestWindows | None) -> None:
        if test is not None:
            scores = test.score(encode_with(self._learner.encoder, self._device))
            done = Epoch(self._epoch, self._progress.step, scores, self._progress.train_seconds)
            evaluations = (*self._progress.evaluations, done)
            self._progress = self._progress.model_copy(update={"evaluations": evaluations})
        self._learner.train()

    def _save(self) -> None:
        self._saved_at_s = self._progress.train_seconds
        if self._team.leads:
            self._checkpoint.save(_state(self._learner, self._optimiser, self._device), self._progress)


def _optimiser(learner: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(learner.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)


def _state(learner: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device) -> Tensors:
    """All tensors that a training goes on from."""
    tensors = {f"{_LEARNER}{name}": tensor for name, tensor in learner.state_dict().items()}
    for index, values in optimiser.state_dict()["state"].items():
        tensors |= {f"{_OPTIMISER}{index}.{name}": tensor for name, tensor in values.items()}
    tensors[_RANDOM] = torch.get_rng_state()
    if device.type == "cuda":
        tensors[_RANDOM_CUDA] = torch.cuda.get_rng_state(device)
    return tensors


def _restore(tensors: Tensors, learner: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device) -> None:
    """Put the tensors back where they came from."""
    learner.load_state_dict(
        {name.removeprefix(_LEARNER): tensor for name, tensor in tensors.items() if name.startswith(_LEARNER)}
    )
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    state: dict[int, Tensors] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMISER):
            index, _, value = name.removeprefix(_OPTIMISER).partition(".")
            weight = weights[int(index)]
            # In the order of the weight's memory, as the optimiser made it, or the last bit may come out otherwise.
            own = torch.empty_like(weight).copy_(tensor) if tensor.shape == weight.shape else tensor
            state.setdefault(int(index), {})[value] = own
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    torch.set_rng_state(tensors[_RANDOM])
    if device.type == "cuda" and _RANDOM_CUDA in tensors:
        torch.cuda.set_rng_state(tensors[_RANDOM_CUDA], device)


def _is_finite(learner: nn.Module) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in learner.state_dict().values())


def _own_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Whatever a training does with torch's global random state, the caller finds it as it was."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def rate_share(progress: float, warmup: float) -> float:
    """The learning rate's share of its peak when `progress` (0 to 1) of the plan is done: warm-up, cosine."""
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * min((progress - warmup) / (1 - warmup), 1.0)))


def encode_with(network: EncoderNetwork, device: torch.device) -> Callable[[torch.Tensor], Embeddings]:
    """The network as a function from windows to embeddings, in evaluation mode, in batches."""

    def encode(windows: torch.Tensor) -> Embeddings:
        network.eval()
        with torch.inference_mode():
            parts = [
                embed(network, batch.to(device), device).cpu() for batch in torch.split(windows, batch_size(device))
            ]
        return torch.cat(parts).numpy()

    return encode
