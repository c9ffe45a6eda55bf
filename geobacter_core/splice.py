"""Parquet files put together from row groups of others, as bytes: nothing is decoded.

pyarrow cannot do that, but all that is needed is a footer with other offsets. It is Thrift's compact protocol; what
stands in it is copied field by field, known or not (https://parquet.apache.org/docs/file-format/metadata/).
"""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from thrift.protocol.TCompactProtocol import TCompactProtocol
from thrift.Thrift import TType
from thrift.transport.TTransport import TMemoryBuffer

_MAGIC = b"PAR1"
_TAIL_BYTES = 8
# Numbers of the fields that matter here, in parquet.thrift.
_N_ROWS, _ROW_GROUPS = 3, 4  # of FileMetaData
_COLUMNS, _N_GROUP_ROWS, _GROUP_OFFSET, _GROUP_BYTES, _ORDINAL = 1, 3, 5, 6, 7  # of RowGroup
_COLUMN_METADATA = 3  # of ColumnChunk
_COLUMN_OFFSETS = (9, 10, 11, 14)  # of ColumnMetaData: of its data, index and dictionary pages, of its Bloom filter
_READERS = {
    TType.BOOL: "Bool",
    TType.BYTE: "Byte",
    TType.I16: "I16",
    TType.I32: "I32",
    TType.I64: "I64",
    TType.DOUBLE: "Double",
    TType.STRING: "Binary",
}

_Struct = dict[int, tuple[int, Any]]
"""Type and value of each field, in their order. The value of a list is the type of its items and the items."""


def splice(target: Path, template: Path, groups: Iterable[tuple[Path, int]]) -> None:
    """Write a Parquet file of row groups of others.

    Args:
        target: The file to write.
        template: A Parquet file whose schema and metadata are wanted; it may be without rows.
        groups: File and number of each row group, in the order that is wanted. The files have the schema of `template`
            and neither indexes of pages nor encryption.
    """
    footer_of = lru_cache(maxsize=16)(_footer)
    moved: list[_Struct] = []
    with target.open("wb") as out:
        out.write(_MAGIC)
        for path, number in groups:
            group = _row_groups(footer_of(path))[number]
            begin = group[_GROUP_OFFSET][1]
            moved.append(_moved(group, out.tell() - begin, len(moved)))
            with path.open("rb") as data:
                data.seek(begin)
                out.write(data.read(group[_GROUP_BYTES][1]))
        footer = {
            **_footer(template),
            _N_ROWS: (TType.I64, sum(group[_N_GROUP_ROWS][1] for group in moved)),
            _ROW_GROUPS: (TType.LIST, (TType.STRUCT, moved)),
        }
        buffer = TMemoryBuffer()
        _write(TCompactProtocol(buffer), TType.STRUCT, dict(sorted(footer.items())))
        written = buffer.getvalue()
        out.write(written + len(written).to_bytes(4, "little") + _MAGIC)


def _footer(path: Path) -> _Struct:
    with path.open("rb") as data:
        data.seek(-_TAIL_BYTES, os.SEEK_END)
        length = int.from_bytes(data.read(_TAIL_BYTES - len(_MAGIC)), "little")
        data.seek(-_TAIL_BYTES - length, os.SEEK_END)
        footer: _Struct = _read(TCompactProtocol(TMemoryBuffer(data.read(length))), TType.STRUCT)
        return footer


def _row_groups(footer: _Struct) -> list[_Struct]:
    groups: list[_Struct] = footer[_ROW_GROUPS][1][1]
    return groups


def _moved(group: _Struct, by: int, number: int) -> _Struct:
    """A row group that lies elsewhere."""
    kind, (item_kind, columns) = group[_COLUMNS]
    moved = {**group, _COLUMNS: (kind, (item_kind, [_moved_column(column, by) for column in columns]))}
    moved[_GROUP_OFFSET] = (TType.I64, group[_GROUP_OFFSET][1] + by)
    if _ORDINAL in moved:
        moved[_ORDINAL] = (TType.I16, number)
    return moved


def _moved_column(column: _Struct, by: int) -> _Struct:
    kind, metadata = column[_COLUMN_METADATA]
    offsets = {field: (TType.I64, metadata[field][1] + by) for field in _COLUMN_OFFSETS if field in metadata}
    return {**column, _COLUMN_METADATA: (kind, {**metadata, **offsets})}


def _read(protocol: TCompactProtocol, kind: int) -> Any:  # noqa: ANN401 - whatever Thrift can hold
    if kind == TType.STRUCT:
        found: _Struct = {}
        protocol.readStructBegin()
        while (field := protocol.readFieldBegin())[1] != TType.STOP:
            found[field[2]] = (field[1], _read(protocol, field[1]))
            protocol.readFieldEnd()
        protocol.readStructEnd()
        return found
    if kind in (TType.LIST, TType.SET):
        item_kind, length = protocol.readListBegin()
        items = [_read(protocol, item_kind) for _ in range(length)]
        protocol.readListEnd()
        return item_kind, items
    return getattr(protocol, f"read{_READERS[kind]}")()


def _write(protocol: TCompactProtocol, kind: int, value: Any) -> None:  # noqa: ANN401
    if kind == TType.STRUCT:
        protocol.writeStructBegin("")
        for number, (field_kind, field) in value.items():
            protocol.writeFieldBegin("", field_kind, number)
            _write(protocol, field_kind, field)
            protocol.writeFieldEnd()
        protocol.writeFieldStop()
        protocol.writeStructEnd()
    elif kind in (TType.LIST, TType.SET):
        item_kind, items = value
        protocol.writeListBegin(item_kind, len(items))
        for item in items:
            _write(protocol, item_kind, item)
        protocol.writeListEnd()
    else:
        getattr(protocol, f"write{_READERS[kind]}")(value)
