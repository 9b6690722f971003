"""Co-location groups: which ops are placed together, by the rules of a model's structure.

`colocate` first finds the natural groups of a graph and then merges them to the wanted number
(`graphs.coarsening.coarsen`). The rules follow Mirhoseini et al., "Device Placement Optimization with Reinforcement
Learning" (ICML 2017, arXiv 1706.04972, section 3.3): ops that the framework colocates stay together, an op whose output
only one other op reads joins it, and an LSTM cell's step, an attention step, a softmax step or a part of an Inception
branch is one group. Their lists were written by hand for each model; here a group is found from the module call that an
op was captured in.

**The rules**

1. *Constraints.* Ops that the graph's `colocation` binds are one thing for all that follows. An update that reads one
   parameter is bound to it even where the graph does not say so.
2. *Kinds.* Ops that are allowed on different kinds of device never share a group (unless bound: then the group may be
   on what all of them allow).
3. *Inputs.* The step's inputs are the group ``inputs``, with nothing else in it: they start on the host.
4. *Module calls.* All ops of one call of one module, forward and backward, are a group: ``encoder.0/7`` is the eighth
   call of ``encoder.0``, its time step 7. The innermost module decides, except that a small one is one with its parts:
   a module that does something itself and whose parts are all leaves, called once in each of its calls, at most four of
   them with FLOPs (an LSTM cell made of two products; convolution, normalisation and activation; attention with its
   query, key, value and output).
5. *Leftovers* are ops of no module: those of the model itself (``""``), and those of a module that loops over its parts
   (it is called less often than a part), because they belong to many steps. A leftover whose output only one other op
   of the forward pass reads joins it, repeatedly. One that several read joins the producer of its largest input, or
   where no group makes one its first reader. A backward leftover joins the group whose parameter it reads or whose
   parameter's gradient it makes; else the producer of the largest forward tensor that it reads, which is the group of
   its forward op; else it does as in the forward pass. A group takes in leftovers up to a 128th of the step's work and
   memory (where they have FLOPs a 1024th), and the rest stand alone: the paper's rule by itself makes one group of any
   chain.
6. *What hardly works.* A module call without FLOPs (activation, normalisation, dropout, loss) that reads from only one
   group joins it where that one has FLOPs; one without parameters that only one group reads joins that.
7. *Parameters.* A parameter (with what is bound to it: its gradient's accumulation, optimizer state and update) whose
   readers of the forward pass are in one group joins it. A weight that several groups read, shared over time steps, is
   in the group ``encoder.0/parameters`` with the other parameters of its module that the same groups read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphs.coarsening import coarsen, find, op_work, unique_names
from graphs.computation_graph import ANY_KIND, DEVICE_KINDS, INPUT, PARAMETER, PHASES, ComputationGraph
from graphs.errors import InputError
from graphs.groups import Groups, make_groups

WANTED_GROUPS = 256
"""Wanted number of groups where nobody says otherwise; the paper's policies placed 83 to 280."""

LEFTOVER_SHARE = 1 / 128
"""The share of a step's work and memory that a group takes in as leftovers."""

LEFTOVER_SHARE_WITH_FLOPS = 1 / 1024
"""The same for leftovers that have FLOPs: products are what a placement is about, and better stand alone."""

UNIT_PARTS = 4
"""The most parts with FLOPs of a module that is one group with its parts."""

_LEVELS = 64
"""Enclosing modules that are looked at; far more than any model nests."""

_FORWARD, _BACKWARD, _UPDATE = (PHASES.index(phase) for phase in ("forward", "backward", "update"))

Call = tuple[str, int]
"""A module path and the how-manieth call of that module."""


