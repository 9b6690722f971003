"""Co-location groups: which ops share a device, and the orders in which groups may be walked.

Letters: ``N`` ops, ``G`` groups, ``B`` placements in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError


@dataclass(frozen=True, eq=False)
class Groups:
    """A partition of a graph's ops into co-location groups.

    Groups are numbered in program order, by their first op, so ``range(G)`` is the program order.

    Attributes:
        group_of_op: ``int32[N]``.
        names: ``G`` unique names, for example ``"encoder.0/7"`` (module / time step).
        family: ``int32[G]``, index into `family_names`: groups of the same family are the same module (or the same kind
            of module) at other time steps.
        family_names: The distinct families, in order of first appearance.
        step: ``int32[G]``, the group's time step (the smallest where it spans several), 0 where there is none.

    Raises:
        InputError: A group is empty, or the numbering is not by first op.
    """

    group_of_op: NDArray[np.int32]
    names: tuple[str, ...]
    family: NDArray[np.int32]
    family_names: tuple[str, ...]
    step: NDArray[np.int32]

    def __post_init__(self) -> None:
        used, first = np.unique(self.group_of_op, return_index=True)
        if len(used) != len(self.names) or (len(used) and (used[0] != 0 or used[-1] != len(used) - 1)):
            raise InputError(f"groups must be numbered 0 to {len(self.names) - 1} with at least one op each")
        if (np.diff(first) <= 0).any():
            raise InputError("groups must be numbered in the order of their first ops")
        if len(self.family) != len(self.names) or len(self.step) != len(self.names):
            raise InputError("family and step need one entry a group")
        for column in (self.group_of_op, self.family, self.step):
            column.setflags(write=False)

    @property
    def num_groups(self) -> int:
        """``G``."""
        return len(self.names)

    @cached_property
    def program_order(self) -> NDArray[np.int64]:
        """``int64[G]``: the groups by their first op in the program."""
        return np.arange(self.num_groups)

    @cached_property
    def family_order(self) -> NDArray[np.int64]:
        """``int64[G]``: the groups by (module family, time step), families by first appearance."""
        return np.lexsort((np.arange(self.num_groups), self.step, self.family))

    def to_ops(self, placement: NDArray[np.integer]) -> NDArray[np.int32]:
        """Expand a placement of groups, ``int[..., G]``, to one of ops, ``int32[..., N]``."""
        return np.asarray(placement, dtype=np.int32)[..., self.group_of_op]


def make_groups(
    label_of_op: NDArray[np.integer],
    names: list[str],
    families: list[str],
    steps: list[int],
) -> Groups:
    """Number groups in program order from any labelling.

    Args:
        label_of_op: ``int[N]``, an index into the other arguments; labels that no op has are dropped.
        names: A name for each label.
        families: The family of each label.
        steps: The time step of each label.
    """
    used, first, group_of_op = np.unique(label_of_op, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    labels = used[order]
    family_index: dict[str, int] = {}
    family = np.array([family_index.setdefault(families[i], len(family_index)) for i in labels], dtype=np.int32)
    return Groups(
        group_of_op=rank[group_of_op],
        names=tuple(names[i] for i in labels),
        family=family,
        family_names=tuple(family_index),
        step=np.array([steps[i] for i in labels], dtype=np.int32),
    )


def one_group_an_op(graph: ComputationGraph) -> Groups:
    """The finest grouping that the graph's hard co-location constraints allow."""
    label = np.arange(graph.num_ops)
    bound = np.flatnonzero(graph.colocation >= 0)
    if bound.size:
        _, first, inverse = np.unique(graph.colocation[bound], return_index=True, return_inverse=True)
        label[bound] = bound[first[inverse]]
    return make_groups(
        label, list(graph.op_names), [graph.module_names[m] for m in graph.module], [int(c) for c in graph.module_call]
    )
