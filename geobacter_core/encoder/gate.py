"""The gate: whether a challenger becomes champion, by comparing both on the same held-out places of every region.

The score that carries the rule is retrieval on a logarithmic scale (`Outcomes.retrieval`). Every test positive of a
region is a negative in it, so it tells encoders apart with few triplets, and it has room left where triplet accuracy
is beyond 0.9. Reciprocal rank and recall@10 hang on the few anchors whose positive comes among the first. On the 525
test triplets of Helsinki and Kotka, one step of training against 150 was 9.2 standard errors (4.5 with another seed)
by this score, 9.6 (3.8) by triplet accuracy, 2.8 (1.4) by reciprocal rank and 2.8 (1.4) by recall@10; six pairs of
equally long trainings with different seeds stayed within 1.7 standard errors.

Standard errors are those of paired differences over test triplets. What another seed would have made of the training
is not in them; that is what the least differences that count (`_LEAST`, `_LEAST_IN_REGION`) are for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geobacter_core.encoder.data import RegionData, check_regions
from geobacter_core.encoder.evaluate import TestWindows
from geobacter_core.encoder.outcomes import Figures, Outcomes, measure
from geobacter_core.encoder.registry import CHALLENGER, Registry
from geobacter_core.encoder.version import MODEL_NAME, Encoder, EncoderVersion
from geobacter_core.errors import RegistryError

_ERRORS = 2.0
_LEAST = 0.01
_ERRORS_IN_REGION = 3.0
_LEAST_IN_REGION = 0.02

RULE = (
    "A test triplet's score is 1 - ln(rank) / ln(N), rank being the place by cosine of the anchor's own positive among "
    "the N test positives of its region. All encoders are measured on the same places; each region counts the same. "
    "The challenger passes if (1) its mean is above that of the same network with random weights by more than "
    f"{_ERRORS:g} standard errors of the paired difference, and (2) it is not below the champion's by more than both "
    f"{_ERRORS:g} standard errors and {_LEAST:g}, and (3) in no region is it below the champion's by more than both "
    f"{_ERRORS_IN_REGION:g} standard errors and {_LEAST_IN_REGION:g}. As good as the champion within that noise "
    "passes, so that a retraining on a newer map takes over."
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference of scores and its standard error; NaN with fewer than two triplets."""

    mean: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.standard_error:.3f}"

    def is_above_noise(self) -> bool:
        """Whether it is positive beyond noise; never, if it is not a number."""
        return self.mean > _ERRORS * self.standard_error

    def is_at_least(self, errors: float, least: float) -> bool:
        """Whether it is not negative by more than both so many standard errors and `least`; never, if not a number."""
        return math.isfinite(self.standard_error) and self.mean >= -max(errors * self.standard_error, least)


