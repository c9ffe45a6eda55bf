"""Parquet files put together from row groups of others."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geobacter_core.splice import splice

OPTIONS = {"compression": "zstd", "write_page_checksum": True}


def parquet(path, groups, metadata):
    tables = [pa.table({"n": pa.array(group), "text": [f"{n}" for n in group]}) for group in groups]
    with pq.ParquetWriter(path, tables[0].schema.with_metadata(metadata), **OPTIONS) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(metadata))
    return path


@pytest.fixture
def old(tmp_path):
    return parquet(tmp_path / "old.parquet", [range(5), range(100, 300), range(7)], {"made": "before"})


def test_a_spliced_file_has_the_bytes_of_one_written_as_a_whole(old, tmp_path):
    new = parquet(tmp_path / "new.parquet", [range(40, 4000)], {"made": "after"})
    splice(tmp_path / "spliced.parquet", new, [(old, 0), (new, 0), (old, 2)])
    whole = parquet(tmp_path / "whole.parquet", [range(5), range(40, 4000), range(7)], {"made": "after"})
    assert (tmp_path / "spliced.parquet").read_bytes() == whole.read_bytes()


def test_row_groups_can_come_in_any_order_and_twice(old, tmp_path):
    spliced = tmp_path / "spliced.parquet"
    splice(spliced, old, [(old, 2), (old, 0), (old, 2)])
    table = pq.read_table(spliced, page_checksum_verification=True)
    assert table["n"].to_pylist() == [*range(7), *range(5), *range(7)]
    assert table["text"].to_pylist() == [f"{n}" for n in table["n"].to_pylist()]
    assert pq.read_metadata(spliced).num_rows == 19


def test_a_template_may_be_without_rows(old, tmp_path):
    empty = tmp_path / "empty.parquet"
    pq.ParquetWriter(empty, pq.read_schema(old).with_metadata({"made": "now"}), **OPTIONS).close()
    splice(tmp_path / "spliced.parquet", empty, [(old, 1)])
    table = pq.read_table(tmp_path / "spliced.parquet")
    assert table["n"].to_pylist() == list(range(100, 300))
    assert table.schema.metadata == {b"made": b"now"}