def colocate(graph: ComputationGraph, *, wanted_groups: int = WANTED_GROUPS) -> Groups:
    """The co-location groups of a graph: the natural ones, merged to at most a wanted number.

    See the module's text for the rules, and `graphs.coarsening.coarsen` for what is merged first.

    Args:
        graph: The graph.
        wanted_groups: At least 1. Fewer groups come out where the graph has fewer natural ones; more only where kinds
            of device force them apart.

    Returns:
        A partition of the ops that keeps every co-location constraint.

    Raises:
        InputError: `wanted_groups` is less than 1, or ops that must share a device are allowed on no common kind.
    """
    if wanted_groups < 1:
        raise InputError(f"the wanted number of groups is {wanted_groups}; it must be at least 1")
    return coarsen(graph, natural_groups(graph), wanted_groups)


def natural_groups(graph: ComputationGraph) -> Groups:
    """The groups that the structure of a graph suggests, however many they are; see `colocate`."""
    atoms = _make_atoms(graph)
    state = _Clusters(atoms)
    _join_inputs(state)
    _join_module_calls(state)
    _join_forward_leftovers(state)
    _join_light_calls(state)
    _join_parameters(state)
    _join_other_leftovers(state)
    _join_parameters(state)
    _gather_shared_parameters(state)
    return _name_groups(graph, state)


@dataclass(frozen=True, eq=False)
class _Atoms:
    """What co-location constraints leave to decide: sets of bound ops, and single ops. Letter: ``A`` atoms.

    Attributes:
        of_op: ``int64[N]``.
        first_op: For each atom, its first op.
        kinds: Bit mask of the kinds of device that all its ops allow.
        phase: Of its first op.
        is_input: All its ops are inputs.
        is_parameter: It has a parameter, and no op of the forward pass that belongs to a module.
        call: The module call that it belongs to by rule 4; None for leftovers, inputs and parameters.
        owner: The module of its first op, for names.
        has_flops: It has FLOPs.
        share: Its share of the step's work plus, for what reads parameters, of the resident bytes.
        reads: For each atom what it reads, as (atom, bytes, whether a parameter), in tensor order.
        readers: For each atom which others read it, without repetition, in order.
    """

    of_op: NDArray[np.int64]
    first_op: list[int]
    kinds: list[int]
    phase: list[int]
    is_input: list[bool]
    is_parameter: list[bool]
    call: list[Call | None]
    owner: list[str]
    has_flops: list[bool]
    share: list[float]
    reads: list[list[tuple[int, int, bool]]]
    readers: list[list[int]]


class _Clusters:
    """Atoms that were joined so far: a forest, with what each tree weighs and is called."""

    def __init__(self, atoms: _Atoms) -> None:
        count = len(atoms.first_op)
        self.atoms = atoms
        self.root = list(range(count))
        self.taken_in = [0.0] * count
        self.share = list(atoms.share)
        self.has_flops = list(atoms.has_flops)
        self.label: list[Call | None] = list(atoms.call)
        self.shared = [False] * count

    def of(self, atom: int) -> int:
        """The cluster of an atom."""
        return find(self.root, atom)

    def may_join(self, atom: int, other: int) -> bool:
        """Whether an atom's cluster and another's may be one: the same kinds of device, and not inputs."""
        kinds, is_input = self.atoms.kinds, self.atoms.is_input
        return kinds[atom] == kinds[other] and not is_input[atom] and not is_input[other]

    def join(self, atom: int, into: int) -> None:
        """Make one cluster of two; it keeps the label of the second."""
        a, b = self.of(atom), self.of(into)
        if a != b:
            self.root[a] = b
            self.share[b] += self.share[a]
            self.has_flops[b] |= self.has_flops[a]
            self.label[b] = self.label[b] or self.label[a]

    def take_in(self, atom: int, into: int) -> bool:
        """Join a leftover's cluster to another one, if kinds allow it and its share of leftovers is not used up."""
        a, b = self.of(atom), self.of(into)
        if a == b:
            return True
        taken = self.taken_in[b] + self.share[a]
        most = LEFTOVER_SHARE_WITH_FLOPS if self.has_flops[a] else LEFTOVER_SHARE
        if not self.may_join(a, b) or taken > most:
            return False
        self.join(a, b)
        self.taken_in[b] = taken
        return True


