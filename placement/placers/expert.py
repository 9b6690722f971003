"""What a person would do by hand, for the workloads that have such a rule; read off the module paths.

Mirhoseini et al. (2017), section 4.1, arXiv 1706.04972: recurrent nets with one LSTM layer a GPU, attention and softmax
with the top layer, embeddings with the bottom one; Inception-V3 cut into contiguous parts of about equal layer count.
The other networks of blocks one after the other are cut in the same way. Experts of a sparsely gated layer go to the
devices in turn, the rest to the first device (Shazeer 2017, section 3.1, arXiv 1701.06538, without its replicas).
DLRM's tables go, largest first, to the accelerator with most memory left, to the host where none is left, and its
products to the first accelerator (Naumov 2019, section 4, arXiv 1906.00091, without the replicas of the products).

A graph of replicas (`graphs.replicate`) has a replica a device, in the order of the ring.

What the paper leaves open: with fewer GPUs than layers, layers of the same depth share a GPU (the encoder's first and
the decoder's first, ...), as TensorFlow's NMT tutorial did; with more, the rest stay idle. A layer of Inception-V3 is a
convolution or a product; cuts fall between the blocks. An expert does not repair: what does not fit is reported so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.computation_graph import PHASES
from graphs.errors import NotServedError
from graphs.replicate import replica_of_op
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.single_device import all_on

UNKNOWN = -1


@dataclass(frozen=True)
class Stacked:
    """Stacks of layers, one layer a device.

    Attributes:
        stacks: Module paths of the stacks, bottom to top; a layer is ``<stack>.<number>``.
        bottom: Module path -> the stack whose bottom layer it goes with.
        top: Module path -> the stack whose top layer it goes with.
    """

    stacks: Sequence[str]
    bottom: Mapping[str, str] = field(default_factory=dict)
    top: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Parts:
    """Blocks in program order, cut into parts of about equal layer count, one part a device.

    Attributes:
        depth: A block is a module path cut after so many components.
    """

    depth: int = 2


@dataclass(frozen=True)
class Spread:
    """Modules side by side, spread over the devices; everything else on the first.

    Attributes:
        modules: Name of what holds them; they are ``<...>.<modules>.<number>``.
        by_memory: Largest first to the accelerator with most memory left, or to a host; otherwise in turn.
    """

    modules: str
    by_memory: bool = False


KEPT_FREE = 0.1
"""The share of an accelerator's memory that `Spread` by memory leaves to activations."""


RULES: dict[str, Stacked | Parts | Spread] = {
    "rnnlm": Stacked(("cells",), bottom={"embedding": "cells"}, top={"softmax": "cells"}),
    "nmt": Stacked(
        ("encoder", "decoder"),
        bottom={"encoder_embedding": "encoder", "decoder_embedding": "decoder"},
        top={"attention": "decoder", "attention_keys": "decoder", "softmax": "decoder"},
    ),
    "inception_v3": Parts(),
    "resnet50": Parts(depth=3),
    "nasnet": Parts(),
    "transformer_lm": Parts(),
    "bert": Parts(),
    "moe_lm": Spread("experts"),
    "dlrm": Spread("tables", by_memory=True),
}
"""The rule for each workload of the zoo that has one."""


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Apply the workload's rule.

    Raises:
        NotServedError: There is no rule for this graph, or its modules are not those that the rule knows.
    """
    search = Search(problem, budget)
    replica = replica_of_op(problem.graph)
    workload = problem.graph.name.partition(":")[0]
    if workload not in RULES and not replica.any():
        raise NotServedError(
            f"placer 'expert' knows no rule for graph '{problem.graph.name}'; it has rules for: "
            f"{', '.join(sorted(RULES))}",
            reason="no rule for this graph",
        )
    accelerators = [i for i, device in enumerate(problem.cluster.devices) if device.spec.kind != "cpu"]
    hosts = [i for i, device in enumerate(problem.cluster.devices) if device.spec.kind == "cpu"]
    if not accelerators:  # cores of a machine without accelerators are placed on like them
        accelerators, hosts = hosts, []
    if replica.any():
        first_op = np.unique(problem.groups.group_of_op, return_index=True)[1]
        parts = replica[first_op] % len(accelerators)
    else:
        parts = _by_rule(problem, RULES[workload], accelerators, hosts)
    homes = np.stack([all_on(problem, device) for device in [*accelerators, *hosts]])  # [D, G]
    fits = search.evaluate(homes[parts, np.arange(problem.num_groups)][None]).feasible.all()
    return search.placed(note="" if fits else "the expert's placement does not fit")


def _by_rule(
    problem: PlacementProblem, rule: Stacked | Parts | Spread, accelerators: list[int], hosts: list[int]
) -> NDArray[np.int64]:
    """``int64[G]``: the number of the device of each group, among the accelerators and then the hosts."""
    if isinstance(rule, Stacked):
        of_path = _stacked(problem, rule, len(accelerators))
    elif isinstance(rule, Parts):
        of_path = _parts(problem, rule)
    else:
        of_path = _spread(problem, rule, accelerators, hosts)
    parts = _of_groups(problem, [of_path(path) for path in problem.graph.module_names])
    if (parts == UNKNOWN).all():
        raise NotServedError(
            f"placer 'expert': graph '{problem.graph.name}' has none of the modules that its rule knows",
            reason="no rule for this graph's modules",
        )
    if isinstance(rule, Parts):
        parts = _cut(problem, parts, len(accelerators))
    return _follow_neighbours(problem, parts)


def _stacked(problem: PlacementProblem, rule: Stacked, num_devices: int) -> Callable[[str], int]:
    """A function from a module path to the number of a device."""
    layers = [sorted(_layers(problem, stack)) for stack in rule.stacks]
    enough = sum(map(len, layers)) <= num_devices
    device: dict[str, int] = {}
    for stack, numbers in zip(rule.stacks, layers, strict=True):
        for depth, number in enumerate(numbers):
            device[f"{stack}.{number}"] = len(device) if enough else depth % num_devices
    for path, stack in rule.bottom.items():
        device[path] = device.get(f"{stack}.0", UNKNOWN)
    for path, stack in rule.top.items():
        device[path] = device.get(f"{stack}.{max(_layers(problem, stack), default=0)}", UNKNOWN)

    def of_path(path: str) -> int:
        components = path.split(".")
        return device.get(".".join(components[:2]), device.get(components[0], UNKNOWN))

    return of_path


def _layers(problem: PlacementProblem, stack: str) -> set[int]:
    """The numbers of a stack's layers."""
    paths = (path.split(".") for path in problem.graph.module_names)
    return {int(parts[1]) for parts in paths if parts[0] == stack and len(parts) > 1 and parts[1].isdecimal()}


