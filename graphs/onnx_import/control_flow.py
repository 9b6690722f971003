"""If, Loop and Scan where it is known beforehand what they do: the branch that is taken, the turns that are made.

A loop is walked turn by turn. One that would come to very many operators becomes a single one, which costs what one
turn costs times their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphs.errors import InputError
from graphs.onnx_import.dimensions import missing_error
from graphs.onnx_import.frames import Emitted, Frame, Walker
from graphs.onnx_import.values import MOST_ELEMENTS, Tensor, Value, missing_of, shown, title

MOST_UNROLLED = 2000
"""Operators that the turns of one loop may come to; a longer loop is one operator."""

_INT64, _BOOL = 7, 9
_REMEDY = "export the model without control flow"


class _Started:
    """Where the walk was before the first turn of a loop, which tells how long the loop is with the loops in it."""

    def __init__(self, walk: Walker) -> None:
        self._walk = walk
        self._emitted, self._expanded = len(walk.emitted), walk.expanded

    def is_too_long(self, turns: int) -> bool:
        """Whether as many turns as the one made since would come to too many operators."""
        return turns > 1 and turns * (self._walk.expanded - self._expanded) > MOST_UNROLLED

    def take_back(self) -> None:
        """Forget the turn."""
        del self._walk.emitted[self._emitted :]


def _graph(node: Any, name: str) -> Any:
    for attribute in node.attribute:
        if attribute.name == name and attribute.HasField("g"):
            return attribute.g
    raise InputError(f"operator {title(node)} lacks the graph '{name}'; export the model again")


def _name(frame: Frame, node: Any) -> str:
    return frame.prefix + (node.name or next((n for n in node.output if n), ""))


def _undecided(walk: Walker, node: Any, message: str, value: Value | None) -> InputError:
    """The error for what is not known: sizes that are missing, where it is because of them."""
    missing = {m for m in walk.missing_inputs if not m.error} or missing_of([value])
    if missing:
        return missing_error(str(walk.path), missing)
    name = walk.choices[0] if walk.choices else ""
    hint = f"; where it depends on input '{name}', give its number, as in {walk.path}:{name}=1" if name else ""
    return InputError(f"operator {title(node)} {message}{hint}")


def _if(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    name = _name(frame, node)
    told = walk.sizes.lookup(f"{name}.then")
    taken = told if told is not None else walk.known_number(inputs[0]) if inputs else None
    if taken is None:
        message = (
            "decides in the step what is computed, so its cost is not known beforehand; say which branch it takes, as "
            f"in {walk.path}:{name}.then=1 (or 0 for the other), or {_REMEDY}"
        )
        raise _undecided(walk, node, message, inputs[0] if inputs else None)
    branch = _graph(node, "then_branch" if taken else "else_branch")
    inner = frame.inside()
    walk.initializers(inner, branch)
    walk.run(inner, branch.node)
    return [inner.find(output.name) for output in branch.output]


def _body(walk: Walker, frame: Frame, node: Any) -> tuple[Any, Frame, list[Any]]:
    """The body of a loop, a frame with what is the same in every turn, and the nodes of a turn."""
    body = _graph(node, "body")
    shared = frame.inside()
    walk.initializers(shared, body)
    walk.run(shared, [n for n in body.node if n.op_type == "Constant"])
    return body, shared, [n for n in body.node if n.op_type != "Constant"]


def _turn(
    walk: Walker, shared: Frame, node: Any, body: Any, nodes: list[Any], given: Sequence[Value | None], label: str
) -> list[Value]:
    """One turn: what the body puts out."""
    inner = shared.inside(f"{shared.prefix}{node.name or node.output[0]}/{label}")
    if len(body.input) != len(given):
        raise InputError(f"operator {title(node)} and its body do not fit each other; export the model again")
    for formal, value in zip(body.input, given, strict=True):
        if value is not None:
            inner.bind(formal.name, value, f"operator {title(node)}")
    walk.run(inner, nodes)
    found = [inner.find(output.name) for output in body.output]
    if any(value is None for value in found):
        raise InputError(f"the body of operator {title(node)} does not make all that it puts out; export it again")
    return [value for value in found if value is not None]


def _loop(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    body, shared, nodes = _body(walk, frame, node)
    name = _name(frame, node)
    told = walk.sizes.lookup(f"{name}.trips")
    limit = told if told is not None else walk.known_number(inputs[0] if inputs else None)
    going: Value | None = inputs[1] if len(inputs) > 1 else None
    carried = list(inputs[2:])
    scans = len(body.output) - 1 - len(carried)
    if scans < 0:
        raise InputError(f"operator {title(node)} and its body do not fit each other; export the model again")
    unknown = (
        "makes a number of turns that is known in the step alone, so its cost is not known beforehand; give it, as in "
        f"{walk.path}:{name}.trips=8, or export the model without control flow"
    )
    if limit is None and inputs and inputs[0] is not None:
        raise _undecided(walk, node, unknown, inputs[0])
    size = max(1, count_nodes(nodes))
    if limit is not None and limit * size > MOST_UNROLLED and limit < 2**53:
        going = going if going is not None else walk.small(f"{name}/cond", True, _BOOL)
        return _whole_loop(walk, shared, node, body, nodes, int(limit), going, carried, told is not None, unknown)
    stacked: list[list[Value]] = [[] for _ in range(scans)]
    started = _Started(walk)
    turn = 0
    while limit is None or turn < limit:
        if told is None and going is not None:
            goes_on = walk.known_number(going)
            if goes_on is None:
                raise _undecided(walk, node, unknown, going)
            if not goes_on:
                break
        if turn * size > MOST_UNROLLED:
            raise _undecided(walk, node, unknown, None)
        number = walk.small(f"{name}/{turn}/turn", turn)
        going_in = going if going is not None else walk.small(f"{name}/{turn}/cond", True, _BOOL)
        out = _turn(walk, shared, node, body, nodes, [number, going_in, *carried], f"{turn}/")
        if turn == 0 and limit is not None and started.is_too_long(int(limit)):
            started.take_back()
            first = list(inputs[2:])
            return _whole_loop(walk, shared, node, body, nodes, int(limit), going_in, first, told is not None, unknown)
        going, carried = out[0] if going is not None else None, list(out[1 : 1 + len(carried)])
        for column, value in zip(stacked, out[1 + len(carried) :], strict=True):
            column.append(value)
        turn += 1
    results = [
        _stack(walk, frame, node, node.output[len(carried) + k], column, 0)
        if len(node.output) > len(carried) + k and node.output[len(carried) + k]
        else None
        for k, column in enumerate(stacked)
    ]
    return [*carried, *results]


def _scan(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    attributes = {a.name: a for a in node.attribute}
    if frame.opsets.get("", 9) < 9:
        raise InputError(f"operator {title(node)} is of an operator set before 9; export the model with a newer one")
    body, shared, nodes = _body(walk, frame, node)
    count = attributes["num_scan_inputs"].i if "num_scan_inputs" in attributes else 0
    if not 0 < count <= len(inputs):
        raise InputError(f"operator {title(node)} scans {count} of {len(inputs)} inputs; export the model again")
    state, scanned = list(inputs[: len(inputs) - count]), inputs[len(inputs) - count :]
    axes = list(attributes["scan_input_axes"].ints) if "scan_input_axes" in attributes else [0] * count
    backward = list(attributes["scan_input_directions"].ints) if "scan_input_directions" in attributes else [0] * count
    scans = len(body.output) - len(state)
    out_axes = list(attributes["scan_output_axes"].ints) if "scan_output_axes" in attributes else [0] * scans
    if len(axes) != count or len(backward) != count or len(out_axes) != scans or scans < 0:
        raise InputError(f"operator {title(node)} and its body do not fit each other; export the model again")
    tensors: list[Tensor] = []
    for value, axis in zip(scanned, axes, strict=True):
        rank = len(value.shape) if isinstance(value, Tensor) and value.shape is not None else 0
        if not isinstance(value, Tensor) or not value.is_known:
            raise _undecided(walk, node, "scans a tensor whose size is not known; give its inputs fixed sizes", value)
        if not -rank <= axis < rank:
            raise InputError(f"operator {title(node)} scans axis {axis} of {shown(value.shape)}; export it again")
        tensors.append(value)
    axes = [axis % len(t.shape or ()) for axis, t in zip(axes, tensors, strict=True)]
    lengths = {(t.shape or ())[axis] for t, axis in zip(tensors, axes, strict=True)}
    if len(lengths) > 1:
        raise InputError(f"operator {title(node)} scans tensors of different lengths; export the model again")
    (length,) = lengths
    if length * max(1, count_nodes(nodes)) > MOST_UNROLLED:
        rows = [_row(f"{t.name}/row", t, axis) for t, axis in zip(tensors, axes, strict=True)]
        return _whole_scan(walk, shared, node, body, nodes, length, state, tensors, rows, out_axes)
    started = _Started(walk)
    slices = [_slices(walk, frame, node, t, axis) for t, axis in zip(tensors, axes, strict=True)]
    stacked: list[list[Value]] = [[] for _ in range(scans)]
    for turn in range(length):
        now = [s[length - 1 - turn] if back else s[turn] for s, back in zip(slices, backward, strict=True)]
        out = _turn(walk, shared, node, body, nodes, [*state, *now], f"{turn}/")
        if turn == 0 and started.is_too_long(length):
            started.take_back()
            rows = [_row(f"{t.name}/row", t, axis) for t, axis in zip(tensors, axes, strict=True)]
            return _whole_scan(walk, shared, node, body, nodes, length, state, tensors, rows, out_axes)
        state = list(out[: len(state)])
        for column, value in zip(stacked, out[len(state) :], strict=True):
            column.append(value)
    results = [
        _stack(walk, frame, node, node.output[len(state) + k], column, axis)
        if len(node.output) > len(state) + k and node.output[len(state) + k]
        else None
        for k, (column, axis) in enumerate(zip(stacked, out_axes, strict=True))
    ]
    return [*state, *results]


def _row(name: str, tensor: Tensor, axis: int) -> Tensor:
    shape = tensor.shape or ()
    return Tensor(name, tensor.elem_type, shape[:axis] + shape[axis + 1 :])


def _slices(walk: Walker, frame: Frame, node: Any, tensor: Tensor, axis: int) -> list[Tensor]:
    """A tensor cut along an axis."""
    from onnx import helper

    length = (tensor.shape or ())[axis]
    rows = [_row(f"{tensor.name}/{i}", tensor, axis) for i in range(length)]
    for i, row in enumerate(rows):
        row.constant, row.stored = tensor.constant, tensor.stored
        row.value = None if tensor.value is None else tensor.value.take(i, axis)
    if not tensor.constant and rows:
        name = f"{node.name or node.output[0]}/{tensor.name.rpartition('/')[2]}/Split"
        cut = helper.make_node("Split", [tensor.name], [row.name for row in rows], name=name)
        walk.emit(frame, cut, [tensor], list(rows))
    return rows


def _stack(walk: Walker, frame: Frame, node: Any, name: str, column: Sequence[Value], axis: int) -> Value:
    """What the turns put out, in one tensor with a new axis."""
    from onnx import helper

    tensors = [value for value in column if isinstance(value, Tensor)]
    if not tensors:
        return Tensor(frame.prefix + name, 1, (0,), constant=True)
    first = tensors[0]
    if len(tensors) < len(column) or any(t.shape != first.shape for t in tensors):
        raise InputError(f"operator {title(node)} puts out tensors of different sizes in its turns; export it again")
    shape = None
    if first.shape is not None:
        axis %= len(first.shape) + 1
        shape = (*first.shape[:axis], len(tensors), *first.shape[axis:])
    result = Tensor(frame.prefix + name, first.elem_type, shape, missing=missing_of(tensors))
    result.constant = all(t.constant for t in tensors)
    result.stored = all(t.stored for t in tensors)
    values = [t.value for t in tensors if t.value is not None]
    if len(values) == len(tensors) and sum(v.size for v in values) <= MOST_ELEMENTS:
        result.value = np.stack(values, axis)
    if not result.constant:
        join = helper.make_node("Concat", [t.name for t in tensors], [name], name=f"{node.name or name}/{name}/Concat")
        walk.emit(frame, join, list(tensors), [result])
    return result


def _whole_loop(
    walk: Walker,
    shared: Frame,
    node: Any,
    body: Any,
    nodes: list[Any],
    trips: int,
    going: Value,
    carried: list[Value | None],
    told: bool,
    unknown: str,
) -> list[Value | None]:
    """A loop as one operator."""
    name = f"{shared.prefix}{node.name or node.output[0]}"
    number = Tensor(f"{name}/turn", _INT64, ())
    out = _one_turn(walk, shared, node, body, nodes, [number, going], carried, [], trips, 1, [0] * len(body.output))
    if not told and not walk.known_number(out[0]):
        raise _undecided(walk, node, unknown, out[0])
    return list(out[1:])


def _whole_scan(
    walk: Walker,
    shared: Frame,
    node: Any,
    body: Any,
    nodes: list[Any],
    trips: int,
    state: list[Value | None],
    scanned: list[Tensor],
    rows: list[Tensor],
    axes: list[int],
) -> list[Value | None]:
    """A scan as one operator."""
    return list(_one_turn(walk, shared, node, body, nodes, [], state, rows, trips, 0, axes, scanned))


def _one_turn(
    walk: Walker,
    shared: Frame,
    node: Any,
    body: Any,
    nodes: list[Any],
    before: list[Value],
    carried: list[Value | None],
    rows: list[Tensor],
    trips: int,
    leading: int,
    axes: list[int],
    scanned: Sequence[Tensor] = (),
) -> list[Value]:
    """Walk one turn on tensors of which only the sizes are known, and emit an operator that costs all turns.

    Args:
        walk: The walk.
        shared: What is the same in every turn.
        node: The loop.
        body: Its graph.
        nodes: Those of a turn.
        before: What the body gets before the carried values.
        carried: What each turn hands to the next.
        rows: What the body gets behind them.
        trips: How many turns.
        leading: How many outputs stand before the carried ones.
        axes: The axes along which the other outputs are put together.
        scanned: The tensors that `rows` are cut from.

    Returns:
        What the body puts out, but the carried values as they are after all turns and the others put together.
    """
    name = f"{shared.prefix}{node.name or node.output[0]}"
    if any(not isinstance(value, Tensor) for value in carried):
        raise InputError(f"operator {title(node)} makes {trips:,} turns on sequences; export the model without it")
    given = [value for value in carried if isinstance(value, Tensor)]
    inside = [Tensor(f"{t.name}/carried", t.elem_type, t.shape, missing=t.missing) for t in given]
    outer, walk.emitted = walk.emitted, []
    out = _turn(walk, shared, node, body, nodes, [*before, *inside, *rows], "")
    parts, walk.emitted = walk.emitted, outer
    results: list[Tensor] = []
    for position, (value, first) in enumerate(zip(out[leading:], [*given, *[None] * len(out)], strict=False)):
        if not isinstance(value, Tensor) or (first is not None and value.shape != first.shape):
            raise InputError(
                f"operator {title(node)} makes {trips:,} turns on tensors that change their size; give it fewer"
            )
        shape = value.shape
        if first is None and shape is not None:
            axis = axes[position - len(given)] % (len(shape) + 1)
            shape = (*shape[:axis], trips, *shape[axis:])
        results.append(Tensor(f"{name}/{position}", value.elem_type, shape, missing=value.missing))
    made = {id(t) for part in parts for t in part.outputs} | {id(t) for t in (*before, *inside, *rows)}
    read = [t.origin for part in parts for t in part.inputs if t is not None and id(t.origin) not in made]
    inputs: list[Tensor | None] = list(dict.fromkeys((*given, *scanned, *read)))
    record: Emitted = walk.emit(shared, node, inputs, list(results))
    record.parts, record.times = parts, trips
    return [*out[:leading], *results]


def count_nodes(nodes: Sequence[Any]) -> int:
    """How many nodes there are, those of subgraphs included."""
    return sum(1 + sum(count_nodes(a.g.node) for a in node.attribute if a.HasField("g")) for node in nodes)


OPERATORS: dict[str, Callable[[Walker, Frame, Any, Sequence[Value | None]], list[Value | None]]] = {
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
}
