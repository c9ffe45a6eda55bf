"""How an encoder is trained: the settings, apart from the training, so that a UI can show them without torch."""

from pydantic import BaseModel, ConfigDict, Field, field_validator


class TrainSettings(BaseModel):
    """How an encoder is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    size_px: int = Field(default=64, ge=32, le=512)
    """Side of the windows in pixels, a multiple of 32."""

    embedding_dim: int = Field(default=64, ge=2, le=2048)
    """D, the length of an embedding (the original's is 16)."""

    batch_size: int = Field(default=64, ge=2, le=4096)
    """Triplets a step."""

    max_epochs: int = Field(default=20, ge=1, le=10_000)
    """Ends the training, if max_seconds does not do so before."""

    max_seconds: float = Field(default=600.0, gt=0)
    """Ends the training, if max_epochs does not do so before. Evaluation does not count."""

    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """Of AdamW, at its peak."""

    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """Of AdamW."""

    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the budget in which the learning rate rises; after it, it falls as a cosine."""

    margin: float = Field(default=0.3, gt=0, le=4)
    """Of the triplet loss, in squared distance of unit vectors."""

    max_shift: float = Field(default=0.1, ge=0, le=0.1)
    """Windows are moved by up to this share of their side."""

    seed: int = Field(default=1, ge=0, le=2**31 - 1)
    """Of weights, order and augmentation."""

    window_memory_mb: int = Field(default=2048, ge=64)
    """Decoded chunks that are kept in memory."""

    @field_validator("size_px")
    @classmethod
    def _suits_the_network(cls, size_px: int) -> int:
        if size_px % 32:
            raise ValueError("ResNet halves a window five times; give a multiple of 32")
        return size_px