def _parts(problem: PlacementProblem, rule: Parts) -> Callable[[str], int]:
    """A function from a module path to the number of its block, in order of the blocks' first forward ops."""
    graph = problem.graph
    forward = graph.phase == PHASES.index("forward")
    # Parameters stand before the first op; a block begins where it computes.
    computes = forward & ((graph.flops > 0) | (graph.bytes_accessed > 0))
    blocks: dict[str, int] = {}
    for module in graph.module[computes]:
        path = graph.module_names[module]
        if path:
            blocks.setdefault(_block(path, rule), len(blocks))
    return lambda path: blocks.get(_block(path, rule), UNKNOWN) if path else UNKNOWN


def _spread(
    problem: PlacementProblem, rule: Spread, accelerators: Sequence[int], hosts: Sequence[int]
) -> Callable[[str], int]:
    """A function from a module path to the place of its device among the accelerators and, after them, the hosts."""
    graph = problem.graph
    number_of = [_number(path, rule.modules) for path in graph.module_names]
    place = {number: i % len(accelerators) for i, number in enumerate(sorted({n for n in number_of if n != UNKNOWN}))}
    if rule.by_memory:
        resident = np.zeros(max(place, default=0) + 1)
        number = np.array(number_of)[graph.module]
        spread = number != UNKNOWN
        np.add.at(resident, number[spread], graph.resident_bytes.sum(axis=1)[spread].astype(np.float64))
        left = np.array([problem.cluster.devices[i].spec.memory_bytes * (1 - KEPT_FREE) for i in accelerators])
        for n in sorted(place, key=lambda n: (-resident[n], n)):
            place[n] = int(left.argmax())
            if resident[n] > left[place[n]] and hosts:
                place[n] = len(accelerators)
            else:
                left[place[n]] -= resident[n]
    return lambda path: place.get(_number(path, rule.modules), 0)


def _number(path: str, modules: str) -> int:
    """Which of the modules side by side a path is in, `UNKNOWN` where in none."""
    components = path.split(".")
    if modules in components[:-1]:
        number = components[components.index(modules) + 1]
        return int(number) if number.isdecimal() else UNKNOWN
    return UNKNOWN


def _block(path: str, rule: Parts) -> str:
    return ".".join(path.split(".")[: rule.depth])


def _cut(problem: PlacementProblem, block: NDArray[np.int64], num_devices: int) -> NDArray[np.int64]:
    """From the blocks of groups to parts with about equal numbers of layers."""
    graph = problem.graph
    is_layer = (graph.phase == PHASES.index("forward")) & (graph.flops > 0)
    layers = np.zeros(int(block.max()) + 1)
    layer_block = block[problem.groups.group_of_op[is_layer]]
    np.add.at(layers, layer_block[layer_block != UNKNOWN], 1.0)
    middle = np.cumsum(layers) - layers / 2
    part = np.minimum(middle * num_devices / max(layers.sum(), 1.0), num_devices - 1).astype(np.int64)
    return np.where(block == UNKNOWN, UNKNOWN, part[block])


def _of_groups(problem: PlacementProblem, of_module: Sequence[int]) -> NDArray[np.int64]:
    """``int64[G]``: what most ops of each group say, `UNKNOWN` where none says anything."""
    said = np.array(of_module, dtype=np.int64)[problem.graph.module]
    votes = np.zeros((problem.num_groups, int(said.max(initial=UNKNOWN)) + 2))
    known = said != UNKNOWN
    np.add.at(votes, (problem.groups.group_of_op[known], said[known]), 1.0)
    return np.where(votes.any(axis=1), votes.argmax(axis=1), UNKNOWN)


def _follow_neighbours(problem: PlacementProblem, part: NDArray[np.int64]) -> NDArray[np.int64]:
    """Groups that the rule does not name go with the neighbours with which they exchange most bytes."""
    graph, group_of_op = problem.graph, problem.groups.group_of_op
    a = group_of_op[graph.edge_producer]
    b = group_of_op[graph.consumers]
    size = graph.weighed_bytes[graph.edge_tensor].astype(np.float64) + 1.0
    part = part.copy()
    while (part == UNKNOWN).any():
        votes = np.zeros((problem.num_groups, int(part.max()) + 1))
        for one, other in ((a, b), (b, a)):
            useful = (part[one] == UNKNOWN) & (part[other] != UNKNOWN)
            np.add.at(votes, (one[useful], part[other[useful]]), size[useful])
        joins = votes.any(axis=1)
        if not joins.any():
            part[part == UNKNOWN] = 0
            return part
        part[joins] = votes[joins].argmax(axis=1)
    return part
