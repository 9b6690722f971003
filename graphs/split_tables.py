"""Embedding tables cut into parts by rows or by columns, so that one larger than any device can be placed.

As in torchrec (Ivchenko et al., "TorchRec: a PyTorch domain library for recommendation systems", RecSys 2022,
doi:10.1145/3523227.3547387), whose row-wise and column-wise sharding this is, written as ordinary ops and tensors that
can be placed, simulated and beaten like any others (compare `graphs.replicate`).

**By rows.** A part has some of the rows. Look-ups fall on the parts in proportion to their rows, as those of hashed
features do. Each part reads all indices and its own rows, and adds them up for each sample; an op ``sum`` adds what the
parts made. So each part sends a pooled row a sample, and gets the gradient of the pooled rows back.

**By columns.** A part has some columns of all rows. Each part reads all indices and its columns; an op ``concat`` lays
what the parts made side by side. Backward, an op ``columns`` cuts the gradient up. Together the parts send one pooled
row a sample.

The parts of table ``tables.3`` are the modules ``tables.3_part0``, ``tables.3_part1``, ..., and so families of
co-location groups of their own. Parameters, optimizer state and gradients are cut in proportion.

**What is not charged.** Sorting indices by the part that they belong to: every part reads all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

import numpy as np

from graphs.after_updates import check_not_clipped, check_updates_are_last
from graphs.computation_graph import PHASES, ComputationGraph, OpRecord, Shape, TensorRecord, build
from graphs.errors import InputError, unknown_name
from graphs.records import op_record, tensor_record
from graphs.tables import Table, consumers_of, find_tables, index_bytes, read_tensors

By = Literal["rows", "columns"]


def split_tables(
    graph: ComputationGraph,
    *,
    by: By = "rows",
    most_bytes: int | None = None,
    parts: Mapping[str, int] | None = None,
) -> ComputationGraph:
    """Cut embedding tables into parts.

    Args:
        graph: A step, from capture or a file, whose ops are not profiled.
        by: Rows or columns.
        most_bytes: Tables that keep more resident than this are cut into as few parts as keep no more.
        parts: How many parts tables are cut into, by their module's path, with ``*``, ``?`` and ``[...]``, for example
            ``{"tables.0": 4}``. It goes before `most_bytes`.

    Raises:
        InputError: There is no such table, a table has fewer rows or columns than parts, its ops are profiled,
            gradients are clipped, or the step goes on after updates.
    """
    if by not in get_args(By):
        raise unknown_name("way to split tables", by, get_args(By))
    tables = find_tables(graph)
    if not tables:
        raise InputError(f"graph '{graph.name}' has no embedding table that could be split; leave the splitting out")
    chosen = _chosen(graph, tables, by, most_bytes, dict(parts or {}))
    if not chosen:
        return graph
    check_updates_are_last(graph, "have its tables split")
    check_not_clipped(graph, "have its tables split")
    made = _Split(graph, by)
    for table, count in chosen:
        made.cut(table, count)
    return made.graph()


def table_bytes(graph: ComputationGraph, table: Table) -> int:
    """Bytes that a table keeps resident: rows, optimizer state, gradient."""
    return sum(int(graph.resident_bytes[op].sum()) for op in table.ops)


def _chosen(
    graph: ComputationGraph, tables: Sequence[Table], by: By, most_bytes: int | None, parts: dict[str, int]
) -> list[tuple[Table, int]]:
    for pattern, count in parts.items():
        if count < 1:
            raise InputError(f"table '{pattern}' is to be split into {count} parts; give at least 1")
        if not any(fnmatchcase(table.module, pattern) for table in tables):
            raise unknown_name(f"table of graph '{graph.name}'", pattern, [table.module for table in tables])
    if most_bytes is not None and most_bytes < 1:
        raise InputError(f"most_bytes is {most_bytes}; it must be at least 1")
    chosen = []
    for table in tables:
        counts = [count for pattern, count in parts.items() if fnmatchcase(table.module, pattern)]
        size = table_bytes(graph, table)
        count = counts[-1] if counts else 1 if most_bytes is None else _needed(table, size, by, most_bytes)
        most = table.rows if by == "rows" else table.width
        if count > most:
            raise InputError(
                f"table '{table.module}' has {most:,} {by}, which do not make {count:,} parts; take fewer, or split by "
                f"{'columns' if by == 'rows' else 'rows'}"
            )
        if count > 1:
            chosen.append((table, count))
    return chosen


def _needed(table: Table, size: int, by: By, most_bytes: int) -> int:
    """The fewest parts of which none, rows or columns being whole, keeps more than `most_bytes`."""
    units = table.rows if by == "rows" else table.width
    in_a_part = int(most_bytes * units // size) if size else units
    return math.ceil(units / in_a_part) if in_a_part else units + 1


@dataclass(frozen=True)
class _Share:
    """What a part has of a table: its units (rows or columns) from `first` up to, without, `end`."""

    first: int
    end: int
    units: int

    def of(self, whole: int) -> int:
        """Its share of a whole number; the parts' shares add up to it."""
        return whole * self.end // self.units - whole * self.first // self.units


