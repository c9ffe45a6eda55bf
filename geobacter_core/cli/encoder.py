"""`geobacter encoder`: which encoders there are, which one is the champion, and results that MLflow did not get."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from geobacter_core.cli.common import CONTEXT, examples, table
from geobacter_core.errors import RegistryError
from geobacter_core.settings import Settings

if TYPE_CHECKING:
    from geobacter_core.encoder.registry import Registry
    from geobacter_core.encoder.version import EncoderVersion

app = typer.Typer(help="Encoders in MLflow, and which one is the champion.", no_args_is_help=True)


@app.command("list", context_settings=CONTEXT)
def list_encoders() -> None:
    """List the registered encoders, the newest first.

    Named too are runs whose results MLflow does not have yet. Accuracy is that on test triplets when the encoder was
    trained, and beside it that of random weights. Figures of two encoders are comparable only if the same triplets
    were drawn for both; the gate compares them on the same.
    """
    from geobacter_core.encoder.unsent import unsent_runs

    settings = Settings.from_environment()
    waiting = unsent_runs(settings)
    if waiting:
        typer.echo(f"Not in MLflow yet: {', '.join(waiting)}. Send with: geobacter encoder import RUN_ID", err=True)
    registry = _registry(settings)
    versions, aliases = registry.versions(), registry.aliases()
    header = (">version", "alias", "style", "network", "window", ">numbers", ">accuracy", ">random")
    typer.echo(table(header, _rows(versions, aliases)))


@app.command(
    "promote",
    context_settings=CONTEXT,
    epilog=examples("geobacter encoder promote 7", "geobacter encoder promote previous-champion"),
)
def promote(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Number of a version, or one of its aliases.")],
) -> None:
    """Make a version the champion, whatever the gate says.

    It must be of the installation's style. The champion before it stays, as previous-champion. Tables made with
    another encoder are stale from then on.
    """
    registry = _registry(Settings.from_environment())
    chosen = registry.version(version)
    if chosen is None:
        raise RegistryError(
            f"MLflow at {registry.shown_uri} has no encoder '{version}'. What there is: geobacter encoder list"
        )
    before = registry.find_champion()
    if before == chosen:
        typer.echo(f"{chosen.name} is {registry.champion_alias} already.")
        return
    registry.promote(chosen)
    was = f"; {before.name} was it before" if before else ""
    typer.echo(
        f"{chosen.name} is now {registry.champion_alias}{was}. Embed the regions anew: make embed REGION=name, or in "
        "the Dagster UI observe champion_encoder and materialise what is stale."
    )


@app.command("import", context_settings=CONTEXT)
def import_run(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A run that `geobacter encoder list` names.")],
) -> None:
    """Send results of a training that MLflow lacks.

    A training that ends while MLflow is away leaves its metrics, pictures, card and encoder on disk. They are sent
    now, and the encoder becomes the challenger. Nothing is removed from disk before MLflow has all of it.
    """
    from geobacter_core.encoder.unsent import send

    sent = send(_registry(Settings.from_environment()), run_id)
    if sent.version is None:
        typer.echo(f"Sent the metrics of run {run_id}. Its training ended without an encoder ({sent.status.lower()}).")
        return
    typer.echo(
        f"Sent run {run_id}; its encoder is {sent.version.name}, the challenger. To have it judged, run the check "
        "challenger_becomes_champion of location_encoder in the Dagster UI, or make it champion by hand: "
        f"geobacter encoder promote {sent.version.version}"
    )


def _registry(settings: Settings) -> "Registry":
    from geobacter_core.encoder.registry import Registry

    return Registry(settings)


def _rows(versions: "list[EncoderVersion]", aliases: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    for each in versions:
        context = "".join(f" in {side_m:g} m" for side_m in each.scales.wider_m)
        yield (
            str(each.version),
            ", ".join(sorted(alias for alias, number in aliases.items() if number == each.version)),
            each.style_label,
            each.network,
            f"{each.size_m:g} m{context}, {each.size_px} px",
            str(each.embedding_dim),
            f"{each.test_accuracy:.3f}",
            f"{each.random_accuracy:.3f}",
        )