def _make_atoms(graph: ComputationGraph) -> _Atoms:
    """Rules 1 and 2: bind, and look up what later rules ask of each atom."""
    of_op = _bind(graph)
    count = int(of_op.max()) + 1
    first_op = np.unique(of_op, return_index=True)[1]
    kinds = np.full(count, ANY_KIND, dtype=np.int64)
    np.bitwise_and.at(kinds, of_op, graph.allowed_kinds.astype(np.int64))
    for atom in np.flatnonzero(kinds == 0)[:1]:
        names = [graph.op_names[i] for i in np.flatnonzero(of_op == atom)]
        raise InputError(
            f"graph '{graph.name}': op '{names[0]}' and {len(names) - 1} others must share a device, but no kind of "
            "device is allowed to all of them; change their allowed_kinds or the colocation constraint"
        )
    is_parameter_op = graph.op_type == _type_index(graph, PARAMETER)
    is_input_op = graph.op_type == _type_index(graph, INPUT)
    sizes = np.bincount(of_op, minlength=count)
    inputs = np.bincount(of_op, is_input_op, count) == sizes
    has_parameter = np.bincount(of_op, is_parameter_op, count) > 0
    call = _calls(graph, of_op, is_parameter_op | is_input_op, has_parameter)

    source, target = of_op[graph.edge_producer], of_op[graph.consumers]
    reads: list[list[tuple[int, int, bool]]] = [[] for _ in range(count)]
    readers: list[list[int]] = [[] for _ in range(count)]
    columns = (source, target, graph.tensor_bytes[graph.edge_tensor], is_parameter_op[graph.edge_producer])
    for a, b, size, of_parameter in zip(*(c.tolist() for c in columns), strict=True):
        if a != b:
            reads[b].append((a, size, of_parameter))
            if not readers[a] or readers[a][-1] != b:
                readers[a].append(b)
    return _Atoms(
        of_op=of_op,
        first_op=first_op.tolist(),
        kinds=kinds.tolist(),
        phase=graph.phase[first_op].tolist(),
        is_input=inputs.tolist(),
        is_parameter=[bool(p) and c is None for p, c in zip(has_parameter, call, strict=True)],
        call=call,
        owner=[graph.module_names[m] for m in graph.module[first_op]],
        has_flops=(np.bincount(of_op, graph.flops, count) > 0).tolist(),
        share=_shares(graph, of_op, is_parameter_op).tolist(),
        reads=reads,
        readers=[sorted(set(r)) for r in readers],
    )


def _bind(graph: ComputationGraph) -> NDArray[np.int64]:
    """Rule 1: ``int64[N]``, the atom of each op; atoms are numbered by their first op."""
    root = list(range(graph.num_ops))
    first: dict[int, int] = {}
    bound = np.flatnonzero(graph.colocation >= 0)
    for op, number in zip(bound.tolist(), graph.colocation[bound].tolist(), strict=True):
        root[op] = first.setdefault(number, op)
    offsets, tensors = graph.input_tensors
    parameter = _type_index(graph, PARAMETER)
    updates = (graph.phase == _UPDATE) & (graph.colocation < 0) & (graph.op_type != _type_index(graph, INPUT))
    for op in np.flatnonzero(updates).tolist():
        producers = np.unique(graph.tensor_producer[tensors[offsets[op] : offsets[op + 1]]])
        owners = producers[graph.op_type[producers] == parameter]
        if len(owners) == 1 and graph.allowed_kinds[owners[0]] == graph.allowed_kinds[op]:
            root[op] = find(root, int(owners[0]))
    _, numbered = np.unique([find(root, op) for op in range(graph.num_ops)], return_inverse=True)
    return numbered.astype(np.int64)


