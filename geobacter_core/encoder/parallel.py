"""Training in several processes, one a GPU: each takes a share of every batch; the loss is that of the whole batch."""

import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed, nn

from geobacter_core.errors import EncoderError, GeobacterError
from geobacter_core.files import n_processors

_GRACE_S = 5.0
"""When one process fails, the others fail because of it; for so long we wait for the one that tells why."""

Message = TypeVar("Message")


@dataclass(frozen=True, slots=True)
class Team:
    """The processes that train together, as one of them sees it.

    Attributes:
        rank: Which one this is, from 0.
        size: How many there are. With one, nothing is sent anywhere.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this one evaluates, reports and writes checkpoints."""
        return self.rank == 0

    def gather(self, own: torch.Tensor, n_roles: int) -> torch.Tensor:
        """The rows of all processes in the order of the undivided batch, `[R·N, …]` of `[R·N / size, …]`.

        Gradients flow into the own rows alone. Every process computes the whole batch's loss and differentiates it by
        its own rows, so the sum of all their gradients, and not the mean, is the gradient of that loss.

        Args:
            own: This process's rows: those of the first role (anchors), then of the next.
            n_roles: R.
        """
        if self.size == 1:
            return own
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(self.size)]
        distributed.all_gather(parts, own.detach().contiguous())
        parts[self.rank] = own
        return torch.cat([part.reshape(n_roles, -1, *own.shape[1:]) for part in parts], dim=1).flatten(0, 1)

    def add_gradients(self, module: nn.Module) -> None:
        """Sum the gradients over all processes.

        As one vector, so that the order of summation, and with it the last bit, never depends on when gradients come;
        DistributedDataParallel orders its buckets anew after the first step, also after the first of a resumed run.
        """
        if self.size == 1:
            return
        gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        totals = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, total in zip(gradients, totals, strict=True):
            gradient.copy_(total.view_as(gradient))

    def agree(self, *values: float) -> list[float]:
        """The first process's figures, for all: whatever is decided by them is decided alike."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        distributed.broadcast(shared, 0)
        return [float(value) for value in shared]


ALONE = Team()


def n_processes(wanted: int | None) -> int:
    """How many processes to train in: as many as wanted, or as there are GPUs.

    Raises:
        EncoderError: There are GPUs, but fewer.
    """
    n_gpus = torch.cuda.device_count()
    if wanted is None:
        return max(1, n_gpus)
    if wanted > n_gpus > 0:
        raise EncoderError(
            f"n_processes is {wanted}, and this machine has {n_gpus} GPUs. Set it to {n_gpus}, or leave it out."
        )
    return wanted


def together(size: int, work: Callable[[Team, Callable[[Message], None]], None]) -> Generator[Message, None, None]:
    """Do `work` in new processes, and yield what the first of them reports.

    No process outlives the generator, nor the process that uses it.

    Args:
        size: How many processes.
        work: What each does, given its place in the team and how to report. It and what it reports can be pickled.

    Raises:
        EncoderError: A process died.
        Exception: What a process raised.
    """
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []
    working: dict[Connection, BaseProcess] = {}
    with tempfile.TemporaryDirectory(prefix="geobacter-team-") as folder:
        try:
            for rank in range(size):
                receiver, sender = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(
                    target=_member,
                    args=(Team(rank, size), Path(folder) / "meeting", sender, work),
                    name=f"trainer-{rank}",
                    daemon=True,
                )
                process.start()
                processes.append(process)
                working[receiver] = process
                sender.close()  # the process holds the other copy: when it ends, the receiver sees the end
            yield from _messages(working)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _messages(working: dict[Connection, BaseProcess]) -> Iterator[Message]:
    """What processes send until all have ended or one failed; then the failure that explains the others is raised."""
    failures: list[Exception] = []
    patience_ends = float("inf")
    while working:
        patience_s = None if not failures else max(0.0, patience_ends - time.monotonic())
        ready = connection.wait(list(working), patience_s)
        if not ready:
            break
        for receiver in ready:
            assert isinstance(receiver, Connection)
            try:
                message = receiver.recv()
            except EOFError:
                process = working.pop(receiver)
                process.join()
                if process.exitcode:
                    failures.append(_death(process))
            else:
                if not isinstance(message, Exception):
                    yield message
                    continue
                failures.append(message)
        if failures and patience_ends == float("inf"):
            patience_ends = time.monotonic() + _GRACE_S
    if failures:
        # A process that lost another one raises something of torch's; the one that was lost, or stopped, tells why.
        raise min(failures, key=lambda failure: not isinstance(failure, GeobacterError))


def _death(process: BaseProcess) -> EncoderError:
    code = process.exitcode or 0
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return EncoderError(
        f"Process '{process.name}' of the training {how}; the others were stopped. Train again: it goes on from the "
        "last checkpoint. If memory ran out, lower batch_size, window_memory_mb or n_processes."
    )


def _member(
    team: Team, meeting: Path, sender: Connection, work: Callable[[Team, Callable[[Message], None]], None]
) -> None:
    """What each process runs."""
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    try:
        _meet(team, meeting)
        work(team, sender.send if team.leads else _say_nothing)
        distributed.destroy_process_group()
    except Exception as problem:
        problem.add_note(f"In process {team.rank} of {team.size}:\n{traceback.format_exc()}")
        sender.send(problem)
    finally:
        sender.close()


def _meet(team: Team, meeting: Path) -> None:
    """Connect the processes of a team, who tell each other their ports in a file.

    Tensors on GPUs travel by NCCL, others by Gloo, over loopback.
    """
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    torch.set_num_threads(max(1, n_processors() // team.size))
    backend = "cpu:gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(team.rank)
        backend += ",cuda:nccl"
    distributed.init_process_group(backend, init_method=meeting.as_uri(), rank=team.rank, world_size=team.size)


def _end_with_parent() -> None:
    """End this process, whatever it is doing, as soon as the one that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _say_nothing(message: object) -> None:
    """Only the first process reports."""
