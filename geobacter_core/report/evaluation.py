"""Pictures of an evaluation, beside its table, and all of it in the MLflow run of the encoder."""

from collections.abc import Mapping

from PIL import Image

from geobacter_core.encoder.registry import Registry
from geobacter_core.encoder.version import EncoderVersion
from geobacter_core.evaluation.evaluate import Evaluation, means
from geobacter_core.evaluation.region import Evaluated
from geobacter_core.evaluation.store import summary
from geobacter_core.files import written_aside
from geobacter_core.plots import label_curve_chart, png_bytes, probe_chart


def evaluation_pictures(evaluation: Evaluation) -> dict[str, Image.Image]:
    """File name to picture: the probes, and a curve for each label that the user brought."""
    title = f"What {evaluation.highlighted} knows about {evaluation.region}"
    pictures = {"probes.png": probe_chart(evaluation.results, title, evaluation.highlighted)}
    for number, curve in enumerate(evaluation.curves):
        chart = label_curve_chart(curve.points, curve.label, curve.metric, evaluation.highlighted)
        pictures[f"curve-{number + 1}.png"] = chart
    return pictures


def report_evaluation(
    evaluated: Evaluated, registry: Registry, version: EncoderVersion, pictures: Mapping[str, Image.Image]
) -> str:
    """Write the pictures beside the table, and log table, pictures, metrics and the card's part to the encoder's run.

    Returns the summary in Markdown.

    Raises:
        RegistryError: MLflow fails; the files are written all the same.
    """
    evaluation = evaluated.evaluation
    folder = evaluated.path.parent
    for name, picture in pictures.items():
        with written_aside(folder / name) as temporary:
            temporary.write_bytes(png_bytes(picture))
    text = summary(evaluation)
    with written_aside(folder / "evaluation.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    files = [evaluated.path, *(folder / name for name in pictures)]
    registry.log_evaluation(version, evaluation.region, evaluation_metrics(evaluation), files, text)
    return text


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """The figures that are worth a line in MLflow, behind `eval_<region>_`."""
    prefix = f"eval_{evaluation.region}_"
    name = evaluation.highlighted
    found: dict[str, float] = {}
    for hidden, what in ((True, "hidden_semantics"), (False, "labels")):
        for representation, score in means(evaluation.results, hidden).items():
            key = "encoder" if representation == name else representation.replace(" ", "_")
            found[f"{prefix}{what}_{key}"] = score
    if name in evaluation.scores:
        found |= evaluation.scores[name].as_metrics(prefix)
    if name in evaluation.purity:
        found[f"{prefix}land_use_purity"] = evaluation.purity[name].corrected
    return found | evaluation.diagnostics[name].as_metrics(prefix)
