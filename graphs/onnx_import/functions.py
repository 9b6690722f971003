"""Functions that an ONNX model brings along: a call is walked as what it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphs.errors import InputError
from graphs.onnx_import.frames import Frame, Walker
from graphs.onnx_import.values import Value, title

_SCOPES = "pkg.torch.onnx.name_scopes"

FunctionKey = tuple[str, str, str]


def by_key(protos: Sequence[Any]) -> dict[FunctionKey, Any]:
    """The functions of a model, by domain, name and overload."""
    return {(f.domain, f.name, getattr(f, "overload", "")): f for f in protos}


def check_expansion(nodes: Sequence[Any], functions: Mapping[FunctionKey, Any], most: int) -> None:
    """Raise where functions call each other in a circle, or come to too many operators.

    Args:
        nodes: Those of the model's graph.
        functions: The model's functions.
        most: Operators that all of it may come to.
    """
    if not functions:
        return
    counts: dict[FunctionKey, int] = {}

    def count(nodes: Sequence[Any], path: tuple[FunctionKey, ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type, getattr(node, "overload", ""))
            if key in functions:
                if key in path:
                    raise InputError(f"its function '{node.op_type}' calls itself, which never ends; export it again")
                if key not in counts:
                    counts[key] = count(functions[key].node, (*path, key))
                total += counts[key]
            total += 1 + max((count(a.g.node, path) for a in node.attribute if a.HasField("g")), default=0)
        return total

    try:
        total = count(nodes, ())
    except RecursionError:
        raise InputError("its functions are nested too deep; export it flatter") from None
    if total > most:
        raise InputError(f"its functions come to {total:,} operators, more than {most:,}; export a smaller model")


def call(walk: Walker, frame: Frame, node: Any, function: Any, inputs: Sequence[Value | None]) -> list[Value | None]:
    """Walk over the body of a function, whose names are its own."""
    inner = frame.inside(f"{frame.prefix}{node.name or next((n for n in node.output if n), '')}/")
    inner.parent = None
    inner.opsets = {**frame.opsets, **{o.domain: o.version for o in function.opset_import}}
    given = {a.name: a for a in node.attribute}
    inner.attributes = {**{a.name: a for a in function.attribute_proto}, **given}
    inner.scopes = (node, *frame.scopes) if any(e.key == _SCOPES for e in node.metadata_props) else frame.scopes
    if len(inputs) > len(function.input):
        raise InputError(f"operator {title(node)} has more inputs than its function; export the model again")
    for position, name in enumerate(function.input):
        value = inputs[position] if position < len(inputs) else None
        if value is None:
            inner.left_out.add(name)
        else:
            inner.bind(name, value, f"operator {title(node)}")
    walk.run(inner, function.node)
    return [inner.find(name) for name in function.output][: len(node.output)]


def with_attributes(node: Any, attributes: Mapping[str, Any]) -> Any:
    """A node of a function with the attributes that the call gave it, in its subgraphs, too."""
    if not any(a.ref_attr_name for a in node.attribute):
        return node
    from onnx import NodeProto

    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            copy.attribute.append(attribute)
        elif attribute.ref_attr_name in attributes:
            copy.attribute.append(attributes[attribute.ref_attr_name])
            copy.attribute[-1].name = attribute.name
    return copy
