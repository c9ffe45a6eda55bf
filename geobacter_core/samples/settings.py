"""How triplets are drawn: the settings, apart from the drawing, so that a UI can show them without it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Near = Literal["disc", "ring", "overlap"]

MAX_REACH = 1.75
"""Training may turn, move and widen a window so that it reaches so many half sides from its centre; the split keeps
room for it."""


class SampleSettings(BaseModel):
    """How triplets are drawn; docs/encoder.md says why so."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sample_count: int | None = Field(default=None, ge=10, le=20_000_000)
    """Triplets to draw; by default 1,500 per km² of ground, 4,000 to 100,000."""

    size_m: float = Field(default=100.0, ge=20, le=2000)
    """Side of the windows in ground metres (the original's --buffer 100 is 200 m)."""

    context_m: float | None = Field(default=None, ge=0, le=4000)
    """Side of a second, wider window around the same place, which the encoder sees as a second scale; 0 for none. By
    default 400 m, or 200 m in a region less than 2 km wide or high. One encoder takes the smallest of its regions'."""

    distance_m: float | None = Field(default=None, gt=0, le=50_000)
    """Largest distance of a positive; by default 100 m (the original's is 500 m), or a tenth of the region's side."""

    near: Near = "disc"
    """Where a positive lies: anywhere in the `disc` of that distance (each spot alike likely), at any distance of
    it alike likely (`ring`, so mostly nearer), or moved by up to distance_m along both axes (`overlap`, as in
    Loc2Vec: with a distance_m below size_m the two windows share ground)."""

    negative_min_m: float | None = Field(default=None, ge=0, le=500_000)
    """Smallest distance of a negative; by default twice distance_m. Where a split has no room, the farthest found."""

    block_m: float | None = Field(default=None, ge=30, le=100_000)
    """Side of the blocks of the spatial split; by default a sixth of the region's side, up to 4 km."""

    min_entropy: float = Field(default=0.5, ge=0, le=8)
    """A window below this is empty; bits (Shannon, of the channel with most of it, 0 to 8)."""

    empty_share: float = Field(default=0.05, ge=0, le=0.5)
    """Share of triplets whose anchor may be empty."""

    seed: int = Field(default=1, ge=0, le=2**31 - 1)
    """Of every random choice."""

    @model_validator(mode="after")
    def _context_is_wider(self) -> "SampleSettings":
        if self.context_m and self.context_m <= self.size_m:
            raise ValueError(f"context_m ({self.context_m:g}) must be more than size_m ({self.size_m:g})")
        return self

    @property
    def extent_m(self) -> float:
        """Side of the widest window, the context being known."""
        return max(self.size_m, self.context_m or 0.0)