def _calls(
    graph: ComputationGraph, of_op: NDArray[np.int64], is_source: NDArray[np.bool_], has_parameter: NDArray[np.bool_]
) -> list[Call | None]:
    """Rule 4: the call that each atom belongs to, by its first op that tells one.

    A bound set with a parameter takes it only from forward ops (a normalisation bound to its running mean), because the
    adds that accumulate a gradient belong to the parameter and not to any call.
    """
    unit = _units(graph)
    call: list[Call | None] = [None] * len(has_parameter)
    tells = ~is_source & (graph.phase != _UPDATE) & (~has_parameter[of_op] | (graph.phase == _FORWARD))
    for op in np.flatnonzero(tells).tolist():
        atom = of_op[op]
        module = unit[graph.module[op]]
        if call[atom] is None and module is not None:
            call[atom] = (module, int(graph.module_call[op]))
    return call


def _units(graph: ComputationGraph) -> list[str | None]:
    """The module that each module's calls are grouped by: itself, a small one around it, or None for leftovers."""
    names = graph.module_names
    sources = [_type_index(graph, INPUT), _type_index(graph, PARAMETER)]
    works = (graph.phase != _UPDATE) & ~np.isin(graph.op_type, sources)
    calls = np.full(len(names), -1, dtype=np.int64)
    np.maximum.at(calls, graph.module[works], graph.module_call[works])
    flops = np.bincount(graph.module, graph.flops, len(names)) > 0
    present = {names[m]: m for m in np.flatnonzero(calls >= 0).tolist()}
    parts: dict[str, list[str]] = {name: [] for name in present}
    loops = {""}
    for name, m in present.items():
        around = [outer for outer in _enclosing(name) if outer in present]
        if around:
            parts[around[0]].append(name)
        loops.update(outer for outer in around if calls[present[outer]] < calls[m])
    unit: dict[str, str | None] = {name: None if name in loops else name for name in present}
    for name, inner in parts.items():
        if (
            name not in loops
            and inner
            and all(not parts[p] and calls[present[p]] == calls[present[name]] for p in inner)
            and sum(bool(flops[present[p]]) for p in inner) <= UNIT_PARTS
        ):
            unit.update(dict.fromkeys(inner, name))
    return [unit.get(name) for name in names]


def _enclosing(path: str) -> Iterable[str]:
    """The paths of the modules around a module, innermost first, without the model itself."""
    for _ in range(_LEVELS):
        path = path.rpartition(".")[0]
        if not path:
            return
        yield path


