"""Records the ops of one step while PyTorch runs it on fake tensors, and which values each of them reads and makes.

A *value* is one content of a storage. Views need no record: they share the storage, so an op that reads a view reads
the value (or a slice of it). An op that writes in place makes a new value of what it writes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graphs.capture_costs import batch_rows, bytes_accessed, compute_dtype, flops, op_type
from graphs.capture_slices import Slice, disjoint, slice_bytes, slice_of
from graphs.computation_graph import INPUT, PARAMETER, Shape

Tag = tuple[str, int]
"""Module path and the how-manieth call of that module."""

_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
"""Ops that make room and cost nothing; the first op that writes into it is the producer."""

_ONLY_SHAPES = {"zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like"} | {
    "new_zeros",
    "new_ones",
    "new_full",
}
"""Ops that look at their argument's shape, not at its content."""

_OVERWRITES = {"zero_", "fill_", "copy_", "bernoulli_", "uniform_", "normal_", "random_", "exponential_", "set_"}
"""In-place ops that do not read what they overwrite."""

_METADATA = {"t_", "transpose_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_", "as_strided_", "detach_"}
"""In-place ops that change only how a tensor looks at its storage."""

_LIFTS = {"lift", "lift_fresh", "lift_fresh_copy"}
"""Ops by which a tensor made from Python numbers enters."""

_UPDATES_STATISTICS = {"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit"}
"""Ops that update running statistics (arguments 3 and 4) in training without saying so in their schema."""


