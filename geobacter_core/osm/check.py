"""Whether a region's sources are there, before a run finds out that they are not."""

from pathlib import Path

from geobacter_core.errors import DownloadError, ExtractError, GridError
from geobacter_core.grid_file import check_grid
from geobacter_core.osm.changes import newest_sequence
from geobacter_core.osm.extract import web_address
from geobacter_core.osm.published import look_up
from geobacter_core.regions import Region, parse_source
from geobacter_core.settings import without_secrets


def problems_of(region: Region, online: bool = False) -> list[str]:
    """What is wrong with the sources that a region names, a sentence each.

    Args:
        region: The region.
        online: Ask the servers, too: one small request each.
    """
    problems = [*_files(region), *_grid(region)]
    try:
        address = web_address(region)
    except ExtractError as problem:
        return [*problems, str(problem)]
    if online and address is not None and look_up(*address) is None:
        problems.append(f"`extract`: the server does not say that it has {without_secrets(address[0])}.")
    if online and region.updates not in (None, "off"):
        try:
            newest_sequence(region, str(region.updates))
        except DownloadError as problem:
            problems.append(f"`updates`: {problem}")
    return problems


def _files(region: Region) -> list[str]:
    named = {
        "cells": region.cells,
        "labels": region.labels,
        "extract": region.extract if parse_source(region.extract)[0] == "path" else None,
    }
    return [
        f"`{field}`: there is no file {path}. Correct it in regions.toml."
        for field, path in named.items()
        if path is not None and not Path(path).is_file()
    ]


def _grid(region: Region) -> list[str]:
    if region.cells is None or not Path(region.cells).is_file():
        return []
    try:
        check_grid(Path(region.cells))
    except GridError as problem:
        return [f"`cells`: {problem}"]
    return []
