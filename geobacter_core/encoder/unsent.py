"""What trainings leave on disk until MLflow has it: the journal of metrics, and the encoder with its pictures and card.

Every training leaves its results here, and `send` takes them from here. One that could not send them is therefore
finished later by the same function that finishes all others.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from geobacter_core.encoder.card import MODEL_CARD
from geobacter_core.encoder.exported import export
from geobacter_core.encoder.journal import held, journal_file, read_journal, send_metrics
from geobacter_core.encoder.registry import Registry
from geobacter_core.encoder.train import Trained
from geobacter_core.encoder.version import EncoderVersion
from geobacter_core.errors import RegistryError
from geobacter_core.files import read_json, write_json
from geobacter_core.settings import Settings

if TYPE_CHECKING:
    import PIL.Image

Status = Literal["FINISHED", "FAILED", "KILLED"]
_LAST_TRIES = 3
_log = logging.getLogger(__name__)


class _Ending(BaseModel):
    """How a training ended, beside what it left. `tags` are those of the encoder's version, if there is one."""

    status: Status
    tags: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a run's leftovers; `version` is its encoder, None where the training did not end with one."""

    status: Status
    version: EncoderVersion | None


def leave_result(
    settings: Settings,
    run_id: str,
    trained: Trained,
    tags: Mapping[str, str],
    card: str,
    picture: "PIL.Image.Image",
) -> None:
    """Write all that a training results in; the ending comes last, so that what has one is whole."""
    folder = result_folder(settings, run_id)
    artifacts = folder / "artifacts"
    (artifacts / "pictures").mkdir(parents=True)
    (artifacts / MODEL_CARD).write_text(card, encoding="utf-8")
    picture.save(artifacts / "pictures" / "test_triplets.png")
    export(trained.network, folder / "encoder", trained.test.anchor, tags)
    write_json(_ending_file(folder), _Ending(status="FINISHED", tags=dict(tags)))


def leave_failure(registry: Registry, run_id: str) -> None:
    """Mark a run as failed, now or whenever it is sent; what made it fail is told by whoever calls this."""
    folder = result_folder(registry.settings, run_id)
    write_json(_ending_file(folder), _Ending(status="FAILED"))
    try:
        send(registry, run_id)
    except RegistryError as problem:
        _log.warning("%s The run's metrics wait to be sent: geobacter encoder import %s", problem, run_id)


def finish(registry: Registry, run_id: str, begin: int) -> EncoderVersion:
    """Send the results of a training; a server that was away has a few more seconds to come back."""
    tries = Retrying(
        retry=retry_if_exception_type(RegistryError),
        stop=stop_after_attempt(_LAST_TRIES),
        wait=wait_exponential(max=5),
        reraise=True,
    )
    try:
        version = tries(send, registry, run_id, begin).version
    except RegistryError as problem:
        raise RegistryError(
            f"{problem} The training is done and nothing of it is lost: its metrics and its encoder are in "
            f"{result_folder(registry.settings, run_id)}. When MLflow answers again: geobacter encoder import {run_id}"
        ) from None
    if version is None:
        raise RegistryError(f"Run {run_id} ended without an encoder. Train again.")
    return version


def send(registry: Registry, run_id: str, begin: int = 0) -> Sent:
    """Send what a run has left on disk, and remove it from there; may be tried until it succeeds.

    Args:
        registry: Where to.
        run_id: The run; MLflow knows it from its beginning.
        begin: Bytes of the journal that MLflow has already.

    Raises:
        RegistryError: There is nothing of that run, its training is still going on, or MLflow fails.
    """
    journal, folder = journal_file(registry, run_id), result_folder(registry.settings, run_id)
    if run_id not in unsent_runs(registry.settings):
        raise RegistryError(
            f"{registry.settings.unsent_folder} holds nothing of a run '{run_id}'. It was sent, or belongs to another "
            "data folder (GEOBACTER_DATA). What waits here: geobacter encoder list"
        )
    with held(journal) as is_over:
        if not is_over:
            raise RegistryError(f"The training of run {run_id} is still going on and sends its results itself; wait.")
        for metrics, _ in read_journal(journal, begin):
            send_metrics(registry, run_id, metrics)
        ending = _ending(folder)
        version = None if ending.tags is None else _register(registry, run_id, folder, ending.tags)
        with registry.trouble():
            registry.client.set_terminated(run_id, ending.status)
        journal.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    return Sent(ending.status, version)


def send_killed(registry: Registry) -> None:
    """Send the metrics of trainings that were killed. What fails is worth a warning, and not the next training."""
    for run_id in unsent_runs(registry.settings):
        if _ending_file(result_folder(registry.settings, run_id)).exists():
            continue  # it has an encoder, which a person may want to import
        with held(journal_file(registry, run_id)) as is_over:
            if not is_over:
                continue
        try:
            send(registry, run_id)
        except RegistryError as problem:
            _log.warning("%s", problem)


def unsent_runs(settings: Settings) -> list[str]:
    """The runs of which something waits to be sent, those still going on included."""
    return sorted({path.stem for path in settings.unsent_folder.glob("*") if path.is_dir() or path.suffix == ".jsonl"})


def result_folder(settings: Settings, run_id: str) -> Path:
    """Where a training leaves its encoder, pictures and card until MLflow has them."""
    return settings.unsent_folder / run_id


def _register(registry: Registry, run_id: str, folder: Path, tags: Mapping[str, str]) -> EncoderVersion:
    card = (folder / "artifacts" / MODEL_CARD).read_text(encoding="utf-8")
    with registry.trouble():
        registry.client.log_artifacts(run_id, str(folder / "artifacts"))
    return registry.add(run_id, folder / "encoder", tags, card)


def _ending(folder: Path) -> _Ending:
    """How the training ended; one that left no word of it was killed."""
    if not _ending_file(folder).exists():
        return _Ending(status="KILLED")
    return read_json(_ending_file(folder), _Ending, RegistryError, "Remove the folder and train again.")


def _ending_file(folder: Path) -> Path:
    return folder / "ending.json"
