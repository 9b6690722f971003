"""Records the ops of one step while PyTorch runs it on fake tensors, and which values each of them reads and makes.

A *value* is one content of a storage. Views need no record: they share the storage, so an op that reads a view reads
the value (or a slice of it). An op that writes in place makes a new value of what it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _pop_mode_temporarily
from torch.utils._pytree import tree_leaves, tree_map_only

from graphs.capture.arguments import Arguments, op_type
from graphs.capture.calls import CallLog
from graphs.capture.costs import batch_rows, bytes_accessed, compute_dtype
from graphs.capture.fakes import check_stored_plainly, fake_like
from graphs.capture.flops import flops
from graphs.capture.refusals import Failures
from graphs.capture.slices import Slice, disjoint, slice_bytes, slice_of
from graphs.capture.sparse import (
    check_made,
    dense_parts,
    is_by_entries,
    is_sparse,
    on_entries,
    sparse_bag_gradient,
    sparse_sum,
    stored_bytes,
)
from graphs.capture.tags import Tags
from graphs.capture.values import RawOp, Storage, Value
from graphs.computation_graph import INPUT, PARAMETER

_T = TypeVar("_T")

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


@dataclass(frozen=True, slots=True)
class _Signature:
    """What the recorder must know of an ATen overload."""

    type: str
    writes: tuple[int, ...]
    writes_by_name: tuple[str, ...]
    makes_no_tensor: bool


class Recorder(TorchDispatchMode):
    """Sees every ATen op of a step; to be entered inside a `FakeTensorMode`.

    Args:
        tags: Says where an op belongs.
        batch: The leading dimension of the example batch.
        log: Is told what it takes to run the ops again; None where the graph alone is wanted.

    Attributes:
        ops: What was recorded, in program order; parameters, buffers, inputs and constants are ops as well.
        values: All contents of all storages.
        at_home: Pairs of ops (a parameter or buffer, an op that writes it) that must share a device.
        failures: Which op raised, where one did.
    """

    def __init__(self, tags: Tags, batch: int, log: CallLog | None = None) -> None:
        super().__init__()
        self.log = log
        self.ops: list[RawOp] = []
        self.values: list[Value] = []
        self.at_home: list[tuple[int, int]] = []
        self.failures = Failures()
        self._tags = tags
        self._batch = batch
        self._storages: dict[int, Storage] = {}
        self._signatures: dict[Any, _Signature] = {}
        self._constants: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._num_constants = 0

    def add_source(self, tensor: torch.Tensor, name: str, module: str, resident: Mapping[str, int] | None) -> int:
        """Record a tensor that exists before the step; `resident` is None for an input of the step.

        Returns:
            The op that stands for it.
        """
        op = len(self.ops)
        self.ops.append(
            RawOp(
                INPUT if resident is None else PARAMETER,
                (module, 0),
                "forward",
                name=name,
                dtype=compute_dtype(list(dense_parts([tensor]))),
                output_shapes=[tuple(tensor.shape)],
                resident_bytes=dict(resident or {}),
            )
        )
        for part in dense_parts([tensor]):
            storage = part.untyped_storage()
            value = self._new_value(op, storage.nbytes(), from_data=resident is None, resident=resident is not None)
            home = None if resident is None else op
            self._storages[storage._cdata] = Storage(storage, storage.nbytes(), value, home)
        return op

    def content(self, tensor: torch.Tensor) -> list[tuple[int, Slice | None]]:
        """The values (and which slice of each) that make up a tensor now."""
        return [piece for t in dense_parts([tensor]) for piece in self._content(self._storage_of(t), slice_of(t))]

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
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # its class does the op, by ops on what it consists of, and those come here
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if kwargs.get("device") is not None:
            # All fake tensors are on the CPU, whatever device the model names: placing is what comes later.
            kwargs = {**kwargs, "device": torch.device("cpu")}
        signature = self._signature(func)
        if signature.type not in _LIFTS:
            given = tree_leaves((args, kwargs))
            real = [t for t in given if isinstance(t, torch.Tensor) and not isinstance(t, FakeTensor)]
            if real and signature.makes_no_tensor:
                # The value of a tensor that is no parameter, buffer or input is known: it may decide the control flow.
                with _disable_current_modes():
                    return func(*args, **kwargs)
            if real:
                args, kwargs = tree_map_only(torch.Tensor, self._fake_constant, (args, kwargs))
        inputs = list(dense_parts([*args, *kwargs.values()]))
        if signature.type == "add" and all(map(is_sparse, args[:2])):
            with self:
                return sparse_sum(args[0], args[1])
        if is_by_entries(signature.type, args):
            with self:
                return on_entries(signature.type, func, args, kwargs)
        if signature.type == "_embedding_bag_backward" and args[9]:
            if self.log is not None:
                self.log.in_sparse_bag(args)
            with self:
                return sparse_bag_gradient(args[0], args[1], args[6])
        try:
            out = run_on_shapes(func, args, kwargs)
        except Exception as error:
            self.failures.in_op(error, func, self._tags.tag[0] if self._tags.tag else None)
            raise
        check_made(signature.type, out)
        if signature.type in _METADATA:
            return out
        written = [args[i] for i in signature.writes if i < len(args)]
        written += [kwargs[key] for key in signature.writes_by_name if key in kwargs]
        written = list(dense_parts(written))
        made: dict[int, torch.Tensor] = {}
        for tensor in dense_parts([out]):
            key = tensor.untyped_storage()._cdata
            if key not in self._storages and all(tensor is not t for t in inputs):
                made.setdefault(key, tensor)
        if signature.type in _ALLOCATIONS:
            for key, tensor in made.items():
                self._storages[key] = Storage(tensor.untyped_storage(), tensor.untyped_storage().nbytes(), None)
        elif signature.type in _LIFTS:
            for tensor in made.values():
                self._add_constant(tensor, args[0])
        elif made or written:
            self._record(func, signature.type, args, kwargs, inputs, written, list(made.values()), out)
        return out

    def carry(self, op: int, new: torch.Tensor) -> torch.Tensor:
        """Note that a tensor takes the place of a buffer for the next step: what makes it shares the buffer's device.

        Args:
            op: What stands for the buffer.
            new: The tensor.

        Returns:
            Its stand-in.
        """
        new = self._fake_constant(new)
        for number, _ in self.content(new):
            producer = self.values[number].producer
            if self.ops[producer].type not in (INPUT, PARAMETER):
                self.at_home.append((op, producer))
        return new

    def is_where_it_was(self, op: int, tensor: torch.Tensor) -> bool:
        """Whether the stand-in of a parameter still has its own storage, which ``.data = ...`` takes away."""
        return all(self._storage_of(part).home == op for part in dense_parts([tensor]))

    def unseen(self, make: Callable[[], _T]) -> _T:
        """Do something on fake tensors that is not recorded, and return what it returns."""
        with uncompiled(), _pop_mode_temporarily() as top:
            assert top is self
            return make()

    def one_op(
        self, func: Any, args: Sequence[Any], make: Callable[[], tuple[torch.Tensor, ...]]
    ) -> tuple[torch.Tensor, ...]:
        """Record a call that is not looked into as one op.

        Args:
            func: What stands for it.
            args: Its arguments, by the names that `func` has for them.
            make: Makes the tensors that it returns; what it does is not recorded.
        """
        args = tree_map_only(torch.Tensor, self._fake_constant, tuple(args))
        made = self.unseen(make)
        self._record(func, op_type(func), args, {}, list(dense_parts(args)), [], made, made)
        return made

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
        called = None if self.log is None else self.log.arguments(self.content, func, args, kwargs, read, written)
        depends = not inputs or any(from_data.values())
        index = len(self.ops)
        given = Arguments(func, args, kwargs)
        rows = batch_rows(kind, given, self._from_data, shapes, self._batch)
        self.ops.append(
            RawOp(
                kind,
                self._tags.tag,
                self._tags.phase,
                flops=flops(func, args, kwargs, out),
                bytes_accessed=bytes_accessed(kind, args, distinct, made, written),
                dtype=compute_dtype([*inputs, *made]),
                batch=rows if depends else 0,
                output_shapes=shapes,
            )
        )
        self.read(index, list(pieces))
        writes = [self.write(index, tensor, depends=depends) for tensor in written]
        values = []
        for tensor in made:
            storage = tensor.untyped_storage()
            value = self._new_value(index, storage.nbytes(), from_data=depends)
            self._storages[storage._cdata] = Storage(storage, storage.nbytes(), value)
            values.append((tensor, value))
        statistics: list[torch.Tensor] = []
        if kind in _UPDATES_STATISTICS and len(args) > 5 and args[5]:
            statistics = list(dense_parts(args[3:5]))
        for tensor in statistics:
            home = self._storage_of(tensor).home
            if home is not None:
                self.at_home.append((home, index))
        if self.log is not None and called is not None:
            self.log.add(index, called, writes, values, out, statistics)

    def _from_data(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is not computed from parameters and buffers alone."""
        return any(self.values[number].from_data for number, _ in self.content(tensor))

    def write(
        self, op: int, tensor: torch.Tensor, *, depends: bool, resident: bool = False
    ) -> tuple[torch.Tensor, int, list[tuple[int, Slice | None]]]:
        """Make the new value of what an op writes in place.

        Args:
            op: What writes.
            tensor: What it writes.
            depends: Whether the new value is not computed from parameters and buffers alone.
            resident: Whether it is where a parameter was, and so needs no memory.

        Returns:
            The tensor, the value, and what of the storage's old content it keeps where it is more than the tensor.
        """
        state = self._storage_of(tensor)
        part = slice_of(tensor)
        kept: list[tuple[int, Slice | None]] = []
        if state.home is not None:
            self.at_home.append((state.home, op))
        if part is not None and part not in state.overlays and not disjoint([part, *state.overlays], state.bytes):
            # The slice overlaps newer ones: the op reads all there is and makes a new whole.
            kept = self._content(state, None)
            self.read(op, kept)
            part = None
        if part is None:
            state.base = self._new_value(op, state.bytes, from_data=depends, resident=resident)
            state.overlays = {}
            state.overlay_bytes = 0
            return tensor, state.base, kept
        if part not in state.overlays:
            state.overlay_bytes += slice_bytes(part)
        value = state.overlays[part] = self._new_value(op, slice_bytes(part), from_data=depends, part=part)
        if state.overlay_bytes >= state.bytes:
            state.base = None
        return tensor, value, kept

    def _content(self, state: Storage, part: Slice | None) -> list[tuple[int, Slice | None]]:
        """As `content`; where newer slices lie over a part of what is asked for, all of the old value is read too."""
        if part is not None and part in state.overlays:
            return [(state.overlays[part], None)]
        base: list[tuple[int, Slice | None]] = [] if state.base is None else [(state.base, part)]
        if not state.overlays or (part is not None and disjoint([part, *state.overlays], state.bytes)):
            return base
        whole: list[tuple[int, Slice | None]] = [(value, None) for value in state.overlays.values()]
        return whole if state.base is None else [(state.base, None), *whole]

    def _storage_of(self, tensor: torch.Tensor) -> Storage:
        key = tensor.untyped_storage()._cdata
        if key not in self._storages:
            self._add_constant(tensor)
        return self._storages[key]

    def _add_constant(self, tensor: torch.Tensor, content: torch.Tensor | None = None) -> None:
        """A tensor that the model holds without naming it (a plain attribute, or made from Python numbers)."""
        module = self._tags.tag[0] if self._tags.tag else ""
        name = f"constant/{self._num_constants}"
        self._num_constants += 1
        op = self.add_source(tensor, name, module, {"constant": stored_bytes(tensor)})
        known = content is not None and not isinstance(content, FakeTensor) and not content.is_meta
        if self.log is not None and content is not None and known:
            with _disable_current_modes(), torch.no_grad():
                self.log.constants[op] = fake_like(content).copy_(content)

    def _fake_constant(self, tensor: torch.Tensor) -> torch.Tensor:
        """The stand-in for a real tensor that the model holds in a plain attribute."""
        if isinstance(tensor, FakeTensor):
            return tensor
        if id(tensor) not in self._constants:
            module = self._tags.tag[0] if self._tags.tag else ""
            check_stored_plainly(tensor, f"a tensor that module '{module}' holds", runs=self.log is not None)
            fake = fake_like(tensor)
            self._add_constant(fake, tensor)
            self._constants[id(tensor)] = (tensor, fake)
        return self._constants[id(tensor)][1]

    def _new_value(
        self, producer: int, size: int, *, from_data: bool, resident: bool = False, part: Slice | None = None
    ) -> int:
        self.values.append(Value(producer, size, from_data, resident, part))
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
                not writes and not any("Tensor" in str(r.type) for r in func._schema.returns),
            )
            self._signatures[func] = signature
        return signature


@contextmanager
def uncompiled() -> Iterator[None]:
    """Keep a compiler that the model uses from what happens between the ops of a step."""
    before = torch._C._dynamo.eval_frame.set_eval_frame(None)
    try:
        yield
    finally:
        torch._C._dynamo.eval_frame.set_eval_frame(before)


def run_on_shapes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an op on fake tensors.

    PyTorch refuses the CTC loss, whose table depends on the lengths of the targets; where these are numbers they are
    known.
    """
    if func is torch.ops.aten._ctc_loss.default:
        log_probs, _, _, target_lengths = args[:4]
        steps, batch = log_probs.shape[:2]  # [T, B, C]
        table = log_probs.new_empty((batch, steps, 2 * max(target_lengths, default=0) + 1))
        return log_probs.new_empty((batch,)), table
    if func is torch.ops.aten._ctc_loss_backward.default:
        return torch.empty_like(args[1], memory_format=torch.contiguous_format)
    return func(*args, **kwargs)
