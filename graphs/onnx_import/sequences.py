"""Sequences and optionals of an ONNX model: known by their elements, so that they cost what those cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphs.errors import InputError
from graphs.onnx_import.frames import Frame, Walker
from graphs.onnx_import.values import Items, Nothing, Tensor, Value, shown, tensors_of, title

_INT64, _BOOL = 7, 9

_MOST_ITEMS = 10_000


def _items(node: Any, value: Value | None) -> Items:
    if not isinstance(value, Items):
        raise InputError(f"operator {title(node)} needs a sequence as its first input; export the model again")
    return value


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _construct(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    return [Items(tuple(value for value in inputs if value is not None))]


def _empty(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    return [Items((), _attribute(node, "dtype", 1))]


def _length(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    return [walk.small(frame.prefix + node.output[0], len(_items(node, inputs[0]).items))]


def _position(walk: Walker, node: Any, items: Items, value: Value | None) -> int | None:
    """Where an operator looks; None where that is not known."""
    position = walk.known_number(value)
    if position is None:
        return None
    count = len(items.items)
    if not -count <= position <= count:
        raise InputError(f"operator {title(node)} looks at position {position} of {count}; export the model again")
    return int(position) % count if position < 0 else int(position)


def _alike(node: Any, items: Items) -> Tensor:
    """The first element of a sequence whose elements are all of one shape."""
    tensors = [item for item in items.items if isinstance(item, Tensor)]
    if not tensors or len(tensors) < len(items.items) or len({(t.shape, t.elem_type) for t in tensors}) > 1:
        raise InputError(
            f"operator {title(node)} picks one of {len(items.items)} tensors that differ in size, and which is known "
            "in the step alone; export the model without it"
        )
    return tensors[0]


def _at(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    items = _items(node, inputs[0])
    position = _position(walk, node, items, inputs[1])
    if position is not None:
        if position >= len(items.items):
            raise InputError(f"operator {title(node)} looks at position {position} of {position}; export it again")
        return [items.items[position]]
    like = _alike(node, items)
    result = Tensor(frame.prefix + node.output[0], like.elem_type, like.shape, missing=like.missing)
    walk.emit(frame, node, [*tensors_of(items), *tensors_of(inputs[1])], [result])
    return [result]


def _insert(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    items, new = _items(node, inputs[0]), inputs[1]
    assert new is not None
    position = len(items.items)
    if len(inputs) > 2 and inputs[2] is not None:
        found = _position(walk, node, items, inputs[2])
        if found is None and items.items:
            _alike(node, Items((*items.items, new)))
        position = position if found is None else found
    if position >= _MOST_ITEMS:
        raise InputError(
            f"operator {title(node)} makes a sequence of more than {_MOST_ITEMS:,} tensors; export it again"
        )
    return [Items((*items.items[:position], new, *items.items[position:]), items.elem_type)]


def _erase(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    items = _items(node, inputs[0])
    position = len(items.items) - 1
    if len(inputs) > 1 and inputs[1] is not None:
        found = _position(walk, node, items, inputs[1])
        if found is None:
            _alike(node, items)
        position = position if found is None else found
    return [Items((*items.items[:position], *items.items[position + 1 :]), items.elem_type)]


def _split(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    tensor = inputs[0]
    if not isinstance(tensor, Tensor) or not tensor.is_known:
        raise InputError(
            f"operator {title(node)} makes as many tensors as a dimension is long that is not known; give its inputs "
            "fixed sizes"
        )
    shape = tensor.shape
    assert shape is not None
    axis = _attribute(node, "axis", 0)
    if not -len(shape) <= axis < len(shape):
        raise InputError(f"operator {title(node)} splits axis {axis} of shape {shown(shape)}; export the model again")
    axis %= len(shape)
    lengths = [1] * min(shape[axis], _MOST_ITEMS + 1)
    keep = True
    if len(inputs) > 1 and inputs[1] is not None:
        given = inputs[1].value if isinstance(inputs[1], Tensor) else None
        if given is None:
            raise InputError(f"operator {title(node)} splits into lengths that are known in the step alone")
        if given.ndim == 0:
            length = max(int(given), 1)
            full, rest = divmod(shape[axis], length)
            lengths = [length] * min(full, _MOST_ITEMS + 1) + [rest] * bool(rest)
        else:
            lengths = [int(n) for n in given.reshape(-1)]
    else:
        keep = bool(_attribute(node, "keepdims", 1))
    if len(lengths) > _MOST_ITEMS:
        raise InputError(
            f"operator {title(node)} makes a sequence of more than {_MOST_ITEMS:,} tensors; export it again"
        )
    if sum(lengths) != shape[axis] or any(n < 0 for n in lengths):
        raise InputError(f"operator {title(node)} splits {shape[axis]} into {lengths[:8]}; export the model again")
    pieces = [
        Tensor(
            f"{frame.prefix}{node.output[0]}.{i}",
            tensor.elem_type,
            shape[:axis] + ((n,) if keep else ()) + shape[axis + 1 :],
            constant=tensor.constant,
            stored=tensor.stored,
        )
        for i, n in enumerate(lengths)
    ]
    if tensor.value is not None:
        ends = np.cumsum(lengths)[:-1]
        for piece, part in zip(pieces, np.split(tensor.value, ends, axis=axis), strict=True):
            piece.value = part.reshape(piece.shape or ())
    elif not tensor.constant:
        walk.emit(frame, node, [tensor], list(pieces))
    return [Items(tuple(pieces), tensor.elem_type)]


def _concat(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    items = _items(node, inputs[0])
    tensors = [item for item in items.items if isinstance(item, Tensor)]
    if not tensors or any(not t.is_known for t in tensors):
        raise InputError(f"operator {title(node)} joins tensors whose sizes are not known; give its inputs fixed sizes")
    shapes = [t.shape or () for t in tensors]
    new = bool(_attribute(node, "new_axis", 0))
    rank = len(shapes[0]) + new
    axis = _attribute(node, "axis", 0)
    if not -rank <= axis < rank:
        raise InputError(f"operator {title(node)} joins along axis {axis} of {rank}; export the model again")
    axis %= rank
    rest = [s if new else s[:axis] + s[axis + 1 :] for s in shapes]
    if any(r != rest[0] for r in rest) or any(len(s) != len(shapes[0]) for s in shapes):
        raise InputError(f"operator {title(node)} joins tensors of different shapes; export the model again")
    length = len(shapes) if new else sum(s[axis] for s in shapes)
    shape = (*rest[0][:axis], length, *rest[0][axis:])
    constant = all(t.constant for t in tensors)
    result = Tensor(frame.prefix + node.output[0], tensors[0].elem_type, shape, constant=constant)
    result.stored = all(t.stored for t in tensors)
    if constant:
        values = [t.value for t in tensors]
        if all(v is not None for v in values) and result.elements <= 1024:
            kept = [v for v in values if v is not None]
            result.value = np.stack(kept, axis) if new else np.concatenate(kept, axis)
    else:
        walk.emit(frame, node, list(tensors), [result])
    return [result]


def _map(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    """The body once for each element of the first sequence."""
    items = _items(node, inputs[0])
    body = next((a.g for a in node.attribute if a.name == "body"), None)
    if body is None:
        raise InputError(f"operator {title(node)} lacks its body; export the model again")
    rows: list[list[Value | None]] = []
    name = node.name or node.output[0]
    for i in range(len(items.items)):
        inner = frame.inside(f"{frame.prefix}{name}/{i}/")
        walk.initializers(inner, body)
        for formal, given in zip(body.input, inputs, strict=False):
            value = given.items[i] if isinstance(given, Items) and i < len(given.items) else given
            if value is not None:
                inner.bind(formal.name, value, f"operator {title(node)}")
        walk.run(inner, body.node)
        rows.append([inner.find(output.name) for output in body.output])
    columns = [[row[k] for row in rows] for k in range(len(body.output))]
    return [Items(tuple(value for value in column if value is not None)) for column in columns]


def _optional(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    return [inputs[0] if inputs and inputs[0] is not None else Nothing()]


def _has_element(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    there = bool(inputs) and inputs[0] is not None and not isinstance(inputs[0], Nothing)
    return [walk.small(frame.prefix + node.output[0], there, _BOOL)]


def _get_element(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    if not inputs or inputs[0] is None or isinstance(inputs[0], Nothing):
        raise InputError(f"operator {title(node)} reads an optional that is empty; export the model again")
    return [inputs[0]]


def _zip_map(walk: Walker, frame: Frame, node: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    """A map from labels to scores for each row: charged as the scores."""
    scores = inputs[0] if inputs else None
    if not isinstance(scores, Tensor):
        raise InputError(f"operator {title(node)} needs a tensor as its input; export the model again")
    result = Tensor(frame.prefix + node.output[0], scores.elem_type, scores.shape, missing=scores.missing)
    walk.emit(frame, node, [scores], [result])
    return [result]


OPERATORS: dict[str, Callable[[Walker, Frame, Any, Sequence[Value | None]], list[Value | None]]] = {
    "ConcatFromSequence": _concat,
    "Optional": _optional,
    "OptionalGetElement": _get_element,
    "OptionalHasElement": _has_element,
    "SequenceAt": _at,
    "SequenceConstruct": _construct,
    "SequenceEmpty": _empty,
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SequenceLength": _length,
    "SequenceMap": _map,
    "SplitToSequence": _split,
    "ZipMap": _zip_map,
}
