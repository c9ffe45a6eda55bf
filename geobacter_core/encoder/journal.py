"""The journal of a run: its metrics on disk first, and from there to MLflow, whenever that can be reached.

A server that is away costs the training neither time nor metrics: a thread sends what is new and tries again with
growing pauses, and what was not sent stays in the journal.
"""

import fcntl
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from mlflow.entities import Metric
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential
from tenacity.nap import sleep_using_event
from tenacity.stop import stop_when_event_set

from geobacter_core.encoder.store import Store
from geobacter_core.errors import RegistryError

_EVERY_S = 2.0
_LONGEST_PAUSE_S = 60.0
_BATCH = 1000
"""As many metrics as MLflow takes at once."""
_log = logging.getLogger(__name__)


class RunLog:
    """Writes the metrics of one run into its journal, and has a thread send them; use it as a context.

    Attributes:
        sent_bytes: How much of the journal MLflow has.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        """Prepare the journal of a run; nothing is written yet."""
        self.sent_bytes = 0
        self._store = store
        self._run_id = run_id
        self._path = journal_file(store, run_id)
        self._file: IO[str] | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._send_until_over, name="run-log", daemon=True)

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a", buffering=1, encoding="utf-8")  # a line is in the file as soon as it ends
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        if self._file is not None:
            self._file.close()

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Add metrics of a step (or of another point in the training) to the journal."""
        if self._file is None:
            raise RuntimeError("The journal is not open.")
        line = {"step": step, "timestamp_ms": time.time_ns() // 1_000_000, "metrics": dict(metrics)}
        self._file.write(json.dumps(line) + "\n")

    def _send_until_over(self) -> None:
        patiently = Retrying(
            retry=retry_if_exception_type(RegistryError),
            wait=wait_exponential(multiplier=_EVERY_S, max=_LONGEST_PAUSE_S),
            stop=stop_when_event_set(self._is_over),
            sleep=sleep_using_event(self._is_over),
            before_sleep=self._warn,
            reraise=True,
        )
        # What the last try could not send, `send` tries once more.
        with suppress(RegistryError):
            while not self._is_over.wait(_EVERY_S):
                patiently(self._send_new)

    def _send_new(self) -> None:
        for metrics, end in read_journal(self._path, self.sent_bytes):
            send_metrics(self._store, self._run_id, metrics)
            self.sent_bytes = end

    def _warn(self, state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            _log.warning(
                "%s The training goes on; its metrics are kept in %s and sent later.",
                state.outcome.exception(),
                self._path,
            )


def journal_file(store: Store, run_id: str) -> Path:
    """Where the metrics of a run are kept until MLflow has them."""
    return store.settings.unsent_folder / f"{run_id}.jsonl"


def read_journal(path: Path, begin: int = 0) -> Iterator[tuple[list[Metric], int]]:
    """Metrics of a journal from a byte on, as many at a time as MLflow takes, and the byte after them.

    A last line that has not ended is left out: it is being written, or its writer was killed.
    """
    metrics: list[Metric] = []
    with path.open("rb") as file:
        file.seek(begin)
        end = begin
        for line in file:
            if not line.endswith(b"\n"):
                break
            found = json.loads(line)
            new = [
                Metric(name, value, found["timestamp_ms"], found["step"]) for name, value in found["metrics"].items()
            ]
            if metrics and len(metrics) + len(new) > _BATCH:
                yield metrics, end
                metrics = []
            metrics += new
            end += len(line)
    if metrics:
        yield metrics, end


def send_metrics(store: Store, run_id: str, metrics: list[Metric]) -> None:
    """Send metrics of a run; what MLflow has already stays as it is.

    Raises:
        RegistryError: MLflow fails.
    """
    with store.trouble():
        store.client.log_batch(run_id, metrics=metrics)


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a journal, unless its training is still going on somewhere; then False."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
