"""A step time that no placement can beat, and one that none can exceed: proven and quick to compute.

Letters: ``N`` ops, ``G`` groups, ``D`` devices, ``C`` classes of interchangeable devices, ``T`` tensors.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs import bound_kernels
from envs.problem import PlacementProblem
from envs.targets import SEQUENTIAL
from graphs.errors import NoFeasiblePlacementError

_ROUNDING = 1e-9
"""The bounds are moved to the safe side by this share, more than any order of adding float64 figures can differ."""

_FAR_LARGER = 1e6
"""Times, and memories, this many times those of the whole step are as good as infinite to the solver."""

_SETUP_S_A_GROUP = 1e-5
"""Seconds a group that it takes to hand a linear programme to the solver, about; then the solver takes its own."""

_CUTS = 12
"""Heads, and tails, that windows are tried at."""

Floats = NDArray[np.float64]


def lower_bound_s(problem: PlacementProblem, *, time_limit_s: float | None = None) -> float:
    """A step time in seconds that no feasible placement of the problem's groups can beat, under any schedule.

    The larger of two bounds. For placements of single ops within the graph's hard constraints, ask for the bound of
    ``problem.with_groups(one_group_an_op(problem.graph))``; with larger groups fewer placements exist and the bound may
    be higher. Under the schedule ``sequential`` there is a third: nothing overlaps, and each group takes at least its
    time on the fastest device that it may be on.

    **Paths.** Let ``head(v, d)`` be the earliest time at which op ``v`` can start on device ``d``. Each tensor that it
    reads comes from some device ``e`` on which its producer ``u`` ran, so it arrives no sooner than
    ``min over e of head(u, e) + time(u, e) + transfer(e, d)``, where ``e`` ranges over the devices that ``u`` may be on
    (only ``d`` where both ops are in one group), and the transfer takes its route's latency plus bytes by bandwidth (or
    what the tensor's transfers are said to take) if ``e`` is not ``d``. By induction along the topological order the
    largest of these is a lower bound of ``head(v, d)``, whatever the rest of the placement. ``tail(v, d)``, the time
    from the end of ``v`` to the end of the step, is bounded from the readers' side likewise. Every op runs somewhere,
    so the step takes at least ``max over v of min over d of head + time + tail``. This holds the critical path on the
    fastest allowed devices, and the transfers that pinned ops (the step's inputs) force.

    **Work.** Take the ops whose head is at least ``h`` and whose tail is at least ``q`` on every device, if there are
    any. In a step of ``t`` seconds they all run between ``h`` and ``t - q``, one at a time on each device, so no device
    has more than ``t - h - q`` seconds of them. Let each group be divided over the devices that it may be on, in any
    shares (a placement is the special case of whole groups), such that the residents fit each memory: the least
    possible largest load is a linear programme, and ``h + q`` plus its value bounds the step. Windows ``(h, q)`` are
    screened by the prices of the whole programme's dual solution, and the best are solved. What is returned for each is
    not the solver's value but the Lagrangian at its prices ``p, m >= 0`` (of a second, and of a byte, on each device,
    ``sum of p = 1``): ``sum over groups of min over d of (p_d * time + m_d * resident) - sum over d of m_d *
    memory_d``. By weak duality that is a lower bound for any prices, so the solver's tolerances cannot make it wrong.

    Memory for activations, contention for links, and that groups are whole are not used: the true optimum is higher.

    Args:
        problem: What to bound; of its schedule it only matters whether it is ``sequential``.
        time_limit_s: Seconds after which windows are left out, and the linear programme is given up for a weaker bound
            that needs none; None lets all be solved, and so repeats itself.

    Raises:
        NoFeasiblePlacementError: Even in fractions the residents fit no memory that they are allowed in.

    References:
        Work and path bounds: Graham, "Bounds on multiprocessing timing anomalies", 1969, doi:10.1137/0117039; heads,
        tails and windows: Carlier and Pinson, "An algorithm for solving the job-shop problem", 1989,
        doi:10.1287/mnsc.35.2.164; the programme for unlike devices: Lenstra, Shmoys and Tardos, 1990,
        doi:10.1007/BF01585745, section 2.
    """
    until_s = math.inf if time_limit_s is None else time.perf_counter() + time_limit_s
    heads = _heads(problem)
    tails = _tails(problem)
    allowed = problem.allowed[problem.groups.group_of_op]  # [N, D]
    times = np.where(allowed, problem.op_time_s.T, np.inf)  # [N, D]
    path_s = float((heads + times + tails).min(axis=1).max())
    head = np.where(allowed, heads, np.inf).min(axis=1)
    tail = np.where(allowed, tails, np.inf).min(axis=1)
    bound_s = max(path_s, float(_work_bound_s(problem, head, tail, until_s)))
    if problem.schedule == SEQUENTIAL:
        bound_s = max(bound_s, float(np.where(problem.allowed, problem.group_time_s, np.inf).min(axis=1).sum()))
    return float(bound_s) * (1 - _ROUNDING)


def upper_bound_s(problem: PlacementProblem) -> float:
    """A step time in seconds that no placement of the problem's groups on allowed devices exceeds, under any schedule.

    At every instant of a step some op runs or some transfer is under way: an idle device starts an op as soon as it
    may, and a transfer that waits, waits for one that is under way on its route. (In program order the first op that
    has not run may start, once its inputs are there.) So the step takes no longer than all ops one after another, each
    where it is slowest, and all transfers one after another: each tensor once to every other group that reads it, or
    to every other device if these are fewer, over the slowest route. Under ``sequential`` it may be sent once to each
    of its readers in another group.

    Args:
        problem: What to bound; of its schedule it only matters whether it is ``sequential``.
    """
    slowest = np.where(problem.allowed[problem.groups.group_of_op], problem.op_time_s.T, 0.0).max(axis=1)
    graph, group = problem.graph, problem.groups.group_of_op
    elsewhere = group[graph.consumers] != group[graph.edge_producer]
    reader = graph.edge_tensor[elsewhere].astype(np.int64) * problem.num_groups + group[graph.consumers[elsewhere]]
    copies = np.bincount(np.unique(reader) // problem.num_groups, minlength=graph.num_tensors)
    copies = np.minimum(copies, problem.num_devices - 1)
    if problem.schedule == SEQUENTIAL and problem.num_devices > 1:
        copies = np.bincount(graph.edge_tensor[elsewhere], minlength=graph.num_tensors)
    latency, per_byte = _routes(problem, least=False)
    apart = ~np.eye(problem.num_devices, dtype=np.bool_)
    transfer_s = np.zeros(graph.num_tensors)
    for route in np.unique(np.stack([latency[apart], per_byte[apart]]), axis=1).T:
        np.maximum(transfer_s, route[0] + graph.tensor_bytes * route[1], out=transfer_s)
    transfer_s = np.where(np.isnan(graph.tensor_transfer_s), transfer_s, graph.tensor_transfer_s)
    return float(slowest.sum() + (copies * transfer_s).sum()) * (1 + _ROUNDING)


def _heads(problem: PlacementProblem) -> Floats:
    """``float64[N, D]``: no op can start on a device sooner than this."""
    count = problem.num_devices
    heads = np.zeros((problem.graph.num_ops, count))
    arguments = [*_columns(problem), np.zeros(count), np.zeros(count), heads]
    bound_kernels.heads(*arguments)
    return heads


def _tails(problem: PlacementProblem) -> Floats:
    """``float64[N, D]``: from the end of an op on a device the step lasts at least this."""
    tails = np.zeros((problem.graph.num_ops, problem.num_devices))
    arguments = [*_columns(problem), np.zeros(problem.num_devices), tails]
    bound_kernels.tails(*arguments)
    return tails


def _columns(problem: PlacementProblem) -> list[NDArray[Any]]:
    """What the compiled loops read, each in the one form that they are compiled for."""
    graph, routes = problem.graph, _routes(problem)
    columns: list[tuple[NDArray[Any], type[np.generic]]] = [
        (graph.tensor_producer, np.int32),
        (graph.consumer_offsets, np.int64),
        (graph.consumers, np.int32),
        (problem.groups.group_of_op, np.int32),
        (problem.allowed, np.bool_),
        (problem.op_time_s, np.float64),
        (routes[0], np.float64),
        (routes[1], np.float64),
        (graph.tensor_bytes, np.int64),
        (graph.tensor_transfer_s, np.float64),
    ]
    views = [np.ascontiguousarray(column, dtype=dtype).view() for column, dtype in columns]
    for view in views:
        view.setflags(write=False)
    return views


def _routes(problem: PlacementProblem, *, least: bool = True) -> tuple[Floats, Floats]:
    """Seconds, and seconds a byte, that a transfer takes, at least or at most, ``float64[D, D]``; the diagonal is 0."""
    routes = problem.cluster.routes
    # Where the receiver copies, its first reader pays for the bytes, and another may have run before it.
    return routes.latency_s, np.where(routes.receiver_copies & least, 0.0, 1 / routes.bytes_per_s)


@dataclass(frozen=True, eq=False)
class _Work:
    """Groups that may be divided over classes of devices, for the linear programme.

    Attributes:
        op_time_s: ``float64[C, N]``.
        group_of_op: ``int[N]``.
        resident_bytes: ``float64[G]``.
        allowed: ``bool[G, C]``.
        devices: ``float64[C]``, how many devices each class has.
        whole_room_bytes: Bytes of all devices of each class together, as Python's integers.
        limits_bytes: Whole bytes that some classes can hold together: pairs of classes and a limit. Each class is in
            one of them.
    """

    op_time_s: Floats
    group_of_op: NDArray[np.integer]
    resident_bytes: Floats
    allowed: NDArray[np.bool_]
    devices: Floats
    whole_room_bytes: list[int]
    limits_bytes: list[tuple[list[int], int]]

    def group_time_s(self, ops: NDArray[np.bool_]) -> Floats:
        """``float64[G, C]``: op time of each group, of those of its ops that `ops`, ``bool[N]``, holds."""
        groups, count = self.group_of_op[ops], len(self.resident_bytes)
        return np.stack([np.bincount(groups, times[ops], count) for times in self.op_time_s], axis=1)

    @property
    def room_bytes(self) -> Floats:
        """``float64[C]``: bytes of all devices of each class together."""
        return np.array(self.whole_room_bytes, dtype=np.float64)

    def lagrangian_s(self, time_s: Floats, second: Floats, byte: Floats) -> float:
        """The bound at given prices of a second and of a byte on one device of each class, ``float64[C]`` each."""
        scale = float((self.devices * second).sum())
        cost = second * time_s + byte * self.resident_bytes[:, None]  # [G, C]
        total = np.where(self.allowed, cost, np.inf).min(axis=1).sum()
        room = (byte * self.room_bytes).sum()
        # The two may nearly cancel, so each is rounded to the safe side.
        return float(total * (1 - _ROUNDING / 1000) - room * (1 + _ROUNDING / 1000)) / scale


def _work_bound_s(problem: PlacementProblem, head: Floats, tail: Floats, until_s: float) -> float:
    """The work part of `lower_bound_s`; `head` and `tail` are ``float64[N]``, least over the allowed devices.

    `until_s` is when to leave the rest, by `time.perf_counter`.
    """
    work = _work(problem)
    _check_residents(problem, work)
    everything = np.ones(problem.graph.num_ops, dtype=np.bool_)
    best, second, byte = _least_load(work, work.group_time_s(everything), until_s)
    screened = []
    for h in np.unique(np.quantile(head, np.linspace(0, 1, _CUTS))):
        for q in np.unique(np.quantile(tail, np.linspace(0, 1, _CUTS))):
            inside = (head >= h) & (tail >= q)
            if inside.any() and time.perf_counter() < until_s:
                screened.append((h + q + work.lagrangian_s(work.group_time_s(inside), second, byte), h, q))
    for bound, h, q in sorted(screened, reverse=True)[:3]:
        best = max(best, bound)
        if time.perf_counter() < until_s:
            time_s = work.group_time_s((head >= h) & (tail >= q))
            best = max(best, h + q + _least_load(work, time_s, until_s)[0])
    return best


def _work(problem: PlacementProblem) -> _Work:
    """Gather the devices that are alike in speed, memory and what they are allowed to run."""
    spec = problem.simulator_input.device_spec
    cluster = problem.cluster
    alike: dict[tuple[int, int, int, bytes], list[int]] = {}
    for device in range(problem.num_devices):
        memory = (int(cluster.memory_bytes[device]), int(cluster.shared_by[device]))
        alike.setdefault((int(spec[device]), *memory, problem.allowed[:, device].tobytes()), []).append(device)
    first = [devices[0] for devices in alike.values()]
    rooms = [len(devices) * int(cluster.memory_bytes[devices[0]]) for devices in alike.values()]
    limits: dict[int, list[int]] = {}  # by shared memory, or a number of its own
    for which, device in enumerate(first):
        shared = int(cluster.shared_by[device])
        limits.setdefault(shared if shared >= 0 else -1 - which, []).append(which)
        if shared >= 0:
            rooms[which] = min(rooms[which], int(cluster.shared_memories[shared].memory_bytes))
    return _Work(
        op_time_s=problem.op_time_s[first],
        group_of_op=problem.groups.group_of_op,
        resident_bytes=problem.group_resident_bytes.astype(np.float64),
        allowed=problem.allowed[:, first],
        devices=np.array([len(devices) for devices in alike.values()], dtype=np.float64),
        whole_room_bytes=rooms,
        limits_bytes=[
            (classes, int(cluster.shared_memories[key].memory_bytes) if key >= 0 else rooms[classes[0]])
            for key, classes in limits.items()
        ],
    )


def _check_residents(problem: PlacementProblem, work: _Work) -> None:
    """Raise where the residents, even in fractions, fit no memory that they are allowed in.

    A maximum flow from the groups to the devices' memories, in whole bytes and so exact. Groups that may be on the same
    devices are one node.
    """
    import networkx as nx  # as scipy below, slow to load, and not needed to show a first placement

    classes, index = np.unique(work.allowed, axis=0, return_inverse=True)
    flow: nx.DiGraph = nx.DiGraph()
    needs = [0] * len(classes)
    for which, resident in zip(index.ravel(), problem.group_resident_bytes.tolist(), strict=True):
        needs[which] += resident
    for node, (where, need) in enumerate(zip(classes, needs, strict=True)):
        flow.add_edge("residents", ("groups", node), capacity=need)
        flow.add_edges_from((("groups", node), ("devices", device)) for device in np.flatnonzero(where).tolist())
    rooms = [room for _, room in work.limits_bytes]
    for number, (members, room) in enumerate(work.limits_bytes):
        flow.add_edge(("memory", number), "memory", capacity=room)
        for member in members:
            flow.add_edge(("devices", member), ("memory", number), capacity=work.whole_room_bytes[member])
    if needs and nx.maximum_flow_value(flow, "residents", "memory") < sum(needs):
        in_all_gb, room_gb = sum(needs) / 1e9, sum(rooms) / 1e9
        raise NoFeasiblePlacementError(
            f"graph '{problem.graph.name}' keeps {in_all_gb:.2f} GB resident, which cannot be divided over the "
            f"devices of cluster '{problem.cluster.name}' ({room_gb:.2f} GB) so that each holds only what it may"
        )


def _least_load(work: _Work, time_s: Floats, until_s: float) -> tuple[float, Floats, Floats]:
    """Solve the linear programme: the bound at its dual prices, and these prices of a second and a byte, by class.

    Groups with equal rows are one variable with their number as its total, which changes nothing and makes unrolled
    networks small. What is not solved by `until_s`, by `time.perf_counter`, is bounded at prices of devices all alike.
    """
    classes = len(work.devices)
    alike = np.ones(classes), np.zeros(classes)
    if until_s - time.perf_counter() < _SETUP_S_A_GROUP * len(time_s):
        return work.lagrangian_s(time_s, *alike), *alike
    from scipy import sparse
    from scipy.optimize import linprog

    rows = np.concatenate([time_s, work.resident_bytes[:, None], work.allowed], axis=1)
    rows, copies = np.unique(rows, axis=0, return_counts=True)
    count = len(rows)
    times, resident, allowed = rows[:, :classes], rows[:, classes], rows[:, classes + 1 :] > 0
    # Seconds and bytes in units that are near 1, as the solver's tolerances expect; what is far larger is cut off
    # there, which can only make the prices worse, not the bound wrong.
    unit_s = float((np.where(allowed, times, np.inf).min(axis=1) * copies).sum())
    unit_bytes = max(float((resident * copies).sum()), 1.0)
    if unit_s == 0:
        unit_s = max(float(times.max()), 1.0)
    scaled = np.minimum(times, unit_s * _FAR_LARGER) / unit_s
    room = np.minimum(work.room_bytes, unit_bytes * _FAR_LARGER) / unit_bytes
    column = np.arange(count * classes)  # share of row r on class c is variable r * classes + c; the load is the last
    in_class = sparse.csr_array((np.ones(column.size), (column % classes, column)), shape=(classes, column.size))
    load = sparse.hstack([in_class * scaled.ravel(), -work.devices[:, None]])
    memory = sparse.hstack([in_class * np.repeat(resident / unit_bytes, classes), np.zeros((classes, 1))])
    total = sparse.csr_array((np.ones(column.size), (column // classes, column)), shape=(count, column.size + 1))
    upper = np.append(np.where(allowed, copies[:, None], 0).ravel().astype(np.float64), np.inf)
    # A hair more memory, so that residents that fit exactly are not lost to rounding.
    limit = np.concatenate([np.zeros(classes), room * (1 + 1e-9)])
    solution = linprog(
        np.append(np.zeros(column.size), 1.0),
        A_ub=sparse.vstack([load, memory]).tocsr(),
        b_ub=limit,
        A_eq=total,
        b_eq=copies.astype(np.float64),
        bounds=np.stack([np.zeros(column.size + 1), upper], axis=1),
        method="highs",
        options={} if math.isinf(until_s) else {"time_limit": max(until_s - time.perf_counter(), 0.0)},
    )
    if solution.status != 0:
        # The solver gave up, had no time, or calls infeasible what `_check_residents` has shown to be feasible, as it
        # does where times differ by many orders. Every device alike is a valid choice of prices, only a weaker one.
        second, byte = alike
    else:
        prices = np.maximum(-solution.ineqlin.marginals, 0.0)
        second, byte = prices[:classes], prices[classes:] * unit_s / unit_bytes
    if not second.any():
        return 0.0, np.ones(classes), np.zeros(classes)
    return work.lagrangian_s(time_s, second, byte), second, byte
