"""The `geobacter` command: what people do with regions, tiles and samples outside Dagster.

What is slow to import is imported inside the commands, so that help and mistakes are answered at once.
"""

import logging
import sys

import typer
from typer.core import TyperGroup

from geobacter_core.cli import encoder, regions, samples, tiles
from geobacter_core.cli.common import CONTEXT, examples, told
from geobacter_core.cli.places import embed, similar
from geobacter_core.cli.serve import serve
from geobacter_core.errors import GeobacterError


class _Geobacter(TyperGroup):
    """Ends with status 1 and a sentence on stderr where something was wrong outside the code."""

    # Typer does not export the class of context that it declares here.
    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever read the output has seen enough; Typer ends the command for that
        except (GeobacterError, OSError) as problem:
            typer.echo(told(problem), err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Geobacter,
    help="Geobacter turns places into vectors. This command prepares and looks after what that needs: "
    "OpenStreetMap extracts, map tiles and triplets; and says which encoder is the champion.\n\n"
    "GEOBACTER_DATA names the data folder (default: data), GEOBACTER_REGIONS the regions file (default: "
    "regions.toml), GEOBACTER_STYLE the map style (default: detailed). The rest of the chain is Dagster's.",
    epilog=examples("geobacter regions list", "geobacter tiles build helsinki", "geobacter tiles show 24.9414 60.1719"),
    context_settings=CONTEXT,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(regions.app, name="regions")
app.add_typer(tiles.app, name="tiles")
app.add_typer(samples.app, name="samples")
app.add_typer(encoder.app, name="encoder")
app.command(
    "embed",
    context_settings=CONTEXT,
    epilog=examples(
        "geobacter embed shops.csv -o shops.parquet",
        "geobacter embed shops.parquet -o embedded.parquet --outside skip",
    ),
)(embed)
app.command(
    "similar",
    # Western and southern places have coordinates that look like options.
    context_settings={**CONTEXT, "ignore_unknown_options": True},
    epilog=examples("geobacter similar 24.9414 60.1719", "geobacter similar -8.61 41.15 -k 5 --min-distance 300"),
)(similar)
app.command(
    "serve",
    context_settings=CONTEXT,
    short_help="Serve embeddings, searches and maps over HTTP.",
    epilog=examples("geobacter serve", "geobacter serve --port 8080"),
)(serve)


class _ToStderr(logging.Handler):
    """Log lines for people, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + self.format(record), file=sys.stderr)


def main() -> None:
    """Run the command line of this process."""
    logging.basicConfig(handlers=[_ToStderr()], format="%(message)s", level=logging.WARNING)
    logging.getLogger("geobacter_core").setLevel(logging.INFO)
    app(prog_name="geobacter")
