"""The gate: what an outcome is, the rule and its edges by numbers, and real encoders before it."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from geobacter_core.encoder.data import RegionData
from geobacter_core.encoder.gate import RULE, compare, decide, judge, region_verdict, settle
from geobacter_core.encoder.network import untrained_like
from geobacter_core.encoder.outcomes import Outcomes, outcomes
from geobacter_core.encoder.registry import CHALLENGER, Registry
from geobacter_core.encoder.settings import TrainSettings
from geobacter_core.encoder.train import encode_with, train
from geobacter_core.encoder.version import Encoder, EncoderVersion
from geobacter_core.errors import RegistryError
from geobacter_core.samples.settings import SampleSettings
from geobacter_core.samples.triplets import build_triplets

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


def vectors(*rows):
    return np.array(rows, np.float32)


def version(number, style="carto", **changes):
    made = EncoderVersion(number, "run", "0" * 64, style, 200.0, 32, 3, 16, 1, 0.8, 0.7, network="small")
    return dataclasses.replace(made, **changes)


# Outcomes


def test_a_hit_is_a_positive_nearer_than_the_negative_and_alike_is_a_half():
    anchor = vectors(EAST, EAST, EAST)
    found = outcomes(anchor, vectors(EAST, WEST, NORTH), vectors(WEST, EAST, NORTH))
    assert found.hit.tolist() == [1.0, 0.0, 0.5]
    assert found.figures.triplet_accuracy == 0.5


def test_the_rank_is_the_place_of_the_own_positive_among_all_of_the_region():
    # Positives at 0°, 30°, 60°, 90°; anchors at 0°, 0°, 60°, 30°: own positives come first, second, first, last.
    def at(*degrees):
        return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1).astype(np.float32)

    found = outcomes(at(0, 0, 61, 29), at(0, 30, 60, 90), at(180, 180, 180, 180))
    assert found.rank.tolist() == [1, 2, 1, 4]
    np.testing.assert_allclose(found.retrieval, [1, 0.5, 1, 0])  # 1 - ln(rank) / ln(4)
    assert found.figures.retrieval == pytest.approx(0.625)


def test_an_encoder_that_gives_all_places_one_vector_ranks_in_the_middle():
    same = np.tile(vectors(EAST), (101, 1))
    found = outcomes(same, same, same)
    assert set(found.rank) == {51.0}
    assert found.figures.triplet_accuracy == 0.5
    assert found.figures.recall_at_10 == 0.0


def test_many_triplets_are_ranked_as_few_are():
    rng = np.random.default_rng(0)
    anchor, positive = rng.normal(size=(2, 2500, 8)).astype(np.float32)
    expected = 1 + np.sum(anchor @ positive.T > np.sum(anchor * positive, axis=1)[:, None], axis=1)
    # By one more or less, because rounding decides whether a product with itself is more than itself.
    assert np.abs(outcomes(anchor, positive, anchor).rank - expected).max() <= 1


# The rule


def region(name, to_random, to_champion=None, noise=0.1, n=400):
    """A region's verdict with these mean differences of retrieval, and standard errors of `noise` / √n."""
    spread = noise * np.sqrt((n - 1) / n) * np.where(np.arange(n) % 2, 1.0, -1.0)

    def with_retrieval(mean):
        retrieval = mean + (spread if mean != 0.5 else np.zeros(n))
        return Outcomes(np.ones(n), np.exp((1 - retrieval) * np.log(n)))

    random = with_retrieval(0.5 - to_random)
    champion = None if to_champion is None else with_retrieval(0.5 - to_champion)
    return region_verdict(name, with_retrieval(0.5), random, champion)


def test_a_difference_has_the_standard_error_of_the_pairs():
    found = region("a", 0.1, -0.05)
    assert found.to_random.mean == pytest.approx(0.1)
    assert found.to_champion.mean == pytest.approx(-0.05)
    assert found.to_random.standard_error == pytest.approx(0.1 / 20, rel=0.01)  # 0.1 / √400
    assert str(found.to_random) == "+0.100 ± 0.005"


