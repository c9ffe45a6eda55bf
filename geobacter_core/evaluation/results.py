"""What an evaluation finds: one figure per question, representation and model."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """How well one representation of places answers one question.

    Attributes:
        source: Where the question comes from: the name of a hidden rendering (`land use`, `amenities`), or `labels` for
            those that a user gave.
        label: The question.
        metric: `R²` or `AUC`.
        representation: What the model was given: an encoder, random weights or another baseline.
        model: `ridge` or `forest`.
        score: By blocked cross-validation.
        spread: Standard deviation of the score over the folds.
        n: Places.
    """

    source: str
    label: str
    metric: str
    representation: str
    model: str
    score: float
    spread: float
    n: int
