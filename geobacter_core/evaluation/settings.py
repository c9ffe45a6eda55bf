"""How encoders are evaluated: the settings, apart from the evaluation, so that a UI can show them without it."""

from pydantic import BaseModel, ConfigDict, Field


class EvaluationSettings(BaseModel):
    """How an encoder is evaluated on a region."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    n_places: int = Field(default=8000, ge=200, le=100_000)
    """Cells of a region that hidden semantics are asked about, at most; drawn at random."""

    forest: bool = True
    """Probe with a random forest too, not with ridge regression alone: some minutes more."""

    curve_seeds: int = Field(default=5, ge=0, le=100)
    """Draws of training labels for each point of the label curve; 0 for no curve."""

    seed: int = Field(default=1, ge=0, le=2**31 - 1)
    """Of the cells, the folds, the forest and the random weights."""