@dataclass(frozen=True, slots=True)
class RegionVerdict:
    """The figures of one region.

    Attributes:
        region: Its name.
        n: Test triplets.
        challenger: Of the challenger.
        random: Of the challenger's network with random weights.
        champion: Of the champion, if there is one to compare with.
        to_random: Retrieval, challenger less random weights.
        to_champion: Retrieval, challenger less champion.
    """

    region: str
    n: int
    challenger: Figures
    random: Figures
    champion: Figures | None
    to_random: Difference
    to_champion: Difference | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of the challenger, and the figures behind it.

    Attributes:
        passed: Whether it may become champion.
        reason: A sentence or two.
        challenger: Who was judged.
        champion: Against whom; None if there was none, or none that takes the present windows.
        regions: The figures, region by region.
        to_random: Mean over regions.
        to_champion: Mean over regions.
    """

    passed: bool
    reason: str
    challenger: EncoderVersion
    champion: EncoderVersion | None
    regions: tuple[RegionVerdict, ...]
    to_random: Difference
    to_champion: Difference | None

    def table(self) -> str:
        """The figures as a Markdown table: retrieval, and in brackets triplet accuracy."""
        rows = [
            (
                region.region,
                f"{region.n:,}",
                _shown(region.challenger),
                _shown(region.champion),
                _shown(region.random),
                str(region.to_champion or "–"),
                str(region.to_random),
            )
            for region in self.regions
        ]
        n = sum(region.n for region in self.regions)
        mean = ("**mean**", f"{n:,}", "", "", "", str(self.to_champion or "–"), str(self.to_random))
        champion = self.champion.name if self.champion else "no champion"
        header = (
            "region", "test triplets", self.challenger.name, champion, "random weights", "to champion", "to random",
        )  # fmt: skip
        lines = [header, ("---", "--:", "--:", "--:", "--:", "--:", "--:"), *rows, mean]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def judge(registry: Registry, regions: Sequence[RegionData]) -> Verdict:
    """Measure challenger, champion and random weights on the test places of every region, and apply the rule.

    Raises:
        RegistryError: There is no challenger, or it takes windows of another style than the regions' tiles.
        EncoderError: The regions do not fit together.
    """
    challenger = registry.version(CHALLENGER)
    if challenger is None:
        raise RegistryError(f"There is no {MODEL_NAME}@{CHALLENGER} to judge. Materialise location_encoder.")
    windows = check_regions(regions)
    style = f"{windows.style}/{windows.style_version}"
    if challenger.style_label != style:
        raise RegistryError(
            f"{challenger.name}, the challenger, takes windows of style '{challenger.style_label}', the tiles are "
            f"'{style}'. Materialise location_encoder in that style."
        )
    ours = registry.load(challenger)
    champion = registry.find_champion()
    rival: Encoder | None = None
    if champion is not None and (champion.style_label, champion.n_channels) == (style, windows.n_channels):
        rival = ours if champion == challenger else registry.load(champion)
    return compare(regions, ours, registry.load_untrained(challenger), rival)


def settle(registry: Registry, verdict: Verdict) -> str:
    """Promote a challenger that passed, unless a person is to do that; says in a sentence what became of it."""
    challenger = verdict.challenger
    if not verdict.passed:
        return "The champion stays." if registry.find_champion() else "There is still no champion."
    if registry.settings.promotion == "by-hand":
        return (
            "It is not promoted, because GEOBACTER_PROMOTE is by-hand; promote it with: "
            f"geobacter encoder promote {challenger.version}"
        )
    registry.promote(challenger)
    return f"It is now {registry.champion_alias}."


def compare(
    regions: Sequence[RegionData], challenger: Encoder, untrained: Encoder, champion: Encoder | None
) -> Verdict:
    """Measure encoders on the test places of every region, each on windows of its own size, and apply the rule."""
    found: list[RegionVerdict] = []
    for region in regions:  # one at a time, because windows of many regions do not fit into memory together
        test = _test_windows(region, challenger.version)
        (ours,) = measure(test, challenger.encode, 1)
        (random_,) = measure(test, untrained.encode, 1)
        theirs: Outcomes | None = None
        if champion is not None:
            has_same = champion.version.window == challenger.version.window
            (theirs,) = measure(test if has_same else _test_windows(region, champion.version), champion.encode, 1)
        found.append(region_verdict(region.name, ours, random_, theirs))
    return decide(challenger.version, champion.version if champion else None, found)


def region_verdict(region: str, challenger: Outcomes, random: Outcomes, champion: Outcomes | None) -> RegionVerdict:
    """Compare outcomes on the same triplets of a region."""
    return RegionVerdict(
        region=region,
        n=len(challenger),
        challenger=challenger.figures,
        random=random.figures,
        champion=champion.figures if champion else None,
        to_random=_paired(challenger, random),
        to_champion=_paired(challenger, champion) if champion else None,
    )


def decide(challenger: EncoderVersion, champion: EncoderVersion | None, regions: Sequence[RegionVerdict]) -> Verdict:
    """Apply the rule to the figures of all regions."""
    to_random = _mean([region.to_random for region in regions])
    against = [region.to_champion for region in regions if region.to_champion is not None]
    to_champion = _mean(against) if champion is not None else None
    n_regions = f"{len(regions)} region{'s' if len(regions) != 1 else ''}"
    to_rival = f" and {to_champion} to that of champion {champion.name}" if champion else ""
    figures = f"{challenger.name}: retrieval {to_random} to random weights{to_rival}, over {n_regions}."
    clearly_worse = [
        f"{region.region} ({region.to_champion})"
        for region in regions
        if region.to_champion and not region.to_champion.is_at_least(_ERRORS_IN_REGION, _LEAST_IN_REGION)
    ]
    if not to_random.is_above_noise():
        passed, why = False, "Refused: it is not clearly better than random weights."
    elif to_champion is None:
        passed, why = True, "Passed: it is better than random weights, and there is no champion to compare with."
    elif not to_champion.is_at_least(_ERRORS, _LEAST):
        passed, why = False, "Refused: it is worse than the champion."
    elif clearly_worse:
        passed, why = False, f"Refused: it is clearly worse than the champion in {', '.join(clearly_worse)}."
    else:
        passed, why = True, f"Passed: it is {_how(to_champion)} the champion."
    return Verdict(passed, f"{why} {figures}", challenger, champion, tuple(regions), to_random, to_champion)


def _how(difference: Difference) -> str:
    return "better than" if difference.is_above_noise() else "as good, within the noise, as"


def _test_windows(region: RegionData, version: EncoderVersion) -> TestWindows:
    return TestWindows([region], version.size_px, version.scales)


def _paired(ours: Outcomes, theirs: Outcomes) -> Difference:
    difference = ours.retrieval - theirs.retrieval
    n = len(difference)
    if n < 2:
        return Difference(math.nan, math.nan)
    return Difference(float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(n)))


def _mean(differences: Sequence[Difference]) -> Difference:
    """The mean over regions, each counting the same."""
    means = np.array([each.mean for each in differences])
    errors = np.array([each.standard_error for each in differences])
    return Difference(float(means.mean()), float(np.sqrt(np.sum(errors**2)) / len(errors)))


def _shown(figures: Figures | None) -> str:
    return "–" if figures is None else f"{figures.retrieval:.3f} ({figures.triplet_accuracy:.3f})"