@pytest.mark.parametrize(
    ("to_random", "to_champion", "passed", "says"),
    [
        (0.100, None, True, "Passed: it is better than random weights, and there is no champion"),
        (0.011, None, True, "better than random"),
        (0.009, None, False, "Refused: it is not clearly better than random weights"),  # 1.8 standard errors
        (-0.10, None, False, "not clearly better than random"),
        (0.100, 0.050, True, "Passed: it is better than the champion"),
        (0.100, 0.000, True, "Passed: it is as good, within the noise, as the champion"),
        (0.100, -0.009, True, "as good, within the noise"),
        (0.100, -0.0101, False, "Refused: it is worse than the champion"),  # both 0.01 and two standard errors of 0.005
        (0.009, 0.050, False, "not clearly better than random"),
    ],
)
def test_who_becomes_champion(to_random, to_champion, passed, says):
    champion = None if to_champion is None else version(1)
    found = decide(version(2), champion, [region("a", to_random, to_champion)])
    assert found.passed is passed
    assert says in found.reason
    assert "geobacter/2: retrieval" in found.reason
    assert (champion is None) or "champion geobacter/1" in found.reason


def test_a_tiny_but_certain_loss_does_not_refuse_and_a_large_uncertain_one_neither():
    # Twenty standard errors, but 0.009; and 0.03, but one and a half standard errors.
    assert decide(version(2), version(1), [region("a", 0.1, -0.009, noise=0.009)]).passed
    assert decide(version(2), version(1), [region("a", 0.1, -0.03, noise=0.4)]).passed
    assert not decide(version(2), version(1), [region("a", 0.1, -0.03, noise=0.2)]).passed


def test_a_region_that_loses_clearly_refuses_whatever_the_others_gain():
    good = [region(name, 0.1, 0.05) for name in ("a", "b", "c")]
    assert decide(version(2), version(1), [*good, region("d", 0.1, -0.019)]).passed
    found = decide(version(2), version(1), [*good, region("d", 0.1, -0.03)])
    assert not found.passed
    assert "Refused: it is clearly worse than the champion in d (-0.030 ± 0.005)" in found.reason
    assert found.to_champion.mean == pytest.approx((0.05 * 3 - 0.03) / 4)


def test_every_region_counts_the_same_however_many_triplets_it_has():
    found = decide(version(2), version(1), [region("small", 0.1, 0.04, n=100), region("large", 0.1, 0.0, n=10_000)])
    assert found.to_champion.mean == pytest.approx(0.02)
    # √(0.01² + 0.001²) / 2
    assert found.to_champion.standard_error == pytest.approx(0.00502, rel=0.02)


@pytest.mark.parametrize("broken", ["challenger", "champion"])
def test_what_is_not_a_number_never_passes(broken):
    rng = np.random.default_rng(0)
    good = rng.normal(size=(50, 8)).astype(np.float32)
    noise = rng.normal(size=(50, 8)).astype(np.float32)
    nan = good.copy()
    nan[3] = np.nan
    found = {"challenger": outcomes(good, good, noise), "champion": outcomes(good, good, noise)}
    found[broken] = outcomes(nan, good, noise)
    assert math.isnan(found[broken].figures.retrieval)
    assert math.isnan(found[broken].figures.triplet_accuracy)
    verdict = region_verdict("a", found["challenger"], outcomes(noise, good, good), found["champion"])
    assert not decide(version(2), version(1), [verdict]).passed


def test_one_triplet_says_nothing():
    one = outcomes(vectors(EAST), vectors(EAST), vectors(WEST))
    worse = outcomes(vectors(EAST), vectors(WEST), vectors(EAST))
    assert not decide(version(2), None, [region_verdict("a", one, worse, None)]).passed


