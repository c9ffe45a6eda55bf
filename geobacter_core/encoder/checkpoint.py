"""Checkpoints: what a training needs to go on where it was, in one file that is whole or not there at all.

The file is in the safetensors format: tensors, and a JSON document in its header. Loading it runs no code, as loading a
pickle would.
"""

import fcntl
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from geobacter_core.errors import EncoderError
from geobacter_core.files import remove_temporaries, written_aside

_SUFFIX = ".safetensors"
_DOCUMENT = "geobacter"
_DIGEST = "digest"
_LOCKS = ".trainings.lock"
_ABANDONED_S = 3 * 86400.0
"""Checkpoints that nobody touched for so long are removed: long enough for a weekend without the MLflow server."""
_log = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]
Document = TypeVar("Document", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The file of one training, which may not be there yet."""

    path: Path

    def save(self, tensors: Mapping[str, torch.Tensor], document: BaseModel) -> None:
        """Replace the file.

        Raises:
            EncoderError: It cannot be written (the disk is full, say); the file of before stays.
        """
        flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = document.model_dump_json()
        try:
            with written_aside(self.path) as temporary:
                save_file(flat, temporary, {_DOCUMENT: text, _DIGEST: self._digest(flat, text)})
        except (OSError, SafetensorError) as problem:
            raise EncoderError(
                f"Checkpoint {self.path} cannot be written: {problem}. Make room or mend the folder, and train again: "
                "it goes on from the checkpoint of before."
            ) from None

    def load(self, model: type[Document]) -> tuple[Tensors, Document] | None:
        """Tensors, on the CPU, and the document; None where there is nothing to use, and a warning if it is damaged."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dict
            if metadata.get(_DIGEST) != self._digest(tensors, metadata.get(_DOCUMENT, "")):
                raise ValueError("it is damaged, or that of another training")
            return tensors, model.model_validate_json(metadata[_DOCUMENT])
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, OSError) as problem:
            _log.warning(
                "Checkpoint %s cannot be used: %s. The training starts from the beginning.", self.path, problem
            )
            return None

    def _digest(self, tensors: Mapping[str, torch.Tensor], document: str) -> str:
        """Hex SHA-256 of name and content: a file may keep its length and lose bits."""
        sha = hashlib.sha256(json.dumps([self.path.name, document]).encode())
        for name, tensor in sorted(tensors.items()):
            sha.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
            sha.update(tensor.reshape(-1).numpy().data)
        return sha.hexdigest()

    def remove(self) -> None:
        """Remove the file, if it is there."""
        self.path.unlink(missing_ok=True)


def checkpoint_of(folder: Path, key: str) -> Checkpoint:
    """The checkpoint in `folder` of the training that has a key (a hex digest)."""
    return Checkpoint(folder / f"{key}{_SUFFIX}")


@contextmanager
def held(folder: Path | None, key: str) -> Iterator[Checkpoint]:
    """Hold a training's checkpoint, in a folder that goes away if none is given.

    Whoever comes with the same key waits, and then finds what the first one left. A lock on a byte of an empty file, as
    in `tiles.locks`: it ends with the process, whatever ends it. Old checkpoints of other trainings are removed.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="geobacter-training-") as name:
            yield checkpoint_of(Path(name), key)
        return
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = checkpoint_of(folder, key)
    with (folder / _LOCKS).open("ab+") as file:
        byte = int(key[:7], 16)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            _log.warning("%s: another process trains by the same settings; waiting for it to end", folder)
            fcntl.lockf(file, fcntl.LOCK_EX, 1, byte)
        _remove_abandoned(folder, checkpoint.path)
        yield checkpoint


def _remove_abandoned(folder: Path, ours: Path) -> None:
    remove_temporaries(folder)
    for path in folder.glob(f"*{_SUFFIX}"):
        if path != ours and time.time() - path.stat().st_mtime > _ABANDONED_S:
            path.unlink(missing_ok=True)
