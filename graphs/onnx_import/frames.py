"""What the walk over an ONNX model works with: the names that a graph sees, and the operators that it has come by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from graphs.errors import InputError
from graphs.onnx_import.dimensions import Sizes
from graphs.onnx_import.values import Missing, Tensor, Value, title

_MOST_NESTED = 60


@dataclass
class Emitted:
    """An operator on tensors, as it is charged.

    Attributes:
        node: The `onnx.NodeProto`, with the attributes that a call gave it.
        name: Behind those of the loops and functions that it is in.
        scopes: The modules of the call that it is in, where the file records them.
        inputs: The tensors that it reads, None where one is left out.
        outputs: Those that it makes, in the same way.
        parts: Where it stands for a whole loop: what one turn computes.
        times: How many turns.
    """

    node: Any
    name: str
    scopes: Sequence[Any]
    inputs: list[Tensor | None]
    outputs: list[Tensor | None]
    parts: list[Emitted] = field(default_factory=list)
    times: int = 1


@dataclass
class Frame:
    """The names that a graph, a branch, a turn or a function sees.

    Attributes:
        opsets: The version of each domain.
        parent: Where names that are not here are looked up.
        prefix: What the names of operators and tensors are put behind.
        attributes: What the call of a function gave, by name.
        scopes: See `Emitted`.
        depth: How many frames deep.
        left_out: Inputs of a function that its call does not give.
    """

    opsets: Mapping[str, int]
    parent: Frame | None = None
    prefix: str = ""
    attributes: Mapping[str, Any] | None = None
    scopes: Sequence[Any] = ()
    depth: int = 0
    values: dict[str, Value] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)

    def inside(self, prefix: str | None = None) -> Frame:
        """A frame in this one, for a subgraph."""
        if self.depth >= _MOST_NESTED:
            raise InputError(f"its graphs and functions are nested more than {_MOST_NESTED} deep; export it flatter")
        prefix = self.prefix if prefix is None else prefix
        return Frame(self.opsets, self, prefix, self.attributes, self.scopes, self.depth + 1)

    def find(self, name: str) -> Value | None:
        """What a name stands for."""
        frame: Frame | None = self
        while frame is not None:
            if name in frame.values:
                return frame.values[name]
            frame = frame.parent
        return None

    def get(self, name: str, node: Any) -> Value | None:
        """What an input of an operator stands for; None where a call leaves it out."""
        value = self.find(name)
        if value is None:
            if self._is_left_out(name):
                return None
            raise InputError(f"operator {title(node)} reads tensor '{name}', which nothing makes; export it again")
        return value

    def _is_left_out(self, name: str) -> bool:
        return name in self.left_out or (self.parent is not None and self.parent._is_left_out(name))

    def bind(self, name: str, value: Value, what: str) -> None:
        """Give a name what it stands for; each only once."""
        if name in self.values:
            raise InputError(f"tensor '{name}' is made twice, the second time by {what}; export the model again")
        self.values[name] = value


class Walker(Protocol):
    """What the operators that hold graphs or sequences need of `graphs.onnx_import.walk.Walk`."""

    path: Path
    sizes: Sizes
    emitted: list[Emitted]
    expanded: int
    functions: Mapping[tuple[str, str, str], Any]
    missing_inputs: set[Missing]
    choices: list[str]

    def run(self, frame: Frame, nodes: Sequence[Any]) -> None:
        """Walk over operators in order."""

    def initializers(self, frame: Frame, graph: Any) -> None:
        """Bind the constants of a graph."""

    def constant(self, name: str, proto: Any) -> Tensor:
        """A tensor of the file."""

    def sparse(self, name: str, proto: Any) -> Tensor:
        """A sparse tensor of the file."""

    def emit(self, frame: Frame, node: Any, inputs: list[Tensor | None], outputs: list[Tensor | None]) -> Emitted:
        """Note an operator that a step computes."""

    def known_number(self, value: Value | None) -> Any:
        """The one number that a tensor holds, None where it is not known."""

    def small(self, name: str, value: Any, elem_type: int = 7) -> Tensor:
        """A constant that holds a few known numbers."""