def _shares(
    graph: ComputationGraph, of_op: NDArray[np.int64], is_parameter_op: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """``float64[A]``: share of the step's work, plus that of resident bytes among the readers of parameters."""
    count = int(of_op.max()) + 1
    work = op_work(graph)
    share = np.bincount(of_op, work, count) / max(work.sum(), 1.0)
    resident = graph.resident_bytes.astype(np.float64).sum(axis=1)
    edges = np.flatnonzero(is_parameter_op[graph.edge_producer])
    producer = graph.edge_producer[edges]
    readers = np.bincount(producer, minlength=graph.num_ops)
    each = resident[producer] / np.maximum(readers[producer], 1) / max(resident.sum(), 1.0)
    return share + np.bincount(of_op[graph.consumers[edges]], each, count)


def _type_index(graph: ComputationGraph, name: str) -> int:
    """The index of an op type, -1 where no op has it."""
    return graph.type_names.index(name) if name in graph.type_names else -1


def _join_inputs(state: _Clusters) -> None:
    """Rule 3."""
    first: dict[int, int] = {}
    for atom, is_input in enumerate(state.atoms.is_input):
        if is_input:
            state.join(atom, first.setdefault(state.atoms.kinds[atom], atom))


def _join_module_calls(state: _Clusters) -> None:
    """Rule 4."""
    first: dict[tuple[Call, int], int] = {}
    for atom, call in enumerate(state.atoms.call):
        if call is not None:
            state.join(atom, first.setdefault((call, state.atoms.kinds[atom]), atom))


def _leftovers(state: _Clusters, *, forward: bool) -> list[int]:
    """The atoms of rule 5 in one part of the step, in program order."""
    atoms = state.atoms
    return [
        a
        for a, call in enumerate(atoms.call)
        if call is None
        and not atoms.is_input[a]
        and not atoms.is_parameter[a]
        and (atoms.phase[a] == _FORWARD) == forward
    ]


def _join_forward_leftovers(state: _Clusters) -> None:
    """Rule 5 for the forward pass."""
    atoms = state.atoms
    leftovers = _leftovers(state, forward=True)
    heads = []
    for atom in reversed(leftovers):
        readers = [r for r in atoms.readers[atom] if atoms.phase[r] == _FORWARD and not atoms.is_parameter[r]]
        if len(readers) != 1 or not state.take_in(atom, readers[0]):
            heads.append(atom)
    _take_in_heads(state, reversed(heads))


def _take_in_heads(state: _Clusters, heads: Iterable[int]) -> None:
    """Rule 5 for leftovers that several ops read: to the producer of the largest input, else to the first reader."""
    atoms = state.atoms
    for head in heads:
        home = _largest_input(state, _chain(state, head))
        if home is None and atoms.readers[head]:
            home = atoms.readers[head][0]
        if home is not None:
            state.take_in(head, home)


def _chain(state: _Clusters, head: int) -> list[int]:
    """A leftover and those before it that have joined it, in no order that matters."""
    cluster = state.of(head)
    chain, seen = [head], {head}
    for atom in chain:
        for producer, _, _ in state.atoms.reads[atom]:
            if producer not in seen and state.of(producer) == cluster:
                seen.add(producer)
                chain.append(producer)
    return chain


def _largest_input(state: _Clusters, chain: Sequence[int], *, forward_only: bool = False) -> int | None:
    """The atom that makes the largest tensor that leftovers read from other groups; the first of equals.

    Inputs and parameters do not count: a step's inputs are on the host, and a weight may have many readers.
    """
    atoms, cluster = state.atoms, state.of(chain[0])
    best, best_bytes = None, -1
    for producer, size, of_parameter in (read for atom in chain for read in atoms.reads[atom]):
        if of_parameter or atoms.is_input[producer] or atoms.is_parameter[producer]:
            continue
        if state.of(producer) == cluster or (forward_only and atoms.phase[producer] != _FORWARD):
            continue
        if size > best_bytes or (size == best_bytes and best is not None and producer < best):
            best, best_bytes = producer, size
    return best


def _join_light_calls(state: _Clusters) -> None:
    """Rule 6, in program order: a normalisation joins its convolution before the activation looks for its producer."""
    atoms = state.atoms
    members: dict[int, list[int]] = {}
    for atom in range(len(atoms.first_op)):
        cluster = state.of(atom)
        if state.label[cluster] is not None and not state.has_flops[cluster]:
            members.setdefault(cluster, []).append(atom)
    for own in members.values():
        cluster = state.of(own[0])
        if state.has_flops[cluster]:
            continue
        forward = [a for a in own if atoms.phase[a] == _FORWARD]
        read = {
            state.of(p)
            for a in forward
            for p, _, of_parameter in atoms.reads[a]
            if not of_parameter and not atoms.is_input[p] and not atoms.is_parameter[p]
        } - {cluster}
        read_by = {state.of(r) for a in forward for r in atoms.readers[a] if atoms.phase[r] == _FORWARD} - {cluster}
        owns_parameters = any(of_parameter for a in forward for _, _, of_parameter in atoms.reads[a])
        for others, allowed in ((read, True), (read_by, not owns_parameters)):
            if allowed and len(others) == 1:
                other = others.pop()
                if state.has_flops[other] and state.may_join(cluster, other):
                    state.join(cluster, other)
                    break


def _join_parameters(state: _Clusters) -> None:
    """Rule 7 for parameters of one group; called again when the leftovers that read some have found their groups."""
    atoms = state.atoms
    for atom, is_parameter in enumerate(atoms.is_parameter):
        if is_parameter:
            users = _users(state, atom)
            if len(users) == 1 and state.may_join(atom, users[0]):
                state.join(atom, users[0])
            state.shared[atom] = len(users) > 1


def _users(state: _Clusters, parameter: int) -> list[int]:
    """The groups that read a parameter in the forward pass, or where none does in the rest of the step."""
    atoms = state.atoms
    readers = [r for r in atoms.readers[parameter] if not atoms.is_parameter[r]]
    forward = [r for r in readers if atoms.phase[r] == _FORWARD]
    return sorted({state.of(r) for r in forward or readers} - {state.of(parameter)})


def _join_other_leftovers(state: _Clusters) -> None:
    """Rule 5 for the backward pass and the update."""
    atoms = state.atoms
    alone = []
    for atom in _leftovers(state, forward=False):
        home = _own_parameter(state, atom)
        if home is None and atoms.phase[atom] == _BACKWARD:
            home = _largest_input(state, [atom], forward_only=True)
        if home is not None and state.may_join(atom, home):
            state.join(atom, home)
        else:
            alone.append(atom)
    heads = []
    for atom in reversed(alone):
        readers = atoms.readers[atom]
        if len(readers) != 1 or not state.take_in(atom, readers[0]):
            heads.append(atom)
    _take_in_heads(state, reversed(heads))


def _own_parameter(state: _Clusters, atom: int) -> int | None:
    """The parameter of one group that a backward op reads, or whose gradient it makes."""
    atoms = state.atoms
    for producer, _, of_parameter in atoms.reads[atom]:
        if of_parameter and not state.shared[producer]:
            return producer
    readers = atoms.readers[atom]
    if len(readers) == 1 and atoms.is_parameter[readers[0]] and not state.shared[readers[0]]:
        return readers[0]
    return None


def _gather_shared_parameters(state: _Clusters) -> None:
    """Rule 7 for parameters of several groups."""
    atoms = state.atoms
    first: dict[tuple[str, int, tuple[int, ...]], int] = {}
    users = {a: tuple(_users(state, a)) for a, p in enumerate(atoms.is_parameter) if p and state.of(a) == a}
    for atom, of in users.items():
        key = (atoms.owner[atom], atoms.kinds[atom], of)
        if key in first:
            state.join(atom, first[key])
        else:
            first[key] = atom


def _name_groups(graph: ComputationGraph, state: _Clusters) -> Groups:
    """Number the clusters in program order, and give each a name, a family and a step."""
    atoms = state.atoms
    clusters: dict[int, list[int]] = {}
    for atom in range(len(atoms.first_op)):
        clusters.setdefault(state.of(atom), []).append(atom)
    last_call: dict[str, int] = {}
    for module, number in filter(None, atoms.call):
        last_call[module] = max(last_call.get(module, 0), number)
    names, families, steps = [], [], []
    for cluster, members in clusters.items():
        name, family, step = _describe(graph, state, cluster, members, last_call)
        kinds = atoms.kinds[cluster]
        if kinds != ANY_KIND:
            name += f"[{','.join(kind for bit, kind in enumerate(DEVICE_KINDS) if kinds >> bit & 1)}]"
        names.append(name)
        families.append(family)
        steps.append(step)
    index = {cluster: i for i, cluster in enumerate(clusters)}
    of_atom = np.array([index[state.of(atom)] for atom in range(len(atoms.first_op))])
    return make_groups(of_atom[atoms.of_op], unique_names(names), families, steps)


def _describe(
    graph: ComputationGraph, state: _Clusters, cluster: int, members: Sequence[int], last_call: Mapping[str, int]
) -> tuple[str, str, int]:
    """A group's name, family and step."""
    atoms = state.atoms
    label = state.label[cluster]
    if label is not None:
        module, call = label
        return (f"{module}/{call}" if last_call[module] else module), module, call
    if atoms.is_input[cluster]:
        return "inputs", "inputs", 0
    leftovers = [a for a in members if not atoms.is_parameter[a]]
    if not leftovers:
        owner = atoms.owner[members[0]]
        return f"{owner}/parameters" if owner else "parameters", owner, 0
    heaviest = max(leftovers, key=lambda a: (atoms.share[a], -a))
    op = atoms.first_op[heaviest]
    return graph.op_names[op], atoms.owner[heaviest], int(graph.module_call[op])
