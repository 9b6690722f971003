"""Keeps what a recorder sees in a form that can be run again: each op's function and arguments, see `Program`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from graphs.capture.program import READ, SHAPE, WRITE, Layout, Made, SparseUse, TensorUse, sparse_bag_values
from graphs.capture.slices import Slice
from graphs.capture.sparse import is_sparse
from graphs.errors import InputError

Content = Callable[[torch.Tensor], Sequence[tuple[int, Slice | None]]]
"""The values (and which slice of each) that make up a tensor now; `Recorder.content` is one."""


@dataclass(slots=True)
class RawCall:
    """A call as recorded; its ops are the recorder's numbers, not yet positions in the graph."""

    op: int
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: tuple[Made, ...]
    after: tuple[int, ...]


@dataclass(slots=True)
class RawUpdate:
    """An update as recorded, likewise; the attributes are those of `Update`."""

    op: int
    parameter: int
    optimizer: str
    content: TensorUse
    gradient: TensorUse | SparseUse


class CallLog:
    """Beside a `Recorder`, what its graph leaves out.

    It keeps no tensor of the step: a reference would change what autograd may do in place.

    Attributes:
        calls: In program order.
        updates: Likewise.
        constants: The content of each constant, by the op that stands for it.
    """

    def __init__(self) -> None:
        self.calls: list[RawCall] = []
        self.updates: list[RawUpdate] = []
        self.constants: dict[int, torch.Tensor] = {}
        self._storages: dict[int, int] = {}
        self._last_hidden_write: dict[int, int] = {}
        self._bag: tuple[Any, ...] | None = None

    def use(self, content: Content, tensor: torch.Tensor, role: str = READ) -> TensorUse | SparseUse:
        """How a tensor is used now."""
        if is_sparse(tensor):
            indices, values = self.use(content, tensor._indices()), self.use(content, tensor._values())
            assert isinstance(indices, TensorUse)
            assert isinstance(values, TensorUse)
            return SparseUse(indices, values, tuple(tensor.shape))
        storage = tensor.untyped_storage()
        pieces = () if role == SHAPE else tuple(content(tensor))
        number = self._storages.setdefault(storage._cdata, len(self._storages))
        return TensorUse(pieces, Layout.of(tensor), storage.nbytes(), role, storage=number)

    def arguments(
        self,
        content: Content,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        read: Sequence[torch.Tensor],
        written: Sequence[torch.Tensor],
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """The function and its arguments, with a use for each tensor; to be asked before the op's writes are noted.

        Raises:
            InputError: The op makes a tensor of another storage, which cannot be followed.
        """
        if func is torch.ops.aten.index_select.default and self._bag is not None:
            func, args, kwargs = sparse_bag_values, self._bag, {}
            self._bag = None
            # More is read here than the graph says: where the bags begin.
            read = [t for t in args if isinstance(t, torch.Tensor)]
        if getattr(func, "_overloadpacket", None) is torch.ops.aten.set_:
            raise InputError("a step that changes the storage of a tensor (set_) cannot be run by a placement")

        def use(tensor: torch.Tensor) -> TensorUse | SparseUse:
            if any(tensor is t for t in written):
                overwrites = all(tensor is not t for t in read)
                made = self.use(content, tensor, SHAPE if overwrites else READ)
                assert isinstance(made, TensorUse)
                return replace(made, role=WRITE)
            if is_sparse(tensor) or any(tensor is t for t in read):
                return self.use(content, tensor)
            return self.use(content, tensor, SHAPE)

        return func, _map(use, tuple(args)), _map(use, dict(kwargs))

    def add(
        self,
        op: int,
        called: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]],
        writes: Sequence[tuple[torch.Tensor, int, Sequence[tuple[int, Slice | None]]]],
        made: Sequence[tuple[torch.Tensor, int]],
        out: Any,
        hidden: Sequence[torch.Tensor],
    ) -> None:
        """Note a call.

        Args:
            op: The recorder's number of the op.
            called: From `arguments`.
            writes: For each tensor that it writes in place the new value, and what of the rest of the storage must be
                kept in it.
            made: For each new storage a tensor on it and its value.
            out: What it returned.
            hidden: Tensors that it writes without saying so.
        """
        func, args, kwargs = called
        if writes:
            by_layout = {
                (self._storages[t.untyped_storage()._cdata], Layout.of(t)): (value, tuple(kept))
                for t, value, kept in writes
            }

            def settle(use: TensorUse) -> TensorUse:
                if use.role != WRITE:
                    return use
                value, kept = by_layout[use.storage, use.layout]
                return replace(use, written=value, pieces=kept or use.pieces)

            args, kwargs = _map_uses(settle, args), _map_uses(settle, kwargs)
        after = []
        for tensor in hidden:
            key = tensor.untyped_storage()._cdata
            if key in self._last_hidden_write:
                after.append(self._last_hidden_write[key])
            self._last_hidden_write[key] = op
        results = [Made(_path_of(tensor, out), value, Layout.of(tensor)) for tensor, value in made]
        self.calls.append(RawCall(op, func, args, kwargs, tuple(results), tuple(sorted(set(after)))))

    def add_update(
        self,
        op: int,
        parameter: int,
        optimizer: str,
        content: TensorUse | SparseUse,
        gradient: TensorUse | SparseUse,
        written: int,
    ) -> None:
        """Note an update; `written` is the new value of the parameter, -1 where nothing reads it."""
        assert isinstance(content, TensorUse)
        if written >= 0:
            content = replace(content, role=WRITE, written=written)
        self.updates.append(RawUpdate(op, parameter, optimizer, content, gradient))

    def in_sparse_bag(self, args: Sequence[Any]) -> None:
        """The next gather stands for the gradient of a bag of embeddings, called with these arguments."""
        self._bag = (args[0], args[1], args[2], args[8], args[10])


def output_uses(content: Content, log: CallLog, output: Any) -> Any:
    """What a model returned, with a use for each tensor."""
    return tree_map_only(torch.Tensor, lambda tensor: log.use(content, tensor), output)


def _map(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Nested arguments with each tensor replaced."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map(function, item) for item in value)
    return value


def _map_uses(function: Callable[[TensorUse], TensorUse], value: Any) -> Any:
    if isinstance(value, TensorUse):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_uses(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map_uses(function, item) for item in value)
    return value


def _path_of(tensor: torch.Tensor, out: Any) -> tuple[int, ...]:
    """Where a tensor is in what an op returned."""
    if out is tensor:
        return ()
    if isinstance(out, (list, tuple)):
        for position, item in enumerate(out):
            if item is tensor:
                return (position,)
            if isinstance(item, (list, tuple)):
                for inner, deeper in enumerate(item):
                    if deeper is tensor:
                        return (position, inner)
    raise InputError("an op returns a sparse tensor that cannot be run by a placement; use dense tensors")