class _Split:
    """The new graph so far: the old ops and tensors with their positions, those that are gone marked, and new ones."""

    def __init__(self, graph: ComputationGraph, by: By) -> None:
        self.old, self.by = graph, by
        self.ops: list[OpRecord | None] = [op_record(graph, op) for op in range(graph.num_ops)]
        self.after: list[float] = [float(op) for op in range(graph.num_ops)]
        self.tensors: list[TensorRecord | None] = [tensor_record(graph, tensor) for tensor in range(graph.num_tensors)]
        self.bound: list[list[int]] = [
            np.flatnonzero(graph.colocation == number).tolist()
            for number in np.unique(graph.colocation[graph.colocation >= 0])
        ]
        self.cuts = 0

    def cut(self, table: Table, count: int) -> None:
        """Replace a table by its parts."""
        graph = self.old
        profiled = [op for op in table.ops if any(not np.isnan(times[op]) for times in graph.time_s.values())]
        if profiled:
            raise InputError(
                f"op '{graph.op_names[profiled[0]]}' of table '{table.module}' has a measured time, which says nothing "
                "of its parts; split the tables of a graph that is not profiled"
            )
        self.cuts += 1
        units = table.rows if self.by == "rows" else table.width
        ends = [units * part // count for part in range(count + 1)]
        shares = [_Share(ends[part], ends[part + 1], units) for part in range(count)]
        outputs: dict[int, list[int]] = {op: [] for op in table.lookups}
        slices = self._slices(table, shares) if self.by == "columns" else {}
        for part, share in enumerate(shares):
            self._part(table, part, share, outputs, slices)
        for lookup in table.lookups:
            self._join(table, lookup, outputs[lookup])
        gone = set(table.ops)
        for op in gone:
            self.ops[op] = None
        for tensor in range(graph.num_tensors):
            if int(graph.tensor_producer[tensor]) in gone:
                self.tensors[tensor] = None
            record = self.tensors[tensor]
            if record is not None:
                record.consumers = [op for op in record.consumers if op not in gone]
        self.bound = [[op for op in members if op not in gone] for members in self.bound]

    def graph(self) -> ComputationGraph:
        """The graph, its ops in program order."""
        kept = [op for op in range(len(self.ops)) if self.ops[op] is not None]
        kept.sort(key=lambda op: (self.after[op], op))
        rank = {op: position for position, op in enumerate(kept)}
        tensors = [
            replace(t, producer=rank[t.producer], consumers=[rank[op] for op in t.consumers])
            for t in self.tensors
            if t is not None
        ]
        names = {record.name for record in self.ops if record is not None}
        return build(
            f"{self.old.name} with {self.cuts} tables split by {self.by}",
            [record for op in kept if (record := self.ops[op]) is not None],
            tensors,
            [[rank[op] for op in members] for members in self.bound if len(members) > 1],
            tokens=self.old.tokens,
            aliases={other: name for other, name in self.old.aliases.items() if name in names},
        )

    def _add(self, record: OpRecord, at: int) -> int:
        """Add an op that comes where an old one was."""
        self.ops.append(record)
        self.after.append(self.after[at])
        return len(self.ops) - 1

    def _make(self, producer: int, size: int, *, resident: bool = False) -> int:
        self.tensors.append(TensorRecord(producer, size, [], resident=resident))
        return len(self.tensors) - 1

    def _read(self, tensor: int, op: int) -> None:
        record = self.tensors[tensor]
        assert record is not None
        record.consumers = [*record.consumers, op]

    def _part(
        self,
        table: Table,
        part: int,
        share: _Share,
        outputs: dict[int, list[int]],
        slices: dict[int, list[int]],
    ) -> None:
        """Copy a table's ops for one part, and let them read what the originals read."""
        graph = self.old
        copies: dict[int, int] = {}  # tensor of the original -> that of the part
        new: dict[int, int] = {}
        for op in sorted(table.ops):
            record = op_record(graph, op)
            kept = self._always(table, op)
            record = replace(
                record,
                name=_renamed(record.name, table.module, part),
                module=f"{record.module}_part{part}" if record.module else f"part{part}",
                flops=share.of(record.flops),
                bytes_accessed=kept + share.of(record.bytes_accessed - kept),
                resident_bytes={what: share.of(size) for what, size in record.resident_bytes.items()},
                output_shapes=self._shapes(table, op, share),
            )
            new[op] = self._add(record, op)
            for tensor in read_tensors(graph, op):
                source = copies.get(tensor)
                if source is None:
                    source = slices[tensor][part] if tensor in slices and op in table.backward else tensor
                self._read(source, new[op])
            first, end = graph.tensor_offsets[op : op + 2].tolist()
            for tensor in range(first, end):
                size = int(graph.tensor_bytes[tensor])
                pooled = op in table.lookups and tensor == first
                full = op in table.offsets or (op in table.lookups and (self.by == "rows" or not pooled))
                resident = bool(graph.tensor_resident[tensor])
                made = self._make(new[op], size if full else share.of(size), resident=resident)
                copies[tensor] = made
                if pooled:
                    outputs[op].append(made)
                elif op in table.lookups and part == 0:  # where the bags begin, say: of every part the same
                    for reader in consumers_of(graph, tensor):
                        if reader not in table.ops:
                            self._read(made, reader)
        self.bound += [[new[op] for op in members if op in new] for members in self._sets(table)]

    def _sets(self, table: Table) -> list[list[int]]:
        graph = self.old
        numbers = {int(graph.colocation[op]) for op in table.ops if graph.colocation[op] >= 0}
        return [np.flatnonzero(graph.colocation == number).tolist() for number in sorted(numbers)]

    def _always(self, table: Table, op: int) -> int:
        """Bytes that each part accesses whatever its share: indices and, by rows, the pooled rows that it writes."""
        graph = self.old
        if op in table.offsets:
            return int(graph.bytes_accessed[op])
        kept = index_bytes(graph, op)
        if op in table.lookups and self.by == "rows":
            kept += int(graph.tensor_bytes[graph.tensor_offsets[op]])
        return min(kept, int(graph.bytes_accessed[op]))

    def _shapes(self, table: Table, op: int, share: _Share) -> tuple[Shape, ...]:
        """The shapes that an op of a part makes: those of rows or columns of the table in proportion."""
        rows, width = table.rows, table.width

        def part_of(shape: Shape) -> Shape:
            if self.by == "columns" and shape and shape[-1] == width:
                return (*shape[:-1], share.of(width))
            if self.by == "rows" and shape == (rows, width):
                return (share.of(rows), width)
            return shape

        return tuple(part_of(shape) for shape in self.old.output_shapes[op])

    def _join(self, table: Table, lookup: int, outputs: Sequence[int]) -> None:
        """Add the op that adds or joins what the parts looked up, for all that read the original."""
        graph = self.old
        first = int(graph.tensor_offsets[lookup])
        size = int(graph.tensor_bytes[first])
        by_rows = self.by == "rows"
        record = replace(
            op_record(graph, lookup),
            name=f"{graph.op_names[lookup]}/{'sum' if by_rows else 'concat'}",
            type="add" if by_rows else "cat",
            flops=0,
            bytes_accessed=(len(outputs) + 1) * size if by_rows else 2 * size,
            resident_bytes={},
            output_shapes=graph.output_shapes[lookup][:1],
        )
        join = self._add(record, lookup)
        for tensor in outputs:
            self._read(tensor, join)
        made = self._make(join, size)
        for reader in consumers_of(graph, first):
            if reader not in table.ops:
                self._read(made, reader)

    def _slices(self, table: Table, shares: Sequence[_Share]) -> dict[int, list[int]]:
        """By columns: for each gradient that comes from outside, the tensors that it is cut into."""
        graph, made = self.old, {}
        outside = sorted(
            {
                tensor
                for op in table.backward
                for tensor in read_tensors(graph, op)
                if int(graph.tensor_producer[tensor]) not in table.ops
                and graph.phase[graph.tensor_producer[tensor]] == PHASES.index("backward")
            }
        )
        for number, tensor in enumerate(outside):
            size, first = int(graph.tensor_bytes[tensor]), min(table.backward)
            record = replace(
                op_record(graph, first),
                name=f"{graph.op_names[first]}/columns_{number}",
                type="split",
                flops=0,
                bytes_accessed=2 * size,
                resident_bytes={},
                output_shapes=(),
            )
            cut = self._add(record, first)
            self._read(tensor, cut)
            made[tensor] = [self._make(cut, share.of(size)) for share in shares]
        return made


def _renamed(name: str, module: str, part: int) -> str:
    if module and name.startswith(module):
        return f"{module}_part{part}{name[len(module) :]}"
    return f"part{part}/{name}"