def test_the_table_and_the_rule_say_the_numbers():
    table = decide(version(2), version(1), [region("a", 0.1, 0.05), region("b", 0.2, 0.05)]).table()
    lines = table.splitlines()
    assert lines[0] == (
        "| region | test triplets | geobacter/2 | geobacter/1 | random weights | to champion | to random |"
    )
    assert lines[2] == "| a | 400 | 0.500 (1.000) | 0.450 (1.000) | 0.400 (1.000) | +0.050 ± 0.005 | +0.100 ± 0.005 |"
    assert lines[4].startswith("| **mean** | 800 |")
    assert lines[4].endswith("| +0.050 ± 0.004 | +0.150 ± 0.004 |")
    assert "| no champion |" in decide(version(2), None, [region("a", 0.1)]).table()
    for number in ("2 standard errors", "0.01", "3 standard errors", "0.02"):
        assert number in RULE


# Real encoders


@pytest.fixture(scope="module")
def regions(helsinki, tmp_path_factory):
    """Helsinki with 1,500 triplets, of which some 200 are for testing."""
    path = tmp_path_factory.mktemp("gate") / "triplets.parquet"
    extract, settings = helsinki.extract, SampleSettings(sample_count=1500, size_m=200, context_m=0)
    triplets = build_triplets(path, helsinki.cache, extract.box, extract.ground, settings)
    return [RegionData("helsinki", triplets, helsinki.cache)]


@pytest.fixture(scope="module")
def trained(regions):
    """An encoder after so many steps, by its version number."""
    settings = TrainSettings(
        network="small",
        size_px=32,
        embedding_dim=32,
        surroundings=False,
        projection_dim=0,
        batch_size=32,
        learning_rate=0.003,
    )

    def make(number, steps, seed=1):
        network = train(regions, settings.model_copy(update={"max_steps": steps, "seed": seed})).network
        return network, Encoder(version(number, seed=seed), encode_with(network, torch.device("cpu")))

    return make


@pytest.fixture(scope="module")
def champion(trained):
    return trained(1, 40)


def untrained(encoder, like):
    network = untrained_like(like, encoder.version.seed)
    return Encoder(encoder.version, encode_with(network, torch.device("cpu")))


def test_an_encoder_of_40_steps_passes_where_there_is_no_champion(regions, champion):
    network, encoder = champion
    found = compare(regions, encoder, untrained(encoder, network), None)
    assert found.passed, found.reason
    assert found.regions[0].n == len(regions[0].triplets.lonlat("test"))


def test_one_step_of_training_is_refused_next_to_a_real_champion(regions, trained, champion):
    network, challenger = trained(2, 1)
    found = compare(regions, challenger, untrained(challenger, network), champion[1])
    assert not found.passed
    assert found.to_champion.mean < -2 * found.to_champion.standard_error
    assert "Refused" in found.reason


def finding_nothing(like):
    return Encoder(like.version, lambda windows: np.tile(np.float32([1] + [0] * 31), (len(windows), 1)))


def test_one_step_is_refused_even_if_random_weights_found_nothing(regions, trained, champion):
    """The rule's second part, alone."""
    _, challenger = trained(2, 1)
    found = compare(regions, challenger, finding_nothing(challenger), champion[1])
    assert not found.passed
    assert "Refused: it is worse than the champion." in found.reason


def test_an_equally_long_training_with_another_seed_may_take_the_champions_place(regions, trained, champion):
    """Not with every seed: the rule knows the chance of the windows, and not that of the training."""
    _, challenger = trained(2, 40, seed=3)
    found = compare(regions, challenger, finding_nothing(challenger), champion[1])
    assert found.passed, found.reason


def test_each_encoder_is_measured_on_windows_of_its_own_size_around_the_same_places(regions):
    """Encoders that only see how large their windows are; both find the same, so the places are the same."""
    seen = {}

    def looking(number, **changes):
        def encode(windows):
            seen.setdefault(number, []).append(tuple(windows.shape[1:]))
            mean = np.asarray(windows, np.float32)[:, :3].mean(axis=(2, 3))
            rows = np.pad(mean, ((0, 0), (0, 13))).astype(np.float32)
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

        return Encoder(version(number, **changes), encode)

    ours, theirs = looking(2), looking(1, size_px=64, context_m=400.0)
    found = compare(regions, ours, ours, theirs)
    assert set(seen[2]) == {(3, 32, 32)}
    assert set(seen[1]) == {(6, 64, 64)}
    # The mean colour of 200 m of ground hardly depends on the pixels.
    assert found.regions[0].challenger.retrieval == pytest.approx(found.regions[0].champion.retrieval, abs=0.05)


