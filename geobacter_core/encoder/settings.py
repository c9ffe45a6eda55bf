"""How an encoder is trained: the settings, apart from the training, so that a UI can show them without torch."""

import math
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from geobacter_core.samples.settings import MAX_REACH

Architecture = Literal["small", "resnet18", "resnet34", "resnet50"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
LossName = Literal["infonce", "margin", "softpn", "multi_similarity"]
LOSSES: tuple[LossName, ...] = get_args(LossName)


class TrainSettings(BaseModel):
    """How an encoder is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    size_px: int = Field(default=64, ge=32, le=512)
    """Side of the windows in pixels, a multiple of 32."""

    network: Architecture = "small"
    """The backbone: torchvision's ResNet-18, 34 or 50, or `small`, about 0.4 M parameters."""

    embedding_dim: int = Field(default=320, ge=2, le=2048)
    """D, the length of an embedding (the original's is 16)."""

    shares: bool = True
    """An embedding ends with mean and deviation of each channel, at each of S scales and in its middle: 4 S C of the D
    numbers. The rest is learnt."""

    surroundings: bool = True
    """The shares are told of the ground around, too, twice as wide as the widest window, from which nothing is learnt:
    2 C of the D numbers. Where `shares` is false, without effect."""

    loss: LossName = "infonce"
    """`margin` is the original's, `softpn` Loc2Vec's; these take negatives from the triplets. `infonce` and
    `multi_similarity` take them from the batch."""

    margin: float = Field(default=1.5, gt=0, le=4)
    """Of the margin loss, in squared distance of unit vectors."""

    temperature: float = Field(default=0.1, gt=0, le=10)
    """Of InfoNCE."""

    vicreg_weight: float = Field(default=0.0, ge=0, le=100)
    """Weight of VICReg's variance and covariance terms, added to the loss."""

    projection_dim: int = Field(default=64, ge=0, le=4096)
    """The loss sees what is learnt through a perceptron of that many outputs, thrown away afterwards; 0 for none."""

    false_negative_m: float | None = Field(default=None, ge=0, le=50_000)
    """Places nearer than this to each other are no negatives of each other (in-batch losses); by default the distance
    within which positives lie."""

    false_negative_difference: float = Field(default=2.0, ge=0, le=255)
    """Nor are windows whose thumbnails differ by less than this everywhere, 0 to 255 (in-batch losses)."""

    batch_size: int = Field(default=128, ge=2, le=4096)
    """Pairs or triplets a step."""

    max_epochs: int = Field(default=1000, ge=1, le=100_000)
    """Ends the training, if max_seconds or max_steps does not do so before. An epoch shows each pair `echoes` times."""

    max_steps: int | None = Field(default=None, ge=1)
    """Ends the training, if max_seconds or max_epochs does not do so before."""

    max_seconds: float = Field(default=600.0, gt=0)
    """Ends the training, if max_epochs or max_steps does not do so before. The first steps are timed, and how many fit
    is planned from that; max_steps of that number repeats the training. Evaluation does not count."""

    patience: int = Field(default=0, ge=0)
    """Ends the training when the mean loss has not fallen for so many twentieths of the plan; 0: never."""

    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """Of AdamW, at its peak."""

    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """Of AdamW."""

    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; after it, it falls as a cosine."""

    max_shift: float = Field(default=0.1, ge=0, le=0.1)
    """Windows are moved by up to this share of their side."""

    rotate: bool = True
    """Windows are turned by any angle and mirrored."""

    echoes: int = Field(default=4, ge=1, le=8)
    """So often the windows that were cut are shown, each time turned by other right angles, or mirrored; where `rotate`
    is false, once. More leave more of the processors to the network."""

    max_scale: float = Field(default=1.0, ge=1, le=1.25)
    """Windows are widened or narrowed by up to this factor."""

    channel_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a channel of a view is blanked. For thematic styles."""

    seed: int = Field(default=1, ge=0, le=2**31 - 1)
    """Of weights, order and augmentation."""

    window_memory_mb: int = Field(default=4096, ge=64)
    """Decoded chunks that are kept in memory, at most."""

    checkpoint_seconds: float = Field(default=30.0, ge=0)
    """A checkpoint is written after so much training, and after each evaluation."""

    n_processes: int | None = Field(default=None, ge=1, le=64)
    """Processes that share every batch; by default one a CUDA GPU, else one. Each normalises by its own share."""

    @property
    def n_echoes(self) -> int:
        """How often each window that was cut is shown."""
        return self.echoes if self.rotate else 1

    @field_validator("size_px")
    @classmethod
    def _suits_the_network(cls, size_px: int) -> int:
        if size_px % 32:
            raise ValueError("ResNet halves a window five times; give a multiple of 32")
        return size_px

    @model_validator(mode="after")
    def _views_stay_within_reach(self) -> "TrainSettings":
        if math.sqrt(2) * self.max_scale + 2 * self.max_shift > MAX_REACH:
            raise ValueError(
                f"max_scale ({self.max_scale:g}) and max_shift ({self.max_shift:g}) together reach past the room "
                f"between train and test windows; keep 1.414 · max_scale + 2 · max_shift at {MAX_REACH:g} or less"
            )
        return self
