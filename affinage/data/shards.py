"""Reads Parquet files that are larger than memory: one pass, some rows at a time, with their texts or pictures kept in a spool.

The rows of a shuffled batch lie in as many row groups, and for one cell a whole row group is read and decoded: so every cell is
laid out once where one small read finds it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import AffinageError
from ..spool import AT_ONCE, Cells, limit, need
from ..types import Columns, Kind, Labels
from . import objects
from .growing import Growing
from .table import PART, SPLITS, UNLABELLED, Table, build, missing, pick

A_CELL = 100  # bytes that a cell takes in Python beside its content


class Shard(NamedTuple):
    """One file, as its footer describes it."""

    path: Path
    kind: Kind
    input: str  # the two columns
    label: str
    rows: int
    bytes: int  # of the input column, uncompressed
    classes: tuple[str, ...] | None
    means: Labels = "class"


def large(shards: Sequence[Shard]) -> bool:
    """Whether these inputs together are more than what stays in memory."""
    return sum(shard.bytes + A_CELL * shard.rows for shard in shards) > limit()


def looked(path: Path, columns: Columns, kind: str | None) -> Shard:
    """The shard, by its footer alone.

    Raises:
        AffinageError: not a Parquet file, or without the columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from None

    def first(column: str) -> Any:
        with pq.ParquetFile(path) as file:
            return next((batch.column(0).to_pylist()[0] for batch in file.iter_batches(1, columns=[column])), None)

    what, left, right, means = pick(schema.names, columns, kind, path.name, first)
    if what == "image" and pa.types.is_nested(schema.field(right).type):  # though the first pictures may have none
        means = "boxes"
    size = 0
    for group in (metadata.row_group(g) for g in range(metadata.num_row_groups)):
        parts = (group.column(c) for c in range(group.num_columns))
        size += sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == left)
    # `datasets` writes the names of its classes into the file's own metadata.
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    classes = objects.declared(features.get(right) or {})
    return Shard(path, what, left, right, metadata.num_rows, size, classes, means)


def parted(shard: Shard) -> bool:
    """Whether a column `split` names more than one of them, or another than train."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(shard.path) as file:
        if PART not in file.schema_arrow.names or PART in (shard.input, shard.label):
            return False
        told = {str(cell).strip().lower() for cell in file.read(columns=[PART]).column(PART).unique().to_pylist()}
    return bool(told & SPLITS.keys()) and told != {"train"}


def unreadable(path: Path, error: Exception) -> AffinageError:
    return AffinageError(f"{path.name} is not a readable Parquet file: {str(error).splitlines()[0]}")


def spooled(shards: Sequence[Shard], split: str) -> Table:
    """The rows of one split, those of the first shard first, with inputs and ids on the disk.

    Raises:
        AffinageError: as `build`; or the disk has no room.
    """
    first = shards[0]
    name = first.path.name
    need(sum(shard.bytes for shard in shards), f"the column '{first.input}' of {name}")
    rows: Growing | None = None
    told = first.means != "boxes" or split == "train"  # a part without boxes is no split without labels
    left_out: list[tuple[str, str]] = []
    for shard in shards:
        start, where, base = 0, shard.path.name, shard.path.parent
        for inputs, labels in _batches(shard):
            ids = [f"{where}:{start + i}" for i in range(len(inputs))]
            means, of = shard.means, "train" if shard.means == "boxes" else split
            part = build(first.kind, inputs, labels, ids, where=where, split=of, base=base, classes=shard.classes, means=means)
            told = told or not all(map(missing, labels))
            start += len(inputs)
            left_out += part.unreadable
            for item, target, row in zip(part.inputs, part.targets, part.ids, strict=True):
                if rows is None:
                    rows = Growing(first.kind, Cells(Path if isinstance(item, Path) else type(item)), means=first.means)
                if not isinstance(item, rows.inputs.form):
                    raise AffinageError(f"{row} and the rows before it mix encoded pictures with paths: expected one of them")
                rows.add(item, target, row)
    if not told:
        return Table(first.kind, [], [], [], first.classes, ((name, UNLABELLED),), first.means)
    rows = rows or Growing(first.kind, Cells(bytes), means=first.means)
    for row, why in left_out:
        if why == UNLABELLED:
            rows.unlabelled.append(row)
        else:
            rows.unreadable.append((row, why))
    return rows.table(name, split, first.classes)


def _batches(shard: Shard) -> Iterator[tuple[list[Any], list[Any]]]:
    """(inputs, labels) of some rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = max(1, min(8192, AT_ONCE // max(1, shard.bytes // max(1, shard.rows))))
    try:  # a stream, not whole columns: a row group may be as large as the file
        with pq.ParquetFile(shard.path, buffer_size=2**20, pre_buffer=False) as file:
            for batch in file.iter_batches(size, columns=[shard.input, shard.label], use_threads=False):
                yield batch.column(shard.input).to_pylist(), batch.column(shard.label).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise unreadable(shard.path, error) from None
