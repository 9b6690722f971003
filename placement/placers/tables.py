"""Embedding tables spread over accelerators by greedy rules; all else on one of them.

All three sort the tables (or their parts, `graphs.split_tables`) by a cost, largest first, and give each to the device
with the least cost so far that has room for it; what no accelerator has room for goes to the host.

- ``tables_by_size``: the cost is the bytes of the table.
- ``tables_by_lookups``: the bytes of the rows that a step looks up. Both are among the human rules of Zha et al.,
  "DreamShard: generalizable embedding table placement for recommender systems", NeurIPS 2022, arXiv 2210.02023.
- ``torchrec``: what torchrec's own planner says, where the package is installed (`placement.placers.torchrec_planner`);
  else its estimates and its ``GreedyPerfPartitioner``, in our words
  (https://github.com/meta-pytorch/torchrec, ``torchrec/distributed/planner``: ``shard_estimators.py``,
  ``partitioners.py``, ``storage_reservations.py``, BSD): the cost of a shard is what it reads and writes over the
  memory's bandwidth, twice as much again for its backward pass, and its pooled rows over the links' bandwidth, there
  and back; 15% of each memory, and what the dense part keeps, are not for tables.

The dense part is one copy, as in the graph, on the accelerator on which the whole does best; torchrec copies it to all
(see `graphs.replicate`). Which way tables are cut is not chosen here.

Letters: ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.footprint import group_bytes
from envs.problem import PlacementProblem
from graphs.computation_graph import ComputationGraph
from graphs.errors import NotServedError
from graphs.split_tables import table_bytes
from graphs.tables import Table, find_tables
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.torchrec_planner import ask_torchrec

BACKWARD_COMPUTE = 2.0
"""torchrec's ``BWD_COMPUTE_MULTIPLIER``: what a backward pass takes, in forward passes."""

RESERVED = 0.15
"""The share of each memory that torchrec's ``HeuristicalStorageReservation`` leaves out, as its examples have it."""

MOST_OF_IT = 0.5
"""The share of what a graph keeps resident from which its tables are what matters."""

Cost = Callable[[PlacementProblem, Table, int, int], float]
"""What a table costs on a device, if the dense part is on another."""


@dataclass(frozen=True)
class _Rule:
    """How tables are spread.

    Attributes:
        cost: What one costs.
        reserved: The share of each accelerator's memory that is not for tables.
        asks_torchrec: Whether torchrec is asked first.
    """

    cost: Cost
    reserved: float = 0.0
    asks_torchrec: bool = False


def has_tables(graph: ComputationGraph) -> bool:
    """Whether most of what a graph keeps resident is embedding tables."""
    held = sum(table_bytes(graph, table) for table in find_tables(graph))
    return held > MOST_OF_IT * max(int(graph.resident_bytes.sum()), 1)


