"""An evaluation on disk and in words: a Parquet table, one row per figure, and a summary in Markdown.

`evaluations/<region>/evaluation.parquet` has the columns of `results.Result`; its metadata (`geobacter`, JSON) holds
the other figures and the recipe that they follow from.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation.evaluate import Evaluation, best_of_models, means
from geobacter_core.evaluation.questions import GIVEN
from geobacter_core.evaluation.results import Result
from geobacter_core.files import sha256_of_file, written_aside

_LEAST_RANK_SHARE = 0.1

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("label", pa.string()),
        ("metric", pa.string()),
        ("representation", pa.string()),
        ("model", pa.string()),
        ("score", pa.float64()),
        ("spread", pa.float64()),
        ("n", pa.int64()),
    ]
)


def write_evaluation(path: Path, evaluation: Evaluation, recipe: str) -> str:
    """Write the table to `path`; returns its hex SHA-256."""
    document = {
        "recipe": recipe,
        "region": evaluation.region,
        "encoder": evaluation.highlighted,
        "folds": evaluation.folds,
        "left_out": evaluation.left_out,
        **{
            name: {subject: dataclasses.asdict(value) for subject, value in sorted(getattr(evaluation, name).items())}
            for name in ("scores", "diagnostics", "purity")
        },
        "curves": [dataclasses.asdict(curve) for curve in evaluation.curves],
    }
    table = pa.Table.from_pylist([dataclasses.asdict(result) for result in evaluation.results], SCHEMA)
    table = table.replace_schema_metadata({"geobacter": json.dumps(document, sort_keys=True)})
    with written_aside(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    return sha256_of_file(path)


def read_results(path: Path) -> tuple[list[Result], dict[str, Any]]:
    """The figures of an evaluation, and what its metadata says.

    Raises:
        EvaluationError: The file is missing or damaged.
    """
    remedy = "Materialise encoder_evaluation for the region."
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        document = json.loads((table.schema.metadata or {})[b"geobacter"])
        return [Result(**row) for row in table.to_pylist()], document
    except FileNotFoundError:
        raise EvaluationError(f"{path} does not exist. {remedy}") from None
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as problem:
        raise EvaluationError(f"{path} is damaged: {problem}. {remedy}") from None


def summary(evaluation: Evaluation) -> str:
    """The evaluation in Markdown: means first, then every question, with the best in bold."""
    lines: list[str] = []
    for hidden, title in ((True, "hidden semantics, mean AUC"), (False, "your labels, mean score")):
        found = means(evaluation.results, hidden)
        if found:
            lines += [f"| {title} | |", "|---|--:|", *_ranked(found, evaluation.highlighted), ""]
    lines += _table(evaluation.results)
    if evaluation.scores:
        head = "| held-out windows | triplet accuracy | recall@1 | recall@10 | active triplets | alignment |"
        lines += ["", head, "|---|--:|--:|--:|--:|--:|"]
        lines += [
            f"| {name} | {scores.triplet_accuracy:.3f} | {scores.recall_at_1:.3f} | {scores.recall_at_10:.3f} | "
            f"{scores.active_share:.0%} | {scores.alignment:.2f} |"
            for name, scores in evaluation.scores.items()
        ]
    lines += [
        "",
        "| embeddings | effective rank | dead dimensions | uniformity | nearest within 500 m (chance) | purity |",
    ]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for name, figures in evaluation.diagnostics.items():
        purity = f"{evaluation.purity[name].corrected:.2f}" if name in evaluation.purity else "–"
        lines.append(
            f"| {name} | {figures.rank:.1f} of {figures.dim} | {figures.n_dead} | {figures.uniformity:.2f} | "
            f"{figures.near_share:.0%} ({figures.near_chance:.0%}) | {purity} |"
        )
    lines += ["", *(f"- {source}: {words}" for source, words in evaluation.folds.items())]
    lines += [f"- not asked: {name} ({reason})" for name, reason in evaluation.left_out.items()]
    return "\n".join(lines) + "\n"


def _ranked(found: dict[str, float], highlighted: str) -> list[str]:
    order = sorted(found, key=lambda name: -found[name])
    return [f"| {f'**{name}**' if name == highlighted else name} | {found[name]:.3f} |" for name in order]


def _table(results: Sequence[Result]) -> list[str]:
    """A row for each question, a column for each representation, the better of the models in each."""
    best = best_of_models(results)
    names = list(dict.fromkeys(result.representation for result in results))
    metrics = {(result.source, result.label): result.metric for result in results}
    lines = ["| question | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for (source, label), metric in metrics.items():
        row = [best[source, label, name] for name in names]
        cells = [f"**{score:.3f}**" if score == max(row) else f"{score:.3f}" for score in row]
        asked = label if source == GIVEN else f"{label} ({source} hidden)"
        lines.append(f"| {asked}, {metric} | " + " | ".join(cells) + " |")
    return lines


def margins(results: Sequence[Result], name: str) -> dict[str, float]:
    """By how much a representation's mean is above that of each other: over hidden semantics, or else over labels."""
    found = means(results, hidden=True) or means(results, hidden=False)
    return {other: found[name] - score for other, score in found.items() if other != name}


def baseline_problems(path: Path) -> list[str]:
    """Which baselines the evaluated encoder does not beat on the mean; nothing if it beats all."""
    results, document = read_results(path)
    name = str(document["encoder"])
    return [
        f"{name} is not better than {other}: its mean is {-margin:.3f} below."
        for other, margin in margins(results, name).items()
        if not margin > 0
    ]


def collapse_problems(path: Path) -> list[str]:
    """Signs that the evaluated encoder gives different places the same embedding; nothing if there are none."""
    _, document = read_results(path)
    figures = document["diagnostics"][document["encoder"]]
    problems = []
    if figures["n_dead"]:
        problems.append(f"{figures['n_dead']} of {figures['dim']} dimensions are the same everywhere.")
    if figures["rank"] < _LEAST_RANK_SHARE * figures["dim"]:
        problems.append(f"The effective rank is {figures['rank']:.1f} of {figures['dim']}.")
    return problems
