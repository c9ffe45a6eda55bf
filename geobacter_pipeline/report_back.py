"""What assets tell people: metadata, pictures, progress, and errors that read well."""

import base64
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import dagster as dg
from tqdm import tqdm

from geobacter_core.errors import DownloadError, GeobacterError

if TYPE_CHECKING:
    import PIL.Image

_LOG_EVERY_S = 5.0
_PICTURE_PX = 720


@contextmanager
def core_errors() -> Iterator[None]:
    """Let the core's errors through as failures with their message, not retried unless it was a download."""
    try:
        yield
    except DownloadError:
        raise
    except GeobacterError as problem:
        raise dg.Failure(str(problem), allow_retries=False) from problem


class Progress:
    """A bar where a person waits at a terminal, else a timed line in the run's log."""

    def __init__(self, context: dg.AssetExecutionContext, unit: str) -> None:
        self._context = context
        self._unit = unit
        where = f" {context.partition_key}" if context.has_partition_key else ""
        self._label = f"{context.asset_key.to_user_string()}{where}"
        self._bar: tqdm[None] | None = None
        self._last_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Say that `done` of `total` units are done."""
        if self._bar is None:
            # disable=None: no bar unless stderr is a terminal.
            self._bar = tqdm(total=total, desc=self._label, unit=f" {self._unit}", disable=None, leave=False)
        if not self._bar.disable:
            self._bar.n = min(done, total)
            self._bar.set_postfix_str(note, refresh=True)
        elif time.monotonic() - self._last_s >= _LOG_EVERY_S:
            self._last_s = time.monotonic()
            self._context.log.info(f"{done:,.0f} of {total:,.0f} {self._unit}{f', {note}' if note else ''}")


def picture(image: "PIL.Image.Image") -> dg.MarkdownMetadataValue:
    """An image as metadata that the UI shows, small enough for the event log."""
    small = image.convert("RGB")
    small.thumbnail((_PICTURE_PX, 2 * _PICTURE_PX))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=82)
    return dg.MetadataValue.md(f"![picture](data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()})")


def columns(described: dict[str, tuple[str, str]]) -> dg.TableSchema:
    """Column name to type and description, as the schema that the UI shows."""
    return dg.TableSchema(
        columns=[dg.TableColumn(name, type_, description) for name, (type_, description) in described.items()]
    )