def place_by_size(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Largest tables first, each where least bytes are.

    Raises:
        NotServedError: As `_place`.
    """
    return _place(problem, budget, "tables_by_size", _Rule(_size))


def place_by_lookups(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Tables with most looked up first, each where least is.

    Raises:
        NotServedError: As `_place`.
    """
    return _place(problem, budget, "tables_by_lookups", _Rule(_looked_up))


def place_as_torchrec(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Tables that take longest first, each where least time is taken, as torchrec estimates it.

    Raises:
        NotServedError: As `_place`.
    """
    return _place(problem, budget, "torchrec", _Rule(_estimated_s, RESERVED, asks_torchrec=True))


def _place(problem: PlacementProblem, budget: Budget, name: str, rule: _Rule) -> Placed:
    """Spread the tables by a rule, for the dense part on each accelerator; the best of these.

    Raises:
        NotServedError: The graph has no tables, or they are not most of it, or the cluster has no accelerator.
    """
    accelerators = [i for i, device in enumerate(problem.cluster.devices) if device.spec.kind != "cpu"]
    if not accelerators or not has_tables(problem.graph):
        raise NotServedError(
            f"placer '{name}' spreads embedding tables over accelerators; take a graph that is mostly tables, as dlrm",
            reason="for embedding tables on accelerators",
        )
    search = Search(problem, budget)
    tables = find_tables(problem.graph)
    home = [_group_of(problem, table) for table in tables]
    planned, by = _planned(problem, tables, home, rule, accelerators) if rule.asks_torchrec else (None, "")
    placements = np.stack(
        [
            _spread(problem, tables, home, rule, accelerators, dense)
            if planned is None
            else np.where(planned >= 0, planned, _rest_on(problem, dense))
            for dense in accelerators
        ]
    )
    evaluation = search.evaluate(np.unique(placements, axis=0))
    note = by if evaluation.feasible.any() else "what it says does not fit"
    host = [i for i in range(problem.num_devices) if i not in accelerators]
    if evaluation.feasible.any() and search.best_placement is not None:
        left = sum(search.best_placement[group] in host for group in set(home))
        note = "; ".join(filter(None, [note, f"{left} of {len(tables)} tables on the host" if left else ""]))
    return search.placed(note=note)


def _planned(
    problem: PlacementProblem, tables: Sequence[Table], home: Sequence[int], rule: _Rule, accelerators: Sequence[int]
) -> tuple[NDArray[np.int64] | None, str]:
    """``int64[G]``: where torchrec's planner puts the tables, -1 for all else; None where it is not asked, and why."""
    rest = np.ones(problem.num_groups, dtype=np.bool_)
    rest[list(home)] = False
    devices, by = ask_torchrec(
        problem,
        tables,
        accelerators,
        row_bytes=[sum(_row_bytes(problem.graph, op) for op in table.lookups) for table in tables],
        dense_bytes=int(group_bytes(problem)[rest].sum()),
        reserved=rule.reserved,
    )
    if devices is None:
        return None, by
    if not problem.allowed[list(home), devices].all():
        return None, "by its published rule: torchrec knows no pins"
    placement = np.full(problem.num_groups, -1, dtype=np.int64)
    placement[list(home)] = devices
    return placement, by


def _rest_on(problem: PlacementProblem, dense: int) -> NDArray[np.int64]:
    """``int64[G]``: all on one device where it may be there."""
    allowed = problem.allowed
    return np.where(allowed[:, dense], dense, allowed.argmax(axis=1)).astype(np.int64)


def _group_of(problem: PlacementProblem, table: Table) -> int:
    """The group of a table's rows."""
    return int(problem.groups.group_of_op[table.parameter])


def _spread(
    problem: PlacementProblem,
    tables: Sequence[Table],
    home: Sequence[int],
    rule: _Rule,
    accelerators: Sequence[int],
    dense: int,
) -> NDArray[np.int64]:
    """``int64[G]``: the tables by the rule, all else on one device."""
    allowed = problem.allowed
    placement = _rest_on(problem, dense)
    sizes = group_bytes(problem).astype(np.float64)
    room = problem.cluster.memory_bytes * (1 - rule.reserved)
    rest = np.ones(problem.num_groups, dtype=np.bool_)
    rest[list(home)] = False
    np.subtract.at(room, placement[rest], sizes[rest])
    hosts = [i for i in range(problem.num_devices) if i not in accelerators]
    costs = np.array([[rule.cost(problem, table, device, dense) for device in accelerators] for table in tables])
    spent = dict.fromkeys(accelerators, 0.0)
    done: set[int] = set()
    for at in np.argsort(-costs.max(axis=1), kind="stable").tolist():
        group = home[at]
        if group in done:  # groups that hold several tables
            continue
        done.add(group)
        choices = [d for d in accelerators if allowed[group, d] and room[d] >= sizes[group]]
        if choices:
            device = min(choices, key=lambda d: (spent[d], accelerators.index(d)))
            spent[device] += float(costs[at, accelerators.index(device)])
        else:
            device = next((d for d in hosts if allowed[group, d]), int(allowed[group].argmax()))
        placement[group] = device
        room[device] -= sizes[group]
    return placement


def _size(problem: PlacementProblem, table: Table, device: int, dense: int) -> float:
    return float(table_bytes(problem.graph, table))


def _looked_up(problem: PlacementProblem, table: Table, device: int, dense: int) -> float:
    """Bytes of the rows that are looked up."""
    return float(sum(_row_bytes(problem.graph, op) for op in table.lookups))


def _row_bytes(graph: ComputationGraph, lookup: int) -> int:
    """Bytes of the rows that a look-up reads: what it accesses but for what it writes."""
    first, end = graph.tensor_offsets[lookup : lookup + 2]
    return max(int(graph.bytes_accessed[lookup]) - int(graph.tensor_bytes[first:end].sum()), 0)


def _estimated_s(problem: PlacementProblem, table: Table, device: int, dense: int) -> float:
    """Seconds of a step that torchrec estimates for a table."""
    graph, cluster = problem.graph, problem.cluster
    accessed = sum(int(graph.bytes_accessed[op]) for op in table.lookups)
    pooled = sum(int(graph.tensor_bytes[graph.tensor_offsets[op]]) for op in table.lookups)
    compute_s = accessed / cluster.devices[device].spec.memory_bytes_per_s
    # The planner knows one bandwidth between devices, whether a shard's rows stay on its device or not.
    others = [d for d in range(problem.num_devices) if d != device and cluster.devices[d].spec.kind != "cpu"]
    between = min((float(cluster.routes.bytes_per_s[device, d]) for d in others), default=np.inf)
    comms_s = pooled / between
    trained = bool(table.updates)
    return compute_s * (1 + BACKWARD_COMPUTE * trained) + comms_s * (1 + trained)
