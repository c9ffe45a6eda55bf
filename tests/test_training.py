"""Training: what comes out, also when it is killed and goes on, when the loss breaks, and in several processes."""

import contextlib
import dataclasses
import itertools
import logging
import math
import multiprocessing
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from geobacter_core.encoder.checkpoint import checkpoint_of
from geobacter_core.encoder.data import RegionData, TripletWindows, check_regions
from geobacter_core.encoder.learner import Learner, new_learner, take_step
from geobacter_core.encoder.network import weights_digest
from geobacter_core.encoder.parallel import ALONE, n_processes, together
from geobacter_core.encoder.settings import LOSSES, TrainSettings
from geobacter_core.encoder.train import (
    Progress,
    forget,
    is_flat,
    train,
    training_key,
)
from geobacter_core.errors import EncoderError, TileCacheError

CPU = torch.device("cpu")
TINY = TrainSettings(
    network="small",
    size_px=32,
    embedding_dim=24,
    projection_dim=8,
    batch_size=20,
    max_steps=10,
    max_seconds=3600,
    checkpoint_seconds=0,
)
"""Ten steps, a checkpoint after each."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two of torch's threads on two busy processors wait for each other longer than they compute."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def regions(helsinki):
    return [RegionData("helsinki", helsinki.triplets, helsinki.cache)]


@pytest.fixture(scope="module")
def uninterrupted(regions):
    return train(regions, TINY)


def altered(**changes):
    return TINY.model_copy(update=changes)


class InterruptionError(Exception):
    pass


def interrupt_at(*steps):
    def on_step(step):
        if step.step in steps:
            raise InterruptionError

    return on_step


def the_checkpoint(folder, regions, settings=TINY):
    return checkpoint_of(folder, training_key(regions, settings))


# What comes out


def test_a_training_reports_its_steps_and_scores(regions):
    steps, epochs = [], []
    n_train = len(regions[0].triplets.lonlat("train"))
    trained = train(regions, altered(loss="margin", projection_dim=0, echoes=2), steps.append, epochs.append)
    assert (trained.n_steps, trained.n_planned, trained.resumed_from) == (10, 10, 0)
    assert [step.step for step in steps] == list(range(1, 11))
    per_epoch = 2 * (n_train // 20)
    assert [step.epoch for step in steps] == [(step - 1) // per_epoch + 1 for step in range(1, 11)]
    assert trained.n_epochs == steps[-1].epoch > 1
    assert all(0 <= step.loss <= 5.5 and 0 <= step.active_share <= 1 and step.images_per_s > 0 for step in steps)
    assert steps[-1].progress == 1.0
    assert [epoch.step for epoch in epochs] == list(range(11))
    assert epochs[0].epoch == 0
    assert (epochs[0].scores, epochs[-1].scores) == (trained.random, trained.scores)
    assert trained.scores.n == len(regions[0].triplets.lonlat("test"))
    assert trained.train_seconds > 0
    assert not trained.network.training


@pytest.mark.parametrize("loss", LOSSES)
def test_a_training_learns(regions, loss):
    """The mean loss of the second epoch on is below that of the first, with every loss."""
    losses = []
    train(regions, altered(loss=loss, max_steps=24, learning_rate=3e-3, vicreg_weight=0.1), losses.append)
    losses = [step.loss for step in losses]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(regions, uninterrupted):
    digest = weights_digest(uninterrupted.network)
    assert weights_digest(train(regions, TINY).network) == digest
    assert weights_digest(train(regions, altered(seed=2)).network) != digest


def test_the_callers_random_state_stays_as_it_was(regions):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(regions, altered(max_steps=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_larger_than_the_data_is_cut_to_it(regions):
    steps = []
    trained = train(regions, altered(batch_size=4096, max_epochs=1, max_steps=None), steps.append)
    # Cut once, shown four times.
    assert trained.n_steps == len(steps) == 4


# Time and patience


def test_a_training_is_planned_to_end_with_its_seconds_and_the_plan_repeats_it(regions):
    steps = []
    trained = train(regions, altered(max_steps=None, max_epochs=1000, max_seconds=2.0), steps.append)
    assert 1 < trained.n_steps == trained.n_planned < 4000
    rates = [step.learning_rate for step in steps]
    assert rates.index(max(rates)) <= 0.1 * trained.n_planned + 1
    assert rates[-1] < 0.1 * max(rates)
    again = train(regions, altered(max_steps=trained.n_planned))
    assert weights_digest(again.network) == weights_digest(trained.network)


def test_a_training_without_time_takes_one_step(regions):
    trained = train(regions, altered(max_steps=None, max_seconds=0.001))
    assert (trained.n_steps, trained.n_planned, trained.n_epochs) == (1, 1, 1)


@pytest.mark.parametrize(
    ("losses", "patience", "flat"),
    [
        ((), 1, False),
        ((3.0,), 1, False),
        ((3.0, 2.0), 1, False),
        ((3.0, 3.0), 1, True),
        ((3.0, 4.0), 2, False),
        ((3.0, 4.0, 3.5), 2, True),  # falling again, but not below the best
        ((3.0, 4.0, 2.9), 2, False),
        ((3.0, 4.0, 5.0, 6.0), 0, False),
    ],
)
def test_losses_are_flat_when_the_last_are_no_better_than_the_best_before(losses, patience, flat):
    assert is_flat(losses, patience) == flat


def test_a_training_whose_loss_no_longer_falls_ends_early(regions):
    settings = altered(max_steps=40, learning_rate=1e-12, patience=3, checkpoint_seconds=3600)
    trained = train(regions, settings)
    assert trained.n_planned == 40
    assert 4 * 2 <= trained.n_steps < 40  # a first stretch of two steps, and three that are no better
    assert trained.n_steps % 2 == 0
    assert train(regions, settings.model_copy(update={"patience": 0})).n_steps == 40


# Going on


def train_and_die(regions, folder, begun):
    """A process that is killed, as if by the kernel, while it trains; a second after it told that it does."""

    def on_step(step):
        if step.step == 7:
            begun.set()
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    train(regions, TINY, on_step, checkpoints=folder)


def test_a_killed_training_goes_on_to_the_same_weights(regions, uninterrupted, tmp_path, caplog):
    """And a second one, by the same settings in the same folder, waits as long as the first lives."""
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=train_and_die, args=(regions, tmp_path, begun), daemon=True)
    process.start()
    assert begun.wait(120)
    steps = []
    with caplog.at_level(logging.WARNING):
        trained = train(regions, TINY, steps.append, checkpoints=tmp_path)
    assert "another process trains by the same settings; waiting for it to end" in caplog.text
    process.join(10)
    assert process.exitcode == -signal.SIGKILL
    assert trained.resumed_from == 6  # killed before the checkpoint of step 7
    assert [step.step for step in steps] == [7, 8, 9, 10]
    assert weights_digest(trained.network) == weights_digest(uninterrupted.network)
    assert (trained.random, trained.scores) == (uninterrupted.random, uninterrupted.scores)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


@pytest.mark.parametrize("network", ["small", "resnet18"])
def test_a_training_that_is_interrupted_often_comes_to_the_same_weights(regions, tmp_path, network):
    settings = altered(network=network, loss="multi_similarity", vicreg_weight=0.5, max_steps=3, batch_size=10)
    expected = train(regions, settings)
    for step in (1, 2, 3):
        with pytest.raises(InterruptionError):
            train(regions, settings, interrupt_at(step), checkpoints=tmp_path)
    trained = train(regions, settings, checkpoints=tmp_path)
    assert trained.resumed_from == 2
    assert weights_digest(trained.network) == weights_digest(expected.network)


def test_evaluations_of_before_are_reported_again(regions, tmp_path):
    """A tracking run that begins with the second try has the whole curve."""
    first, second = [], []
    with pytest.raises(InterruptionError):
        train(regions, TINY, interrupt_at(4), first.append, tmp_path)
    train(regions, TINY, on_epoch=second.append, checkpoints=tmp_path)
    assert [epoch.step for epoch in first] == [0, 1, 2, 3]
    assert second[:4] == first
    assert [epoch.step for epoch in second] == list(range(11))


def test_a_finished_training_is_not_trained_again_until_it_is_forgotten(regions, uninterrupted, tmp_path):
    steps, epochs = [], []
    train(regions, TINY, checkpoints=tmp_path)
    again = train(regions, TINY, steps.append, epochs.append, tmp_path)
    assert steps == []
    assert again.resumed_from == again.n_steps == 10
    assert epochs[-1].scores == again.scores == uninterrupted.scores
    assert weights_digest(again.network) == weights_digest(uninterrupted.network)
    forget(tmp_path, regions, TINY)
    assert list(tmp_path.glob("*.safetensors")) == []
    forget(tmp_path, regions, TINY)  # there is nothing to forget, and that is fine
    train(regions, TINY, steps.append, checkpoints=tmp_path)
    assert len(steps) == 10


def test_a_plan_made_from_time_is_kept(regions, tmp_path):
    settings = altered(max_steps=None, max_epochs=1000, max_seconds=2.0)
    with pytest.raises(InterruptionError):
        train(regions, settings, interrupt_at(3), checkpoints=tmp_path)
    _, progress = the_checkpoint(tmp_path, regions, settings).load(Progress)
    trained = train(regions, settings, checkpoints=tmp_path)
    assert trained.n_planned == progress.n_planned
    repeated = train(regions, altered(max_steps=progress.n_planned))
    assert weights_digest(trained.network) == weights_digest(repeated.network)


def test_other_settings_or_data_are_another_training(regions, helsinki):
    def key(settings=TINY, **changes):
        triplets = dataclasses.replace(helsinki.triplets, **changes)
        return training_key([dataclasses.replace(regions[0], triplets=triplets)], settings)

    assert key() == key(altered(window_memory_mb=64, checkpoint_seconds=7))
    others = {key(altered(seed=2)), key(altered(max_steps=11)), key(altered(loss="softpn")), key(digest="other")}
    assert len(others | {key()}) == 5


def test_checkpoints_come_after_evaluations_and_so_many_seconds(regions, tmp_path):
    """A training of 40 steps is evaluated every fourth; between these nothing is written in an hour."""
    settings = altered(max_steps=40, checkpoint_seconds=3600)
    for step, found in ((3, 0), (7, 4), (18, 16)):
        with pytest.raises(InterruptionError):
            train(regions, settings, interrupt_at(step), checkpoints=tmp_path)
        _, progress = the_checkpoint(tmp_path, regions, settings).load(Progress)
        assert progress.step == found


def test_a_checkpoint_holds_no_pickle_and_restores_the_random_state(regions, tmp_path):
    with pytest.raises(InterruptionError):
        train(regions, TINY, interrupt_at(3), checkpoints=tmp_path)
    path = the_checkpoint(tmp_path, regions).path
    tensors = load_file(path)  # safetensors: a JSON header and plain numbers
    learner = {name for name in tensors if name.startswith("learner.")}
    assert "learner.encoder.heads.0.running_mean" in learner
    assert "learner.projections.0.0.weight" in learner
    n_weights = len({name.split(".")[1] for name in tensors if name.startswith("optimiser.")})
    spec = check_regions(regions)
    data = TripletWindows(regions, "train", 32, 1 << 28)
    assert n_weights == len(list(new_learner(spec, TINY, data, CPU).parameters()))
    expected = torch.Generator().manual_seed(TINY.seed)
    assert torch.equal(tensors["random"], expected.get_state())


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_bit(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def other_document(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, "geobacter": metadata["geobacter"].replace('"step":4', '"step":9')})


def other_training(path):
    """As if somebody had copied the file of another training over it."""
    save_file(load_file(path), path, {"geobacter": "{}", "digest": "0" * 64})


@pytest.mark.parametrize(
    "damage",
    [
        half,
        one_bit,
        other_document,
        other_training,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no"),
    ],
    ids=["half", "one bit", "other document", "other training", "empty", "text"],
)
def test_a_damaged_checkpoint_is_named_and_the_training_begins_anew(regions, uninterrupted, tmp_path, caplog, damage):
    with pytest.raises(InterruptionError):
        train(regions, TINY, interrupt_at(5), checkpoints=tmp_path)
    path = the_checkpoint(tmp_path, regions).path
    damage(path)
    with caplog.at_level(logging.WARNING):
        trained = train(regions, TINY, checkpoints=tmp_path)
    assert trained.resumed_from == 0
    assert weights_digest(trained.network) == weights_digest(uninterrupted.network)
    assert f"Checkpoint {path} cannot be used" in caplog.text
    assert "starts from the beginning" in caplog.text


def test_old_checkpoints_of_other_trainings_are_removed(regions, tmp_path):
    old, young = tmp_path / f"{'a' * 64}.safetensors", tmp_path / f"{'b' * 64}.safetensors"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 4 * 86400,) * 2)
    leftover = tmp_path / f".tmp-{'0' * 8}-1-abcd-{'a' * 64}.safetensors"
    leftover.write_bytes(b"x")
    os.utime(leftover, (0, 0))
    train(regions, altered(max_steps=1), checkpoints=tmp_path)
    assert (old.exists(), young.exists(), leftover.exists()) == (False, True, False)


def test_a_full_disk_is_named_and_the_checkpoint_of_before_stays(regions, uninterrupted, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.decode().strip()}")
    try:

        def on_step(step):
            if step.step == 4:
                subprocess.run(["mount", "-o", "remount,size=12m", str(disk)], check=False)
                with contextlib.suppress(OSError), (disk / "filler").open("wb") as filler:
                    filler.write(b"x" * (64 << 20))

        with pytest.raises(EncoderError, match=r"Checkpoint .*safetensors cannot be written: .*train again"):
            train(regions, TINY, on_step, checkpoints=disk)
        (disk / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        trained = train(regions, TINY, checkpoints=disk)
        assert trained.resumed_from == 3
        assert weights_digest(trained.network) == weights_digest(uninterrupted.network)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# A loss that is not a number


def test_a_loss_that_is_not_a_number_is_diagnosed(regions, tmp_path):
    """Cosines over a temperature of 10⁻⁴⁰ are more than float32 holds."""
    settings = altered(temperature=1e-40, learning_rate=0.5)
    says = (
        r"step 1: the loss is nan at learning rate .*weights.* % of the batch|step 1: the loss is nan at learning rate"
    )
    with pytest.raises(EncoderError, match=says) as caught:
        train(regions, settings, checkpoints=tmp_path)
    for part in ("of one colour", "Lower learning_rate, or raise temperature", "Nothing was registered"):
        assert part in str(caught.value)
    _, progress = the_checkpoint(tmp_path, regions, settings).load(Progress)
    assert progress.step == 0


@contextlib.contextmanager
def planted(hook):
    try:
        yield
    finally:
        hook.remove()


def test_a_loss_that_breaks_leaves_the_checkpoint_of_before(regions, uninterrupted, tmp_path):
    calls = itertools.count(1)

    def break_it(module, _, output):
        if isinstance(module, Learner) and module.training and next(calls) >= 6:
            return tuple(None if part is None else part * math.nan for part in output)
        return output

    with planted(register_module_forward_hook(break_it)):
        for step in (6, 6):  # a second try ends at the same step, at once
            with pytest.raises(EncoderError, match=f"step {step}: the loss is nan.*weights"):
                train(regions, TINY, checkpoints=tmp_path)
    tensors, progress = the_checkpoint(tmp_path, regions).load(Progress)
    assert progress.step == 5
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert weights_digest(train(regions, TINY, checkpoints=tmp_path).network) == weights_digest(uninterrupted.network)


@pytest.mark.parametrize("checkpoint_seconds", [0, 3600])
def test_weights_that_break_while_the_loss_is_a_number_get_into_no_checkpoint(regions, tmp_path, checkpoint_seconds):
    """Step 6 breaks a weight after its loss was taken; with a checkpoint at each step that one must notice."""
    settings = altered(max_steps=30, checkpoint_seconds=checkpoint_seconds)
    steps = itertools.count(1)

    def break_it(optimiser, args, kwargs):
        if optimiser.param_groups[0]["lr"] > 0 and next(steps) == 7:  # steps that are only timed have a rate of 0
            optimiser.param_groups[0]["params"][0].data[0] = math.inf

    with (
        planted(register_optimizer_step_post_hook(break_it)),
        pytest.raises(
            EncoderError, match=r"step \d: the loss is .* weights are not finite, the first is encoder.backbone"
        ),
    ):
        train(regions, settings, checkpoints=tmp_path)
    tensors, progress = the_checkpoint(tmp_path, regions, settings).load(Progress)
    assert progress.step == 6
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


# Several processes


def test_there_are_as_many_processes_as_wanted_or_gpus():
    assert n_processes(None) == max(1, torch.cuda.device_count())
    assert n_processes(1) == 1
    if not torch.cuda.is_available():
        assert n_processes(3) == 3


def test_one_process_sends_nothing():
    rows = torch.rand(6, 2)
    assert ALONE.gather(rows, 2) is rows
    assert ALONE.agree(1.5, math.inf) == [1.5, math.inf]
    assert not torch.distributed.is_initialized()


SHARED = altered(loss="infonce", vicreg_weight=0.3, projection_dim=0, temperature=0.5)


def one_step(regions, settings, team):
    """Loss and weights after one step of plain descent, with batch statistics that do not depend on the share."""
    torch.set_num_threads(1)
    data = TripletWindows(regions, "train", 32, 1 << 28)
    learner = new_learner(check_regions(regions), settings, data, CPU).eval()
    optimiser = torch.optim.SGD(learner.parameters(), lr=1.0)
    n_roles = 3 if settings.loss == "margin" else 2
    batches = data.batches(0, settings, n_roles, CPU, team.rank, team.size)
    value = take_step(learner, optimiser, next(batches), settings, 0.1, team)
    batches.close()
    return float(value.loss), {name: weight.detach().numpy() for name, weight in learner.named_parameters()}


def take_part(regions, team, report):
    rows = torch.arange(6.0)[:, None] + 10 * team.rank
    report(team.gather(rows, 3).flatten().tolist())
    report(team.agree(float(team.rank), 0.5 + team.rank))
    for settings in (SHARED, SHARED.model_copy(update={"loss": "margin"})):
        report(one_step(regions, settings, team))
    if team.rank == 1:
        raise TileCacheError("Chunk 12/1/2 is missing. Materialise tile_cache for the region.")
    team.agree(0.0)  # waits for a process that is gone
    team.agree(0.0)


@pytest.fixture(scope="module")
def of_two(regions):
    """What two processes report, and the error with which they end."""
    reports = []
    try:
        with contextlib.closing(together(2, partial(take_part, regions))) as messages:
            reports.extend(messages)
    except TileCacheError as problem:
        return reports, problem
    return reports, None


def test_gathered_rows_are_in_the_order_of_the_undivided_batch(of_two):
    """Anchors 0, 1 | 10, 11, then positives 2, 3 | 12, 13, then negatives."""
    assert of_two[0][0] == [0, 1, 10, 11, 2, 3, 12, 13, 4, 5, 14, 15]


def test_the_first_process_decides_for_all(of_two):
    assert of_two[0][1] == [0.0, 0.5]


@pytest.mark.parametrize(("index", "loss"), [(2, "infonce"), (3, "margin")])
def test_two_processes_take_the_step_that_one_takes(of_two, regions, index, loss):
    """Loss and gradients are those of all 20 pairs or triplets, not the mean of two times 10."""
    settings = SHARED.model_copy(update={"loss": loss})
    expected_loss, expected = one_step(regions, settings, ALONE)
    found_loss, found = of_two[0][index]
    assert found_loss == pytest.approx(expected_loss, rel=1e-3)
    start = dict(random_network_weights(regions, settings))
    moved = np.concatenate([(expected[name] - start[name]).ravel() for name in expected])
    also = np.concatenate([(found[name] - start[name]).ravel() for name in expected])
    # bfloat16 has eight bits: single weights may differ a little, the direction and length of the step may not.
    assert np.linalg.norm(also - moved) < 0.02 * np.linalg.norm(moved)
    assert np.linalg.norm(moved) > 0


def random_network_weights(regions, settings):
    data = TripletWindows(regions, "train", 32, 1 << 28)
    learner = new_learner(check_regions(regions), settings, data, CPU)
    return [(name, weight.detach().numpy()) for name, weight in learner.named_parameters()]


def test_an_error_in_one_process_is_raised_as_it_was_and_ends_the_others(of_two):
    assert isinstance(of_two[1], TileCacheError)
    assert str(of_two[1]) == "Chunk 12/1/2 is missing. Materialise tile_cache for the region."
    assert "In process 1 of 2" in of_two[1].__notes__[0]
    assert multiprocessing.active_children() == []


TWO = altered(n_processes=2, max_steps=12, learning_rate=3e-3)


def test_two_processes_that_are_killed_go_on_to_the_same_weights(regions, tmp_path):
    """First one of the two is killed, then the process that started them; the result is that of a training in peace."""
    callers, losses, epochs = [], [], []

    def on_step(step):
        callers.append(os.getpid())
        losses.append(step.loss)

    peaceful = train(regions, TWO, on_step, epochs.append)
    assert (peaceful.n_steps, peaceful.n_planned, peaceful.resumed_from) == (12, 12, 0)
    assert set(callers) == {os.getpid()}
    assert len(callers) == 12
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert [epoch.step for epoch in epochs] == list(range(13))
    assert epochs[-1].scores == peaceful.scores

    def kill_one(step):
        if step.step == 4:
            second = next(each for each in multiprocessing.active_children() if each.name == "trainer-1")
            os.kill(second.pid, signal.SIGKILL)

    begun = time.monotonic()
    with pytest.raises(EncoderError, match=r"Process 'trainer-1' of the training was ended by SIGKILL.*Train again"):
        train(regions, TWO, kill_one, checkpoints=tmp_path)
    assert time.monotonic() - begun < 60
    assert multiprocessing.active_children() == []
    _, progress = the_checkpoint(tmp_path, regions, TWO).load(Progress)
    assert 3 <= progress.step < 12

    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    parent = multiprocessing.get_context("spawn").Process(target=train_as_parent, args=(regions, tmp_path, sender))
    parent.start()
    workers = receiver.recv() if receiver.poll(120) else []
    parent.join(60)
    assert parent.exitcode == -signal.SIGKILL
    assert len(workers) == 2
    assert all_gone(workers, within_s=20)

    trained = train(regions, TWO, checkpoints=tmp_path)
    assert trained.resumed_from > progress.step
    assert weights_digest(trained.network) == weights_digest(peaceful.network)


def train_as_parent(regions, folder, sender):
    """Kill this process two steps after it went on, and tell before which ones it had started."""
    n_steps = itertools.count(1)

    def on_step(step):
        if next(n_steps) == 2:
            sender.send([each.pid for each in multiprocessing.active_children()])
            os.kill(os.getpid(), signal.SIGKILL)

    train(regions, TWO, on_step, checkpoints=folder)


def all_gone(pids, within_s):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(is_running(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def is_running(pid):
    """Whether a process is there and no zombie (which one is whose parent, here, does not look after it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_more_processes_than_pairs_are_refused(regions):
    with pytest.raises(EncoderError, match=r"A batch of 4 train triplets is less than two for each process .3.."):
        train(regions, altered(batch_size=4, n_processes=3))
