"""Hypothesis strategies: random clusters, problems and placements, small enough for the plain simulators."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.problem import PlacementProblem
from envs.simulator.input import SCHEDULES
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, TensorRecord, build

FEW = settings(max_examples=50, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=10_000)

TIMES_S = (0.0, 0.0, 0.25, 1.0, 1.0, 2.0, 1 / 3, 0.1)  # ties, no time at all, and sums that round
SENDS_S = (*(math.nan,) * 4, *TIMES_S)  # most tensors take what their bytes take
MODULES = ("", "", "a", "a.x", "a.y", "b", "b.z.u", "b.z.v", "c.0", "c.1.x", "loss")
SIZES = (0, 1, 1, 2, 7, 1000)
HELD = (*(None,) * len(SIZES), *SIZES)  # half of the ops hold nothing
SPECS = tuple(DeviceSpec(f"spec{i}", kind, 500, {"float32": 1.0}, 1.0) for i, kind in enumerate(("gpu", "gpu", "cpu")))


def choices(draw: st.DrawFn, *menus: Sequence[Any]) -> list[Any]:
    """One of each menu: all are digits of one number, as drawing takes the time; it shrinks to the first of each."""
    code = draw(st.integers(0, math.prod(map(len, menus)) - 1))
    chosen = []
    for menu in menus:
        code, place = divmod(code, len(menu))
        chosen.append(menu[place])
    return chosen


@st.composite
def clusters(draw: st.DrawFn, specs: tuple[DeviceSpec, ...] = SPECS, complete: bool = False) -> Cluster:
    """A row, a star, a tree over two switches, or a link for every pair; with and without latency."""
    count = draw(st.integers(1, 5))
    devices = tuple(Device(f"d{i}", draw(st.sampled_from(specs))) for i in range(count))
    names = [d.name for d in devices]
    shape = "complete" if complete else draw(st.sampled_from(["row", "star", "tree", "complete"]))
    pairs = {
        "row": list(itertools.pairwise(names)),
        "star": [(name, "s") for name in names],
        "tree": [(name, "st"[i % 2]) for i, name in enumerate(names)] + [("s", "t")],
        "complete": list(itertools.combinations(names, 2)),
    }[shape]
    speeds, delays = st.sampled_from([0.5, 1.0, 3.0, 1e3]), st.sampled_from([0.0, 0.0, 0.25, 0.1])
    same = draw(speeds), draw(delays)
    links = tuple(Link(a, b, *(same if complete else (draw(speeds), draw(delays)))) for a, b in pairs)
    return Cluster("random", devices, links, {"star": ("s",), "tree": ("s", "t")}.get(shape, ()))


@st.composite
def problems(
    draw: st.DrawFn, cluster: st.SearchStrategy[Cluster] | None = None, restrict: bool = True
) -> PlacementProblem:
    machine = draw(clusters() if cluster is None else cluster)
    count = draw(st.integers(1, 22))
    kinds = sorted({d.spec.kind for d in machine.devices})
    specs = sorted({d.spec.name for d in machine.devices})
    ops, tensors = [], []
    forward = draw(st.sampled_from([count, count // 2]))
    kept = (None, None, None, *([kind] for kind in kinds)) if restrict else (None,)
    for op in range(count):
        allowed, held, module, call, made, *times_s = choices(
            draw, kept, HELD, MODULES, (0, 0, 1), (0, 1, 1, 1, 2, 3), *(TIMES_S for _ in specs)
        )
        record = OpRecord(
            f"op{op}",
            "add",
            allowed_kinds=allowed,
            resident_bytes={} if held is None else {"parameter": held},
            time_s=dict(zip(specs, times_s, strict=True)),
        )
        phase = "forward" if op < forward else "backward"
        ops.append(replace(record, module=module, module_call=call, phase=phase))
        later = range(op + 1, count) or (None,)
        for _ in range(made):
            size, resident, seconds, several, *readers = choices(
                draw, SIZES, (False, True), SENDS_S, range(5), *(later for _ in range(4))
            )
            tensors.append(TensorRecord(op, size, sorted({*readers[:several]} - {None}), resident, seconds))
    graph = build("random", ops, tensors)
    return PlacementProblem(graph, one_group_an_op(graph), machine, draw(st.sampled_from(SCHEDULES)))


@st.composite
def placed(draw: st.DrawFn, problem: st.SearchStrategy[PlacementProblem]) -> tuple[PlacementProblem, np.ndarray]:
    made = draw(problem)
    return made, np.array(choices(draw, *(range(made.num_devices) for _ in range(made.graph.num_ops))))
