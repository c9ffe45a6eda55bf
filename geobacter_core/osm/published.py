"""What a server says of a file before it is downloaded, so that one that is there already is not fetched again."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import requests
from pydantic import BaseModel, ConfigDict

from geobacter_core.errors import ExtractError
from geobacter_core.files import read_json, write_json
from geobacter_core.settings import without_secrets

_FILE = "published.json"
_TIMEOUT_S = 60.0
_MD5 = re.compile(r"\s*([0-9a-f]{32})\b", re.IGNORECASE)
_log = logging.getLogger(__name__)


class Published(BaseModel):
    """What a server says of a file.

    Attributes:
        address: The file's, without credentials.
        etag: The entity tag, if it gives one.
        last_modified: The `Last-Modified` header, if it gives one.
        size_bytes: The `Content-Length` header, if it gives one.
        md5: The digest that is published beside the file, `<address>.md5`, hex, lower case; None where there is none.
        origin_sha256: Of the file that was downloaded when this was said; empty before that.
    """

    model_config = ConfigDict(frozen=True)

    address: str
    etag: str | None = None
    last_modified: str | None = None
    size_bytes: int | None = None
    md5: str | None = None
    origin_sha256: str = ""

    def is_same_file(self, other: "Published") -> bool:
        """Whether the server says that it is the same: by the digest, else the tag, else time and size."""
        if self.address != other.address:
            return False
        for ours, theirs in ((self.md5, other.md5), (self.etag, other.etag)):
            if ours is not None and theirs is not None:
                return ours == theirs
        known = self.last_modified is not None and self.size_bytes is not None
        return known and (self.last_modified, self.size_bytes) == (other.last_modified, other.size_bytes)


def look_up(url: str, headers: Mapping[str, str]) -> Published | None:
    """Ask a server about a file: one request without a body, and one for the digest beside it.

    Returns:
        None where it does not answer such questions; the download will show what is wrong.
    """
    try:
        answer = requests.head(url, headers=headers, timeout=_TIMEOUT_S, allow_redirects=True)
        if not answer.ok:
            return None
        size = answer.headers.get("Content-Length", "")
        return Published(
            address=without_secrets(url),
            etag=answer.headers.get("ETag"),
            last_modified=answer.headers.get("Last-Modified"),
            size_bytes=int(size) if size.isdigit() else None,
            md5=_md5_beside(url, headers),
        )
    except requests.RequestException as problem:
        _log.info("%s cannot be asked what it has (%s)", without_secrets(url), type(problem).__name__)
        return None


def _md5_beside(url: str, headers: Mapping[str, str]) -> str | None:
    """The digest in `<url>.md5`: 32 hex digits, then perhaps the file's name, as md5sum writes it."""
    if "?" in url:
        return None
    answer = requests.get(f"{url}.md5", headers=headers, timeout=_TIMEOUT_S)
    found = _MD5.match(answer.text[:200]) if answer.ok else None
    return found[1].lower() if found else None


def load_published(folder: Path) -> Published | None:
    """What was said of the file in `folder` when it was downloaded; None if nothing was."""
    try:
        return read_json(folder / _FILE, Published, ExtractError, "")
    except ExtractError:
        return None


def write_published(folder: Path, published: Published) -> None:
    """Keep it for the next time."""
    write_json(folder / _FILE, published)
