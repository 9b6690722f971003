"""Co-location groups: which ops are placed together, by the rules of a model's structure.

`colocate` first finds the natural groups of a graph and then merges them to the wanted number
(`coarsening.coarsen`). The rules follow Mirhoseini et al., "Device Placement Optimization with Reinforcement
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
   a module that does something itself and whose parts are all leaves, called once in each of its calls, at most two of
   them with FLOPs (convolution, normalisation and activation; two layers with an activation between), or four where it
   is called in many steps (an LSTM cell made of products, a step of attention).
5. *Leftovers* are ops of no module: those of the model itself (``""``), and those of a module that loops over its parts
   (it is called less often than a part), because they belong to many steps. A leftover whose output only one other op
   of the forward pass reads joins it, repeatedly. One that several read joins the producer of its largest input, or
   where no group makes one its first reader. A backward leftover joins the group whose parameter it reads or whose
   parameter's gradient it makes; else the producer of the largest forward tensor that it reads, which is the group of
   its forward op; else it does as in the forward pass. A group takes in leftovers up to a 128th of the step's work and
   memory or four average ops (where they have FLOPs up to a 1024th), and the rest stand alone: the paper's rule by
   itself makes one group of any chain. In a graph without any FLOPs, only profiled times, all ops count as having some.
6. *What hardly works.* A module call without FLOPs (activation, normalisation, dropout, loss) that reads from only one
   group joins it where that one has FLOPs; one without parameters that only one group reads joins that.
7. *Parameters.* A parameter (with what is bound to it: its gradient's accumulation, optimizer state and update) whose
   readers of the forward pass are in one group joins it. A weight that several groups read, shared over time steps, is
   in the group ``encoder.0/parameters`` with the other parameters of its module that the same groups read. One that
   nobody reads (in inference the count of the batches seen) joins a parameter of its module that is read.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from graphs.colocation.atoms import BACKWARD, FORWARD, Atoms, Call, make_atoms
from graphs.colocation.coarsening import coarsen, find, unique_names
from graphs.colocation.groups import Groups, make_groups
from graphs.computation_graph import ANY_KIND, DEVICE_KINDS, ComputationGraph
from graphs.errors import InputError

WANTED_GROUPS = 256
"""Wanted number of groups where nobody says otherwise; the paper's policies placed 83 to 280."""

LEFTOVER_SHARE = 1 / 128
"""The share of a step's work and memory that a group takes in as leftovers."""

LEFTOVER_OPS = 4
"""The same as a number of average ops, where it is more: in a small graph every op is a large share."""

LEFTOVER_SHARE_WITH_FLOPS = 1 / 1024
"""The share that counts for leftovers with FLOPs: products are what a placement is about, and better stand alone."""


def colocate(graph: ComputationGraph, *, wanted_groups: int = WANTED_GROUPS) -> Groups:
    """The co-location groups of a graph: the natural ones, merged to at most a wanted number.

    See the module's text for the rules, and `coarsening.coarsen` for what is merged first.

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
    with _collector_paused():
        return coarsen(graph, natural_groups(graph), wanted_groups)


def natural_groups(graph: ComputationGraph) -> Groups:
    """The groups that the structure of a graph suggests, however many they are; see `colocate`."""
    atoms = make_atoms(graph)
    state = _Clusters(atoms)
    _join_inputs(state)
    _join_module_calls(state)
    _join_forward_leftovers(state)
    _join_light_calls(state)
    _join_parameters(state)
    _join_other_leftovers(state)
    _join_parameters(state)
    _join_unread_parameters(state)
    _gather_shared_parameters(state)
    return _name_groups(graph, state)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without Python's cyclic garbage collector, which would walk all lists of a large graph again and again.

    It makes grouping grow faster than n log n, and finds nothing: no cycles are made here.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Clusters:
    """Atoms that were joined so far: a forest, with what each tree weighs and is called."""

    def __init__(self, atoms: Atoms) -> None:
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
        most = LEFTOVER_SHARE_WITH_FLOPS if self.has_flops[a] else max(LEFTOVER_SHARE, LEFTOVER_OPS / len(self.root))
        if not self.may_join(a, b) or taken > most:
            return False
        self.join(a, b)
        self.taken_in[b] = taken
        return True


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
        and (atoms.phase[a] == FORWARD) == forward
    ]


def _join_forward_leftovers(state: _Clusters) -> None:
    """Rule 5 for the forward pass."""
    atoms = state.atoms
    leftovers = _leftovers(state, forward=True)
    heads = []
    for atom in reversed(leftovers):
        readers = [r for r in atoms.readers[atom] if atoms.phase[r] == FORWARD and not atoms.is_parameter[r]]
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
    """The atom that makes the largest tensor that leftovers read from other groups; the last of equals.

    The last made, so that a residual sum joins its own layer and not the one before. Inputs and parameters do not
    count: a step's inputs are on the host, and a weight may have many readers.
    """
    atoms, cluster = state.atoms, state.of(chain[0])
    best, best_bytes = None, -1
    for producer, size, of_parameter in (read for atom in chain for read in atoms.reads[atom]):
        if of_parameter or atoms.is_input[producer] or atoms.is_parameter[producer]:
            continue
        if state.of(producer) == cluster or (forward_only and atoms.phase[producer] != FORWARD):
            continue
        if size > best_bytes or (size == best_bytes and best is not None and producer > best):
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
        forward = [a for a in own if atoms.phase[a] == FORWARD]
        read = {
            state.of(p)
            for a in forward
            for p, _, of_parameter in atoms.reads[a]
            if not of_parameter and not atoms.is_input[p] and not atoms.is_parameter[p]
        } - {cluster}
        read_by = {state.of(r) for a in forward for r in atoms.readers[a] if atoms.phase[r] == FORWARD} - {cluster}
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
    forward = [r for r in readers if atoms.phase[r] == FORWARD]
    return sorted({state.of(r) for r in forward or readers} - {state.of(parameter)})


def _join_other_leftovers(state: _Clusters) -> None:
    """Rule 5 for the backward pass and the update."""
    atoms = state.atoms
    alone = []
    for atom in _leftovers(state, forward=False):
        home = _own_parameter(state, atom)
        if home is None and atoms.phase[atom] == BACKWARD:
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


def _join_unread_parameters(state: _Clusters) -> None:
    """Rule 7 for parameters without readers."""
    atoms = state.atoms
    read: dict[tuple[str, int], int] = {}
    for atom, is_parameter in enumerate(atoms.is_parameter):
        if is_parameter and atoms.readers[atom]:
            read.setdefault((atoms.owner[atom], atoms.kinds[atom]), atom)
    for atom, is_parameter in enumerate(atoms.is_parameter):
        home = read.get((atoms.owner[atom], atoms.kinds[atom]))
        if is_parameter and not atoms.readers[atom] and home is not None:
            state.join(atom, home)


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
    heaviest = max(leftovers, key=lambda a: (atoms.phase[a] == FORWARD, atoms.share[a], -a))
    op = atoms.first_op[heaviest]
    return graph.op_names[op], atoms.owner[heaviest], int(graph.module_call[op])
