"""The model card: what it says, and what becomes of it when an evaluation is added or it is too long."""

from dataclasses import replace

import pytest

from geobacter_core.encoder.card import (
    MAX_DESCRIPTION,
    CardFacts,
    RegionFacts,
    description_of,
    model_card,
    with_evaluation,
)
from geobacter_core.encoder.outcomes import Figures
from geobacter_core.encoder.settings import ARCHITECTURES, LOSSES, TrainSettings
from geobacter_core.tiles.window import Scales


def region(name, **changes):
    facts = RegionFacts(
        name=name,
        osm_timestamp="2024-03-04T21:21:41Z",
        extract_sha256="e" * 64,
        triplets_digest="f" * 64,
        near="disc of 500 m",
        n_train=12_345,
        n_test=2_345,
        scores=Figures(0.412, 0.871, 0.12),
        random=Figures(0.231, 0.633, 0.04),
    )
    return replace(facts, **changes)


def facts(**changes):
    made = CardFacts(
        run_id="abc123",
        digest="d" * 64,
        style="carto/1",
        channels=("red", "green", "blue"),
        scales=Scales(200.0),
        size_px=64,
        network="resnet18",
        embedding_dim=64,
        learnt_dim=64,
        loss="infonce",
        settings={name: str(value) for name, value in TrainSettings().model_dump().items()},
        n_steps=4_321,
        train_seconds=600.4,
        regions=[region("porto"), region("liechtenstein", n_train=777)],
    )
    return replace(made, **changes)


def section(card, heading):
    return card.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_the_card_says_what_the_encoder_was_made_from():
    card = model_card(facts())
    data = section(card, "Data")
    assert "| porto | 2024-03-04T21:21:41Z | `eeeeeeeeeeee` | `ffffffffffff` | 12,345 | disc of 500 m |" in data
    assert "| liechtenstein |" in data
    assert "777" in data
    assert "red, green, blue" in data
    training = section(card, "Training")
    assert "ResNet-18" in training
    assert "InfoNCE" in training
    assert "4,321 steps in 600 seconds" in training
    assert "| temperature | 0.1 |" in training
    assert "d" * 64 in training
    assert "abc123" in training


def test_scores_stand_beside_those_of_random_weights_for_each_region():
    scores = section(model_card(facts()), "Scores")
    assert "| porto | 2,345 | 0.412 / 0.231 | 0.871 / 0.633 | 0.120 / 0.040 |" in scores
    assert "blocks of ground that no train window" in scores


def test_the_card_names_use_limits_and_licence():
    card = model_card(facts())
    assert "Not for decisions about people" in section(card, "Intended use")
    limits = section(card, "Limits")
    assert "trained on porto, liechtenstein" in limits
    assert "style carto/1, 200 m, 64 px" in limits
    licence = section(card, "Licence of the data")
    for said in ("© OpenStreetMap contributors", "Open Database License 1.0", "Produced Work", "no legal advice"):
        assert said in " ".join(licence.split())


def test_the_window_of_the_card_is_that_of_the_model():
    loading = section(model_card(facts()), "How to load")
    assert "uint8 [N, 3, 64, 64] to float32 [N, 64]" in loading
    wider = model_card(facts(scales=Scales(200.0, 800.0)))
    assert "with a wider window of 800 m around it" in wider
    assert "uint8 [N, 6, 64, 64]" in section(wider, "How to load")


def test_the_card_tells_what_is_learnt_from_what_is_counted():
    assert "Turns a place into 64 numbers." in model_card(facts())
    assert "are learnt so" not in model_card(facts())
    assert "40 of the numbers are learnt so; the last 24 say how much each channel covers" in model_card(
        facts(learnt_dim=40)
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", ARCHITECTURES)
def test_every_loss_and_network_is_cited(loss, network):
    training = section(model_card(facts(loss=loss, network=network)), "Training")
    assert training.count("20") >= 2  # each with its year


def test_the_same_facts_give_the_same_card():
    assert model_card(facts()) == model_card(facts())


def test_results_of_evaluations_stand_region_by_region_and_the_last_ones_count():
    card = model_card(facts())
    once = with_evaluation(card, "porto", "# Probes\n\n| schools | 0.61 |\n\n## More\n\ntext")
    assert "#### Probes" in section(once, "Evaluation")
    assert "| schools | 0.61 |" in section(once, "Evaluation")
    both = with_evaluation(once, "kotka", "| schools | 0.55 |")
    again = with_evaluation(both, "porto", "| schools | 0.64 |")
    results = section(again, "Evaluation")
    assert results.index("### kotka") < results.index("### porto")
    assert "0.64" in results
    assert "0.55" in results
    assert "0.61" not in again
    # All else is as it was.
    without = again.replace(f"## Evaluation\n{results}\n", "")
    assert without == card


def test_a_card_from_elsewhere_takes_results_at_its_end():
    assert with_evaluation("# geobacter/1\n\n", "porto", "good").startswith(
        "# geobacter/1\n\n## Evaluation\n\n### porto\n\ngood"
    )


def test_a_description_is_the_card_or_the_paragraphs_that_fit():
    short = "# Title\n\ntext\n"
    assert description_of(short) == short
    card = model_card(facts(regions=[region(f"region-{number}") for number in range(60)]))
    assert len(card) > MAX_DESCRIPTION
    description = description_of(card)
    assert len(description) <= MAX_DESCRIPTION
    head, _, note = description.rpartition("\n\n")
    assert card.startswith(head)
    assert "model_card.md" in note
