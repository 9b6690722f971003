"""The computation graph, co-location groups, importers, and the zoo of workloads. Importing it loads no torch.

What it offers is imported when it is first asked for, so that the command's help need not wait for NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphs.colocation.groups import Groups, make_groups, one_group_an_op
    from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
    from graphs.errors import InputError, NoFeasiblePlacementError

_HOME = {
    "ComputationGraph": "graphs.computation_graph",
    "Groups": "graphs.colocation.groups",
    "InputError": "graphs.errors",
    "NoFeasiblePlacementError": "graphs.errors",
    "OpRecord": "graphs.computation_graph",
    "TensorRecord": "graphs.computation_graph",
    "build": "graphs.computation_graph",
    "make_groups": "graphs.colocation.groups",
    "one_group_an_op": "graphs.colocation.groups",
}

__all__ = [
    "ComputationGraph",
    "Groups",
    "InputError",
    "NoFeasiblePlacementError",
    "OpRecord",
    "TensorRecord",
    "build",
    "make_groups",
    "one_group_an_op",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'graphs' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
