"""Parquet files of which some row groups are taken over from another file, as bytes: nothing is decoded.

pyarrow cannot do that, but all that is needed is a footer with other offsets. It is Thrift's compact protocol; what
stands in it is copied field by field, known or not (https://parquet.apache.org/docs/file-format/metadata/).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _File:
    """A Parquet file's bytes and its footer."""

    data: bytes
    footer: _Struct

    @classmethod
    def read(cls, path: Path) -> "_File":
        data = path.read_bytes()
        length = int.from_bytes(data[-_TAIL_BYTES : -len(_MAGIC)], "little")
        footer = data[-_TAIL_BYTES - length : -_TAIL_BYTES]
        return cls(data, _read(TCompactProtocol(TMemoryBuffer(footer)), TType.STRUCT))

    @property
    def row_groups(self) -> list[_Struct]:
        groups: list[_Struct] = self.footer[_ROW_GROUPS][1][1]
        return groups


def splice(target: Path, base: Path, pieces: Path, rows: Sequence[int]) -> None:
    """Write `base` with some of its row groups replaced by those of another file of the same columns.

    Args:
        target: The file to write.
        base: The file whose other row groups are taken over.
        pieces: The row groups that take their place; the new file's metadata is also of this one.
        rows: Which row groups of `base` those of `pieces` replace, ascending.
    """
    old, new = _File.read(base), _File.read(pieces)
    replaced: Mapping[int, _Struct] = dict(zip(rows, new.row_groups, strict=True))
    groups: list[_Struct] = []
    with target.open("wb") as out:
        out.write(_MAGIC)
        for number, group in enumerate(old.row_groups):
            file, group = (new, replaced[number]) if number in replaced else (old, group)
            begin = group[_GROUP_OFFSET][1]
            groups.append(_moved(group, out.tell() - begin, number))
            out.write(file.data[begin : begin + group[_GROUP_BYTES][1]])
        type_of_list, (type_of_group, _) = new.footer[_ROW_GROUPS]
        footer = {
            **new.footer,
            _N_ROWS: (TType.I64, sum(group[_N_GROUP_ROWS][1] for group in groups)),
            _ROW_GROUPS: (type_of_list, (type_of_group, groups)),
        }
        buffer = TMemoryBuffer()
        _write(TCompactProtocol(buffer), TType.STRUCT, footer)
        written = buffer.getvalue()
        out.write(written + len(written).to_bytes(4, "little") + _MAGIC)


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


def _read(protocol: TCompactProtocol, kind: int) -> Any:
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


def _write(protocol: TCompactProtocol, kind: int, value: Any) -> None:
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