def test_the_challenger_of_the_registry_is_judged(registration, helsinki):
    registry = Registry(helsinki.settings)
    regions = [RegionData("helsinki", helsinki.triplets, helsinki.cache)]
    assert registry.version(CHALLENGER) == registration.version
    found = judge(registry, regions)
    assert found.challenger == registration.version
    assert found.champion is None
    assert found.regions[0].n == registration.trained.scores.n
    accuracy = found.regions[0].challenger.triplet_accuracy
    assert accuracy == pytest.approx(registration.trained.scores.triplet_accuracy, abs=0.1)
    random_accuracy = found.regions[0].random.triplet_accuracy
    assert random_accuracy == pytest.approx(registration.trained.random.triplet_accuracy, abs=0.1)
    try:
        registry.promote(registration.version)
        again = judge(registry, regions)
        assert again.champion == registration.version
        assert (again.to_champion.mean, again.to_champion.standard_error) == (0.0, 0.0)
        assert again.passed == found.passed
    finally:
        registry.client.delete_registered_model_alias("geobacter", "champion")


@pytest.mark.parametrize(
    ("to_random", "promotion", "says", "champions"),
    [
        (0.1, "automatic", "It is now champion.", True),
        (0.1, "by-hand", "promote it with: geobacter encoder promote {version}", False),
        (0.0, "automatic", "There is still no champion.", False),
        (0.0, "by-hand", "There is still no champion.", False),
    ],
)
def test_what_becomes_of_a_challenger(registration, helsinki, to_random, promotion, says, champions):
    registry = Registry(dataclasses.replace(helsinki.settings, promotion=promotion))
    verdict = decide(registration.version, None, [region("helsinki", to_random)])
    try:
        assert settle(registry, verdict).endswith(says.format(version=registration.version.version))
        assert registry.find_champion() == (registration.version if champions else None)
        registry.promote(registration.version)
        if not verdict.passed:
            assert settle(registry, verdict) == "The champion stays."
    finally:
        registry.client.delete_registered_model_alias("geobacter", "champion")


def test_a_champion_of_an_older_style_is_not_compared_with(registration, helsinki):
    """No tile is left that it could be measured on or make a table of."""
    registry = Registry(helsinki.settings)
    regions = [RegionData("helsinki", helsinki.triplets, helsinki.cache)]
    number = str(registration.version.version)
    try:
        registry.promote(registration.version)
        old = registry.client.create_model_version(
            "geobacter",
            registry.client.get_model_version("geobacter", number).source,
            registration.version.run_id,
            tags={**registry.client.get_model_version("geobacter", number).tags, "style_version": "0"},
        )
        registry.client.set_registered_model_alias("geobacter", "champion", str(old.version))
        found = judge(registry, regions)
        assert found.champion is None
        assert "no champion to compare with" in found.reason or not found.passed
        registry.client.set_registered_model_alias("geobacter", CHALLENGER, str(old.version))
        with pytest.raises(RegistryError, match=r"style 'carto/0', the tiles are 'carto/1'. Materialise"):
            judge(registry, regions)
    finally:
        registry.client.set_registered_model_alias("geobacter", CHALLENGER, number)
        registry.client.delete_registered_model_alias("geobacter", "champion")
        registry.client.delete_model_version("geobacter", str(old.version))


def test_an_empty_registry_has_nobody_to_judge(tmp_path, helsinki):
    empty = Registry(dataclasses.replace(helsinki.settings, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"))
    assert empty.version(CHALLENGER) is None
    assert empty.versions() == []
    assert empty.aliases() == {}
    with pytest.raises(RegistryError, match=r"no geobacter@challenger to judge. Materialise location_encoder"):
        judge(empty, [])
