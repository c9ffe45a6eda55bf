"""How a tile server is asked: the settings, apart from the asking, so that a UI can show them without it."""

from pydantic import BaseModel, ConfigDict, Field


class ServerSettings(BaseModel):
    """How patiently a tile server is asked. Only regions whose style is drawn by one need it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    connections: int = Field(default=8, ge=1, le=256)
    """Requests under way at once."""

    timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """For one answer, from connecting to its last byte."""

    tries: int = Field(default=8, ge=1, le=100)
    """How often a tile is asked for when the answer is wrong, or none comes."""

    wait_s: float = Field(default=300.0, ge=0, le=86_400)
    """How long a tile is waited for while the server answers that it is not there yet, or that it is busy."""

    pause_s: float = Field(default=0.5, ge=0, le=60)
    """Before the second try; it doubles from try to try, up to ten seconds, less a random part."""
