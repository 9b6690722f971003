"""A placement as a table of ops, JSON or CSV."""

from __future__ import annotations

import csv
import io

import msgspec

from graphs.computation_graph import PHASES
from placement.results.simulated import Simulated

_COLUMNS = ("op", "type", "module", "module_call", "phase", "group", "device")


def encode_ops_json(simulated: Simulated) -> bytes:
    """Every op with its device, and what the step then is, as JSON."""
    problem = simulated.problem
    content = {
        "graph": problem.graph.name,
        "cluster": problem.cluster.name,
        "schedule": problem.schedule,
        "step_time_s": simulated.step_time_s,
        "feasible": simulated.feasible,
        "ops": [dict(zip(_COLUMNS, row, strict=True)) for row in _rows(simulated)],
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def encode_ops_csv(simulated: Simulated) -> bytes:
    """Every op with its device as CSV, a header first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_rows(simulated))
    return text.getvalue().encode()


def _rows(simulated: Simulated) -> list[tuple[str | int, ...]]:
    graph, groups = simulated.problem.graph, simulated.problem.groups
    devices = simulated.problem.cluster.device_names
    return [
        (
            graph.op_names[op],
            graph.type_names[graph.op_type[op]],
            graph.module_names[graph.module[op]],
            int(graph.module_call[op]),
            PHASES[graph.phase[op]],
            groups.names[groups.group_of_op[op]],
            devices[simulated.op_placement[op]],
        )
        for op in range(graph.num_ops)
    ]
