"""The computation graph, co-location groups, importers, and the zoo of workloads. Importing it loads no torch."""

from graphs.colocation.groups import Groups, make_groups, one_group_an_op
from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import InputError, NoFeasiblePlacementError

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
