"""Keeping a region's cut: change files may be of a larger area, and must not make an extract grow.

What the extract has may change or go. What it does not have comes in where it can be seen: nodes within the region's
box and as far around as features are kept, ways with such a node, all nodes of those ways, and relations of what is
there. That is how extracts are cut ("complete ways").
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import osmium

from geobacter_core.geo import Bounds
from geobacter_core.osm.features import reach_box

Ids = set[int]
_KINDS = {"n": osmium.osm.NODE, "w": osmium.osm.WAY, "r": osmium.osm.RELATION}


@dataclass(frozen=True, slots=True)
class Cut:
    """Change files with what concerns the region.

    Attributes:
        files: The files, in the same order.
        n_objects: Objects in the files as they came; each version counts.
        n_inside: Of these, those that concern the region.
    """

    files: list[Path]
    n_objects: int
    n_inside: int


@dataclass(slots=True)
class _Changes:
    """What is known of the objects in change files; an object counts by all its versions."""

    nodes: Ids = field(default_factory=set)
    near_nodes: Ids = field(default_factory=set)
    ways: dict[int, Ids] = field(default_factory=dict)
    relations: dict[int, set[tuple[str, int]]] = field(default_factory=dict)
    n_objects: int = 0


def cut_to_region(files: Sequence[Path], pbf: Path, box: Bounds, scratch: Path) -> Cut:
    """Write change files anew into `scratch`, less what neither is in the extract nor would be cut into it.

    Args:
        files: `.osc.gz`, in order.
        pbf: The extract that they are to be applied to.
        box: The region's box, degrees.
        scratch: An existing folder.

    Raises:
        RuntimeError: A file cannot be read.
    """
    west, south, east, north = reach_box(box)

    def is_near(location: osmium.osm.Location) -> bool:
        return bool(location.valid() and west <= location.lon <= east and south <= location.lat <= north)

    found = _Changes()
    for item in _objects(files):
        found.n_objects += 1
        if item.is_node():
            found.nodes.add(item.id)
            if is_near(item.location):
                found.near_nodes.add(item.id)
        elif item.is_way():
            found.ways.setdefault(item.id, set()).update(node.ref for node in item.nodes)
        else:
            members = found.relations.setdefault(item.id, set())
            members.update((member.type, member.ref) for member in item.members)

    near_nodes = set(found.near_nodes)
    far_refs = set().union(*found.ways.values()) - near_nodes if found.ways else set()
    old_nodes: Ids = set()
    for node in _of(pbf, osmium.osm.NODE, (found.nodes | far_refs) - near_nodes):
        old_nodes.add(node.id)
        if is_near(node.location):
            near_nodes.add(node.id)
    ways = {id_ for id_, refs in found.ways.items() if refs & near_nodes}
    ways |= {way.id for way in _of(pbf, osmium.osm.WAY, found.ways.keys() - ways)}
    nodes = near_nodes | old_nodes
    for id_ in ways:
        nodes |= found.ways[id_]
    relations = _relations(found, pbf, nodes, ways)

    kept, n_inside = [], 0
    for file in files:
        kept.append(scratch / file.name)
        with osmium.SimpleWriter(str(kept[-1]), overwrite=True) as writer:
            for item in _objects([file]):
                wanted = nodes if item.is_node() else ways if item.is_way() else relations
                if item.id in wanted:
                    writer.add(item)
                    n_inside += 1
    return Cut(kept, found.n_objects, n_inside)


def _relations(found: _Changes, pbf: Path, nodes: Ids, ways: Ids) -> Ids:
    """Those that the extract has, or has a member of."""
    of_all = set().union(*found.relations.values()) if found.relations else set()
    there = {("n", id_) for id_ in nodes} | {("w", id_) for id_ in ways}
    for kind, entity in _KINDS.items():
        wanted = {ref for type_, ref in of_all if type_ == kind}
        if kind == "r":
            wanted |= found.relations.keys()
        there |= {(kind, item.id) for item in _of(pbf, entity, wanted)}
    return {id_ for id_, members in found.relations.items() if members & there or ("r", id_) in there}


def _objects(files: Sequence[Path]) -> Iterator[Any]:
    for file in files:
        yield from osmium.FileProcessor(osmium.io.File(str(file), "osc.gz"))


def _of(pbf: Path, kind: osmium.osm.osm_entity_bits, ids: Ids) -> Iterator[Any]:
    """The objects of a kind and of some ids that the extract has; osmium looks for them."""
    if ids:
        yield from osmium.FileProcessor(osmium.io.File(str(pbf), "pbf"), kind).with_filter(
            osmium.filter.IdFilter(sorted(ids))
        )
