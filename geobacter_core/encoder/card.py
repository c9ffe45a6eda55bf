"""Model cards: what a version was made from, how good it is, what it is for, and what it cannot know.

After Mitchell et al.: "Model cards for model reporting" (FAT* 2019).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from geobacter_core.encoder.outcomes import Figures
from geobacter_core.encoder.settings import Architecture, LossName
from geobacter_core.tiles.window import Scales

MODEL_CARD = "model_card.md"
"""Name of the card among a run's artifacts."""

MAX_DESCRIPTION = 5000
"""Characters that MLflow's databases hold of a version's description."""

_EVALUATION = "## Evaluation"
_AFTER_EVALUATION = "## Intended use"
_MORE = f"\n\n*The rest is in `{MODEL_CARD}`, an artifact of the run.*\n"

_LOSSES: dict[LossName, str] = {
    "infonce": "InfoNCE over the batch (van den Oord, Li, Vinyals: Representation learning with contrastive predictive "
    "coding, 2018; Chen, Kornblith, Norouzi, Hinton: A simple framework for contrastive learning, ICML 2020)",
    "margin": "margin triplet loss on squared distances (Schroff, Kalenichenko, Philbin: FaceNet, CVPR 2015)",
    "softpn": "SoftPN (Balntas, Johns, Tang, Mikolajczyk: PN-Net, 2016; as in sentiance's Loc2Vec, 2018)",
    "multi_similarity": "multi-similarity loss (Wang, Han, Huang, Dong, Scott, CVPR 2019)",
}
_NETWORKS: dict[Architecture, str] = {
    "small": "a small residual network of about 0.4 M parameters (after He, Zhang, Ren, Sun, CVPR 2016)",
    "resnet18": "ResNet-18 (He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016)",
    "resnet34": "ResNet-34 (He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016)",
    "resnet50": "ResNet-50 (He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016)",
}


_LICENCE = """## Licence of the data

Map data © OpenStreetMap contributors, under the [Open Database License 1.0](https://www.openstreetmap.org/copyright)
(ODbL). Windows and pictures drawn from it are what the ODbL calls a Produced Work: whoever uses them publicly says
that they come from OpenStreetMap and that its data is under the ODbL. Whether weights or tables of embeddings are a
Produced Work, or a Derivative Database, which would have to be offered under the ODbL too, is not settled. Name the
source in either case, and look at the [guidelines](https://osmfoundation.org/wiki/Licence/Community_Guidelines)
before you publish a table. This is no legal advice.
"""


@dataclass(frozen=True, slots=True)
class RegionFacts:
    """What one training region brought, and how the encoder does there.

    Attributes:
        name: Of the region.
        osm_timestamp: State of the map, ISO 8601.
        extract_sha256: Hex digest of the extract.
        triplets_digest: Hex digest of the table of triplets.
        near: How positives were drawn, in words.
        n_train: Triplets for training.
        n_test: Test triplets that the scores are over.
        scores: Of the encoder on its test triplets.
        random: Of the same network with random weights.
    """

    name: str
    osm_timestamp: str
    extract_sha256: str
    triplets_digest: str
    near: str
    n_train: int
    n_test: int
    scores: Figures
    random: Figures


@dataclass(frozen=True, slots=True)
class CardFacts:
    """All that a card is written from.

    Attributes:
        run_id: The MLflow run.
        digest: Hex SHA-256 of the weights.
        style: `name/version`.
        channels: Their names.
        scales: Sides of its windows.
        size_px: Side of all of them in pixels.
        network: Backbone.
        embedding_dim: D.
        learnt_dim: How many of the D numbers are learnt; the others are the channels' mean and deviation.
        loss: By name.
        settings: Every setting of the training, as text.
        n_steps: Steps that were trained.
        train_seconds: Time that the steps took.
        regions: One for each training region.
    """

    run_id: str
    digest: str
    style: str
    channels: Sequence[str]
    scales: Scales
    size_px: int
    network: Architecture
    embedding_dim: int
    learnt_dim: int
    loss: LossName
    settings: Mapping[str, str]
    n_steps: int
    train_seconds: float
    regions: Sequence[RegionFacts]


def model_card(facts: CardFacts) -> str:
    """The card, Markdown; the same facts, the same text."""
    return "\n".join([_summary(facts), _scores(facts), _use(facts), _LICENCE, _data(facts), _training(facts)])


def with_evaluation(card: str, region: str, markdown: str) -> str:
    """The card with the results of an evaluation on a region, in place of earlier ones of the region."""
    before, heading, after = card.partition(_AFTER_EVALUATION)
    scores, _, present = before.partition(f"{_EVALUATION}\n")
    sections = [section.strip() for section in re.split(r"^(?=### )", present, flags=re.MULTILINE)]
    title = f"### {region}"
    others = [section for section in sections if section and section.splitlines()[0] != title]
    # Headings within the results must not end the region's section.
    results = re.sub(r"^#+ ", "#### ", markdown.strip(), flags=re.MULTILINE)
    body = "\n\n".join(sorted([*others, f"{title}\n\n{results}"]))
    return f"{scores}{_EVALUATION}\n\n{body}\n\n{heading}{after}"


