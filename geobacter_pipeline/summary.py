"""The short text at the end of `make demo`: what there is now, how good it is, and where to look."""

from collections.abc import Sequence

from geobacter_core.settings import Settings


def summary(regions: Sequence[str]) -> str:
    """Describe the regions' outputs and the champion, from what lies on disk and in the registry."""
    from geobacter_core.embeddings.table import read_metadata
    from geobacter_core.encoder.registry import Registry
    from geobacter_core.samples.triplets import load_triplets
    from geobacter_core.tiles.cache import load_manifest

    settings = Settings.from_environment()
    lines = ["", "Geobacter has made"]
    for region in regions:
        tiles = load_manifest(settings.tiles_folder(region, settings.style))
        table = read_metadata(settings.embeddings_file(region))
        path = settings.triplets_file(region)
        triplets = f", {len(load_triplets(path).table):,} triplets" if path.is_file() else ""
        lines += [
            f"  {region}: {tiles.n_tiles:,} tiles in {len(tiles.chunks)} chunks{triplets}, "
            f"{table['n_cells']:,} embeddings of {table['embedding_dim']} numbers by {table['encoder']}",
            f"    table   {settings.embeddings_file(region)}",
            f"    report  {settings.report_folder(region) / 'report.html'}",
        ]
    registry = Registry(settings)
    champion = registry.champion()
    lines += [
        f"  encoder {champion.name} (models:/geobacter@{registry.champion_alias}): "
        f"test triplet accuracy {champion.test_accuracy:.3f}, random weights {champion.random_accuracy:.3f}",
        "",
        "Look at it:",
        "  make dev    the Dagster UI (assets, runs, checks, schedule) and the MLflow UI (metrics, models)",
        "",
    ]
    return "\n".join(lines) + "\n"


def figures(region: str | None) -> str:
    """The table of a region's evaluation, or of the sweep where no region is given, and where the pictures are."""
    settings = Settings.from_environment()
    if region is None:
        folder = settings.data / "sweeps"
        return f"{(folder / 'sweep.md').read_text(encoding='utf-8')}\n  picture  {folder / 'sweep.png'}\n"
    folder = settings.evaluation_folder(region)
    return f"{(folder / 'evaluation.md').read_text(encoding='utf-8')}\n  pictures  {folder}\n"