@dataclass(slots=True)
class RawOp:
    """One op as recorded; `tag` is None for what autograd does between its nodes: summing gradients."""

    type: str
    tag: Tag | None
    phase: str
    name: str = ""
    flops: int = 0
    bytes_accessed: int = 0
    dtype: str = "float32"
    batch: int = 0
    output_shapes: list[Shape] = field(default_factory=list)
    resident_bytes: dict[str, int] = field(default_factory=dict)
    reads: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Value:
    """One content of a storage (or of a slice of it), and who reads all or which part of it.

    `from_data` is False for parameters, buffers and what is computed from them alone.
    """

    producer: int
    bytes: int
    from_data: bool
    resident: bool = False
    whole_readers: list[int] = field(default_factory=list)
    slice_readers: dict[Slice, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class _Storage:
    """What a storage holds now: a value of the whole, and newer values of disjoint slices."""

    storage: Any  # held, so that no other storage gets the same address
    bytes: int
    base: int | None
    home: int | None = None
    overlays: dict[Slice, int] = field(default_factory=dict)
    overlay_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Signature:
    """What the recorder must know of an ATen overload."""

    type: str
    writes: tuple[int, ...]
    writes_by_name: tuple[str, ...]


class Recorder(TorchDispatchMode):
    """Sees every ATen op of a step; to be entered inside a `FakeTensorMode`.

    Attributes:
        ops: What was recorded, in program order; parameters, buffers, inputs and constants are ops as well.
        values: All contents of all storages.
        at_home: Pairs of ops (a parameter or buffer, an op that writes it) that must share a device.
        tag: Where the next op belongs; None between autograd's nodes.
        phase: Part of the step.
    """

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.ops: list[RawOp] = []
        self.values: list[Value] = []
        self.at_home: list[tuple[int, int]] = []
        self.tag: Tag | None = ("", 0)
        self.phase = "forward"
        self._batch = batch
        self._storages: dict[int, _Storage] = {}
        self._signatures: dict[Any, _Signature] = {}
        self._outer_tags: list[Tag | None] = []
        self._calls: dict[str, int] = {}
        self._recalls: dict[str, int] = {}
        self._boundaries: list[int] = []
        self._boundary_tags: list[Tag | None] = []

    def add_source(self, tensor: torch.Tensor, name: str, module: str, resident: Mapping[str, int] | None) -> int:
        """Record a tensor that exists before the step; `resident` is None for an input of the step.

        Returns:
            The op that stands for it.
        """
        storage = tensor.untyped_storage()
        op = len(self.ops)
        self.ops.append(
            RawOp(
                INPUT if resident is None else PARAMETER,
                (module, 0),
                "forward",
                name=name,
                dtype=compute_dtype([tensor]),
                output_shapes=[tuple(tensor.shape)],
                resident_bytes=dict(resident or {}),
            )
        )
        value = self._new_value(op, storage.nbytes(), from_data=resident is None, resident=resident is not None)
        home = None if resident is None else op
        self._storages[storage._cdata] = _Storage(storage, storage.nbytes(), value, home)
        return op

    def content(self, tensor: torch.Tensor) -> list[tuple[int, Slice | None]]:
        """The values (and which slice of each) that make up a tensor now."""
        return self._content(self._storage_of(tensor), slice_of(tensor))

    def read(self, op: int, pieces: Sequence[tuple[int, Slice | None]]) -> None:
        """Note that an op reads values."""
        for number, part in pieces:
            value = self.values[number]
            readers = value.whole_readers if part is None else value.slice_readers.setdefault(part, [])
            if not readers or readers[-1] != op:
                readers.append(op)
            self.ops[op].reads.append(number)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one op on fake tensors and record it."""
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if kwargs.get("device") is not None:
            # All fake tensors are on the CPU, whatever device the model names: placing is what comes later.
            kwargs = {**kwargs, "device": torch.device("cpu")}
        signature = self._signature(func)
        inputs = list(_tensors([*args, *kwargs.values()]))
        out = func(*args, **kwargs)
        if signature.type in _METADATA:
            return out
        written = [args[i] for i in signature.writes if i < len(args)]
        written += [kwargs[key] for key in signature.writes_by_name if key in kwargs]
        written = list(_tensors(written))
        made: dict[int, torch.Tensor] = {}
        for tensor in _tensors([out]):
            key = tensor.untyped_storage()._cdata
            if key not in self._storages and all(tensor is not t for t in inputs):
                made.setdefault(key, tensor)
        if signature.type in _ALLOCATIONS:
            for key, tensor in made.items():
                self._storages[key] = _Storage(tensor.untyped_storage(), tensor.untyped_storage().nbytes(), None)
        elif signature.type in _LIFTS:
            for tensor in made.values():
                self._add_constant(tensor)
        elif made or written:
            self._record(func, signature.type, args, kwargs, inputs, written, list(made.values()), out)
        return out

    @contextmanager
    def tagging(self, model: torch.nn.Module) -> Iterator[None]:
        """Follow which module is being called, by hooks that are removed at the end."""
        handles = []
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter_hook(path), prepend=True))
            handles.append(module.register_forward_hook(self._leave_hook(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def tag_backward(self, loss: torch.Tensor) -> None:
        """Give every node of autograd's graph the tag of the forward op that made it, and begin the backward phase.

        Nodes carry a sequence number that grows as the forward pass makes them, so the number tells which module was
        running. Between two nodes the tag is None: there autograd sums gradients.
        """
        self.phase = "backward"
        self.tag = None
        node = loss.grad_fn
        seen = {node}
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node is None:
                continue
            last = bisect_right(self._boundaries, node._sequence_nr()) - 1
            node.register_prehook(self._set_tag_hook(self._boundary_tags[max(last, 0)]))
            node.register_hook(self._clear_tag_hook())
            for following, _ in node.next_functions:
                if following is not None and following not in seen:
                    seen.add(following)
                    waiting.append(following)

    def set_tag(self, tag: Tag | None) -> None:
        """Change where the following ops of the forward pass belong."""
        self.tag = tag
        self._boundaries.append(torch.autograd._get_sequence_nr())
        self._boundary_tags.append(tag)

    def _enter_hook(self, path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any) -> None:
            self._outer_tags.append(self.tag)
            calls = self._calls.get(path, 0)
            if self.phase == "forward":
                self._calls[path] = calls + 1
                self.set_tag((path, calls))
            else:
                # A checkpoint computes the call again; segments are recomputed last first.
                again = self._recalls.get(path, 0)
                self._recalls[path] = again + 1
                self.tag = (path, max(calls - 1 - again, 0))

        return hook

    def _leave_hook(self) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            outer = self._outer_tags.pop()
            if self.phase == "forward":
                self.set_tag(outer)
            else:
                self.tag = outer

        return hook

    def _set_tag_hook(self, tag: Tag | None) -> Callable[..., None]:
        def hook(grad_outputs: Any) -> None:
            self.tag = tag

        return hook

    def _clear_tag_hook(self) -> Callable[..., None]:
        def hook(grad_inputs: Any, grad_outputs: Any) -> None:
            self.tag = None

        return hook

    def _record(
        self,
        func: Any,
        kind: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        inputs: Sequence[torch.Tensor],
        written: Sequence[torch.Tensor],
        made: Sequence[torch.Tensor],
        out: Any,
    ) -> None:
        """Record one op that makes or writes something."""
        unread = written if kind in _OVERWRITES else []
        read = [] if kind in _ONLY_SHAPES else [t for t in inputs if all(t is not u for u in unread)]
        pieces: dict[tuple[int, Slice | None], torch.Tensor] = {}
        from_data: dict[int, bool] = {}
        for tensor in inputs:
            content = self.content(tensor)
            from_data[id(tensor)] = any(self.values[number].from_data for number, _ in content)
            if any(tensor is t for t in read):
                for piece in content:
                    pieces.setdefault(piece, tensor)
        distinct: list[torch.Tensor] = []
        for tensor in pieces.values():
            if all(tensor is not t for t in distinct):
                distinct.append(tensor)
        shapes = [tuple(t.shape) for t in (made or written)]
        flags = [from_data.get(id(a), False) for a in args]
        depends = not inputs or any(from_data.values())
        index = len(self.ops)
        self.ops.append(
            RawOp(
                kind,
                self.tag,
                self.phase,
                flops=flops(func, args, kwargs, out),
                bytes_accessed=bytes_accessed(kind, args, distinct, made, written),
                dtype=compute_dtype([*inputs, *made]),
                batch=batch_rows(kind, args, flags, shapes, self._batch) if depends else 0,
                output_shapes=shapes,
            )
        )
        self.read(index, list(pieces))
        for tensor in written:
            self._write(index, tensor, depends)
        for tensor in made:
            storage = tensor.untyped_storage()
            value = self._new_value(index, storage.nbytes(), from_data=depends)
            self._storages[storage._cdata] = _Storage(storage, storage.nbytes(), value)
        if kind in _UPDATES_STATISTICS and len(args) > 5 and args[5]:
            for statistics in _tensors(args[3:5]):
                home = self._storage_of(statistics).home
                if home is not None:
                    self.at_home.append((home, index))

    def _write(self, op: int, tensor: torch.Tensor, depends: bool) -> None:
        """Make the new value of what an op writes in place."""
        state = self._storage_of(tensor)
        part = slice_of(tensor)
        if state.home is not None:
            self.at_home.append((state.home, op))
        if part is not None and part not in state.overlays and not disjoint([part, *state.overlays], state.bytes):
            # The slice overlaps newer ones: the op reads all there is and makes a new whole.
            self.read(op, self._content(state, None))
            part = None
        if part is None:
            state.base = self._new_value(op, state.bytes, from_data=depends)
            state.overlays = {}
            state.overlay_bytes = 0
            return
        if part not in state.overlays:
            state.overlay_bytes += slice_bytes(part)
        state.overlays[part] = self._new_value(op, slice_bytes(part), from_data=depends)
        if state.overlay_bytes >= state.bytes:
            state.base = None

    def _content(self, state: _Storage, part: Slice | None) -> list[tuple[int, Slice | None]]:
        if part is not None and part in state.overlays:
            return [(state.overlays[part], None)]
        base: list[tuple[int, Slice | None]] = [] if state.base is None else [(state.base, part)]
        if not state.overlays or (part is not None and disjoint([part, *state.overlays], state.bytes)):
            return base
        whole: list[tuple[int, Slice | None]] = [(value, None) for value in state.overlays.values()]
        return whole if state.base is None else [(state.base, None), *whole]

    def _storage_of(self, tensor: torch.Tensor) -> _Storage:
        key = tensor.untyped_storage()._cdata
        if key not in self._storages:
            self._add_constant(tensor)
        return self._storages[key]

    def _add_constant(self, tensor: torch.Tensor) -> None:
        """A tensor that the model holds without naming it (a plain attribute, or made from Python numbers)."""
        module = self.tag[0] if self.tag else ""
        number = sum(op.type == PARAMETER and op.name.startswith("constant/") for op in self.ops)
        size = tensor.untyped_storage().nbytes()
        self.add_source(tensor, f"constant/{number}", module, {"constant": size})

    def _new_value(self, producer: int, size: int, *, from_data: bool, resident: bool = False) -> int:
        self.values.append(Value(producer, size, from_data, resident))
        return len(self.values) - 1

    def _signature(self, func: Any) -> _Signature:
        signature = self._signatures.get(func)
        if signature is None:
            arguments = func._schema.arguments
            writes = [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
            signature = _Signature(
                op_type(func),
                tuple(i for i in writes if not arguments[i].kwarg_only),
                tuple(arguments[i].name for i in writes),
            )
            self._signatures[func] = signature
        return signature


def _tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    """The tensors in arguments or results, also those in lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