def description_of(card: str) -> str:
    """The card, or as many of its paragraphs as fit the description of a version."""
    if len(card) <= MAX_DESCRIPTION:
        return card
    kept = card[: MAX_DESCRIPTION - len(_MORE)]
    return kept[: max(kept.rfind("\n\n"), 0)].rstrip() + _MORE


def _summary(facts: CardFacts) -> str:
    names = ", ".join(region.name for region in facts.regions)
    scales = facts.scales
    context = f", with a wider window of {scales.context_m:g} m around it," if scales.context_m else ""
    return f"""# Geobacter encoder {facts.digest[:12]}

Turns a place into {facts.embedding_dim} numbers. It sees a window of {scales.size_m:g} m of ground{context} drawn from
OpenStreetMap in the style {facts.style}, and was trained, without labels, on the rule that near places are more related
than distant ones (Tobler 1970; Jean et al.: Tile2Vec, AAAI 2019). {_parts(facts)}Trained on: {names}.
"""


def _scores(facts: CardFacts) -> str:
    rows = "\n".join(
        f"| {region.name} | {region.n_test:,} | {_pair(region.scores.retrieval, region.random.retrieval)} "
        f"| {_pair(region.scores.triplet_accuracy, region.random.triplet_accuracy)} "
        f"| {_pair(region.scores.recall_at_10, region.random.recall_at_10)} |"
        for region in facts.regions
    )
    return f"""## Scores

On test triplets of each training region: this encoder, and after the stroke the same network with random weights.

| region | test triplets | retrieval | triplet accuracy | recall@10 |
|---|--:|--:|--:|--:|
{rows}

Retrieval is 1 - ln(rank) / ln(N), rank being the place of the anchor's own positive among the region's N test
positives: 1 is the best; picking at random gives 1 / ln(N). Test windows lie in blocks of ground that no train window
touches.
"""


def _use(facts: CardFacts) -> str:
    names = ", ".join(region.name for region in facts.regions)
    return f"""## Intended use

Comparing places, finding similar ones, and as input of a model with few labels of its own, which must then be tested on
ground apart from its training ground. Not for decisions about people or single addresses.

## Limits

- It knows what the map shows within its window, and nothing else: no traffic, no prices, no people, no time of day.
- Where the map is poor, a place looks empty. An embedding says as much about the mappers as about the place.
- It was trained on {names}. Elsewhere it may be worse; measure it there before relying on it.
- The scores above say how well near and far are told apart, on the regions it was trained on. What the embeddings are
  worth for another question only an evaluation on labels of that question tells.
- It takes windows of style {facts.style}, {facts.scales.size_m:g} m, {facts.size_px} px, and of nothing else. A map
  with only roads gives embeddings of roads.

## How to load

```python
import mlflow

mlflow.set_tracking_uri("…")  # this registry
encoder = mlflow.pytorch.load_model("models:/geobacter/<this version>")  # an exported graph: no pickle is loaded
# uint8 [N, {_planes(facts)}, {facts.size_px}, {facts.size_px}] to float32 [N, {facts.embedding_dim}], rows of length 1
embeddings = encoder(windows)
```
"""


def _data(facts: CardFacts) -> str:
    rows = "\n".join(
        f"| {region.name} | {region.osm_timestamp} | `{region.extract_sha256[:12]}` "
        f"| `{region.triplets_digest[:12]}` | {region.n_train:,} | {region.near} |"
        for region in facts.regions
    )
    return f"""## Data

| region | state of the map | extract | triplets | train triplets | positives |
|---|---|---|---|--:|---|
{rows}

Style {facts.style}; channels: {", ".join(facts.channels)}.
"""


def _training(facts: CardFacts) -> str:
    settings = "\n".join(f"| {name} | {value} |" for name, value in sorted(facts.settings.items()))
    return f"""## Training

Network: {_NETWORKS[facts.network]}; {facts.embedding_dim} numbers of length 1.
Loss: {_LOSSES[facts.loss]}.
{facts.n_steps:,} steps in {facts.train_seconds:,.0f} seconds. MLflow run `{facts.run_id}`, weights `{facts.digest}`.

| setting | |
|---|---|
{settings}
"""


def _parts(facts: CardFacts) -> str:
    n_shares = facts.embedding_dim - facts.learnt_dim
    if not n_shares:
        return ""
    surroundings_m = facts.scales.surroundings_m
    around = f", and over the {surroundings_m:g} m around" if surroundings_m else ""
    return (
        f"{facts.learnt_dim} of the numbers are learnt so; the last {n_shares} say how much each channel covers: its "
        f"mean and deviation over what it sees and over the middle of that{around}. "
    )


def _planes(facts: CardFacts) -> int:
    return len(facts.channels) * (1 + len(facts.scales.wider_m))


def _pair(ours: float, random: float) -> str:
    return f"{ours:.3f} / {random:.3f}"
