"""How triplets are drawn: the settings, apart from the drawing, so that a UI can show them without it."""

from pydantic import BaseModel, ConfigDict, Field


class SampleSettings(BaseModel):
    """How triplets are drawn: the original Geobacter's values, scaled down where the region is small."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sample_count: int | None = Field(default=None, ge=10, le=20_000_000)
    """Triplets to draw; by default 1,500 per km² of ground, 4,000 to 100,000."""

    size_m: float = Field(default=200.0, ge=20, le=2000)
    """Side of the windows in ground metres (the original's --buffer 100 is 200 m)."""

    distance_m: float | None = Field(default=None, gt=0, le=50_000)
    """Largest distance of a positive; by default 500 m (the original's), or a tenth of the region's side."""

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
