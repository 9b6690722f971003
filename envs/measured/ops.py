"""Turns the calls of a program into functions of no arguments but the places' tensors, ready to be run many times.

All that can be decided before the step is decided here: which arguments are the same in every step (numbers, and views
of parameters, whose memory never moves), how each other tensor is looked at, and which of what an op returns is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from envs.measured.layouts import as_seen, elements, flat, is_dense, look, mapped, unit_of
from envs.measured.plan import Copy, Plan, program_uses
from graphs.capture.program import SHAPE, WRITE, Call, Layout, SparseUse, TensorUse, Update, uses
from graphs.capture.slices import slice_bytes

Slots = list[Any]
"""By place the tensor that is there; None before it is made and after it is freed."""

Run = Callable[[Slots], None]

Store = tuple[tuple[int, ...], int, Layout]
"""Where in what an op returns a tensor is, the place that it goes to, and its layout there."""


@dataclass(frozen=True)
class Parts:
    """What the function of an op consists of.

    Attributes:
        call: The call.
        function: What it calls: that of the call, without what is not needed, and with numbers drawn from its stream.
        args: With these; a function with a mark ``source`` is called with the slots first.
        kwargs: Likewise.
        stores: Where what it returns goes to.
        relaid: Not empty once something that it returned had another layout than was foreseen.
    """

    call: Call
    function: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    stores: list[Store]
    relaid: list[bool]

    def is_relaid(self) -> bool:
        """Whether what it returns must be looked at in each step."""
        return bool(self.relaid)


class Random:
    """Random numbers of the step: every op draws from a stream of its own, wherever and whenever it runs.

    Attributes:
        step_seed: To be set before each step; the same seed gives the same numbers under every placement.
    """

    def __init__(self, device: torch.device) -> None:
        self.step_seed = 0
        self.device = device
        self.generator = torch.Generator(device=device)

    def seed_of(self, op: int) -> int:
        """The seed of an op's numbers in this step."""
        return (self.step_seed * 1_000_003 + op) % (1 << 62)


class Binder:
    """Makes the functions of one plan.

    Args:
        plan: From `envs.measured.plan.make_plan`.
        tensors: By place, tensors that stay where they are from step to step: parameters, buffers and constants.
        devices: Of each device number, the device that PyTorch knows.
        randoms: Of each device number.
        updates: By op, the function that updates a parameter from its gradient.
    """

    def __init__(
        self,
        plan: Plan,
        tensors: dict[int, torch.Tensor],
        devices: list[torch.device],
        randoms: list[Random],
        updates: dict[int, Callable[[torch.Tensor], None]],
    ) -> None:
        self._plan = plan
        self._tensors = tensors
        self._devices = devices
        self._randoms = randoms
        self._updates = updates
        self._copy_of = {copy.place: copy for copy in plan.copies}
        self._layouts: dict[int, Layout] = {}
        for source in plan.program.sources:
            self._layouts[plan.home[source.value]] = source.layout
        for call in plan.program.calls:
            for made in call.made:
                self._layouts[plan.home[made.value]] = made.layout
        for op, used in program_uses(plan.program):
            self._note_written(op, used)
        self._updates_by_op = {update.op: update for update in plan.program.updates}
        self._calls_by_op = {call.op: call for call in plan.program.calls}

    def op(self, op: int) -> Run:
        """The function of an op."""
        if op in self._calls_by_op:
            return self._call(self._calls_by_op[op])
        return self._update(self._updates_by_op[op])

    def copy(self, copy: Copy) -> Run:
        """The function that makes a copy on the receiver: it reads the sender's place and fills its own."""
        source, place, device = copy.source, copy.place, self._devices[copy.device]
        layout, wanted = self.layout(source), self.layout(place)
        if layout == wanted:

            def run(slots: Slots) -> None:
                made = torch.empty_strided(wanted.size, wanted.stride, dtype=wanted.dtype, device=device)
                slots[place] = made.copy_(slots[source], non_blocking=True)

            return run
        part = None if self._plan.place_part[source] is not None else self._plan.place_part[place]
        count = self._plan.span[source] // layout.dtype.itemsize
        unit = unit_of(part, layout.dtype.itemsize)

        def run_part(slots: Slots) -> None:
            sent = elements(slots[source].as_strided((count,), (1,), 0), part, unit)
            made = torch.empty(wanted.size, dtype=wanted.dtype, device=device)
            made.view(sent.dtype).view(sent.shape).copy_(sent, non_blocking=True)
            slots[place] = made

        return run_part

    def layout(self, place: int) -> Layout:
        """How the tensor in a place looks at its memory."""
        if place not in self._layouts:
            copy = self._copy_of[place]
            layout = self.layout(copy.source)
            if not is_dense(layout, self._plan.span[place]):
                layout = flat(layout.dtype, self._plan.span[place])
            self._layouts[place] = layout
        return self._layouts[place]

    def read_home(self, use: TensorUse) -> Callable[[Slots], torch.Tensor] | torch.Tensor:
        """How a tensor is had, after the step, from the places where its content was made."""
        if len(use.pieces) != 1:
            fill = self._filled(use, [self._plan.home[value] for value, _ in use.pieces], torch.device("cpu"))
            return lambda slots: look(fill(slots), use.layout)
        place = self._plan.home[use.pieces[0][0]]
        return self._viewed(place, mapped(use.layout, self._plan.place_part[place]))

    def read(self, use: TensorUse, device: int) -> Callable[[Slots], torch.Tensor] | torch.Tensor:
        """How a tensor that is used on a device is had from the places there; itself where it never changes."""
        if len(use.pieces) != 1:
            return self._assembled(use, device)
        place = self._plan.local[device][use.pieces[0]]
        held = self._plan.place_part[place]
        return self._viewed(place, mapped(use.layout, held))

    def _viewed(self, place: int, wanted: Layout) -> Callable[[Slots], torch.Tensor] | torch.Tensor:
        have = self.layout(place)
        size, stride, offset, dtype = wanted.size, wanted.stride, wanted.offset, wanted.dtype
        plain = have.dtype == dtype and not (wanted.conjugated or wanted.negated)
        if have == wanted:
            view: Callable[[torch.Tensor], torch.Tensor] | None = None
        elif plain:

            def view(tensor: torch.Tensor) -> torch.Tensor:
                return tensor.as_strided(size, stride, offset)
        else:

            def view(tensor: torch.Tensor) -> torch.Tensor:
                empty = torch.empty(0, dtype=dtype, device=tensor.device)
                return as_seen(empty.set_(tensor.untyped_storage(), offset, size, stride), wanted)

        if place in self._tensors:
            return self._tensors[place] if view is None else view(self._tensors[place])
        if view is None:
            return _made_by(lambda slots: slots[place], "place", place)
        kind = "view" if plain else "call"
        return _made_by(lambda slots: view(slots[place]), kind, (place, wanted))

    def _assembled(self, use: TensorUse, device: int) -> Callable[[Slots], torch.Tensor] | torch.Tensor:
        """A tensor of all that lies over each other in a storage: a new one where it is not all in the same memory."""
        places = [self._plan.local[device][piece] for piece in use.pieces]
        if len({self._plan.memory[place] for place in places}) == 1 and self._plan.place_part[places[0]] is None:
            return self._viewed(places[-1], use.layout)
        fill = self._filled(use, places, self._devices[device])
        return lambda slots: look(fill(slots), use.layout)

    def _filled(self, use: TensorUse, places: list[int], device: torch.device) -> Callable[[Slots], torch.Tensor]:
        """A new storage with the content of the pieces, the oldest first."""
        dtype = use.layout.dtype
        size = use.storage_bytes // dtype.itemsize
        moves = []
        for (value, part), place in zip(use.pieces, places, strict=True):
            covers = self._plan.program.value_part[value] if part is None else part
            item = self.layout(place).dtype.itemsize
            compact = self._plan.place_part[place] is not None or covers is None
            moves.append((place, covers, compact, self._plan.span[place] // item, unit_of(covers, item)))

        def fill(slots: Slots) -> torch.Tensor:
            made = torch.empty(size, dtype=dtype, device=device)
            for place, covers, compact, count, unit in moves:
                to = elements(made, covers, unit)
                sent = elements(slots[place].as_strided((count,), (1,), 0), None if compact else covers, unit)
                to.copy_(sent.reshape(to.shape))
            return made

        return fill

    def _shape_only(self, layout: Layout, device: int) -> Callable[[Slots], torch.Tensor]:
        where = self._devices[device]

        def make(slots: Slots) -> torch.Tensor:
            return torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype, device=where)

        return _made_by(make, "shape", layout)

    def _written(self, op: int, use: TensorUse, device: int) -> Callable[[Slots], torch.Tensor] | torch.Tensor:
        """The tensor that an op writes in place: the old content's memory, or new memory."""
        plan, new = self._plan, self._plan.home[use.written]
        old = plan.taken.get((op, use.written))
        if old is not None:
            view = self._viewed(old, mapped(use.layout, plan.place_part[old]))
            if isinstance(view, torch.Tensor):
                self._tensors[new] = self._tensors[old]

            def take(slots: Slots) -> torch.Tensor:
                slots[new] = slots[old]
                return view if isinstance(view, torch.Tensor) else view(slots)

            return _made_by(take, "take", (new, old, view))
        part = plan.program.value_part[use.written]
        if part is None:
            places = [plan.local[device][piece] for piece in use.pieces]
            fill = self._filled(use, places, self._devices[device])
            layout = use.layout

            def make(slots: Slots) -> torch.Tensor:
                slots[new] = made = fill(slots)
                return look(made, layout)

            return make if places else _made_by(make, "fresh", (new, layout))
        layout = mapped(use.layout, part)
        compact = flat(layout.dtype, slice_bytes(part))
        read = self.read(use, device) if use.pieces else None
        where = self._devices[device]

        def make_part(slots: Slots) -> torch.Tensor:
            slots[new] = made = torch.empty(compact.size, dtype=compact.dtype, device=where)
            view = look(made, layout)
            if read is not None:
                view.copy_(read if isinstance(read, torch.Tensor) else read(slots))
            return view

        return make_part

    def _argument(self, op: int, value: Any, device: int) -> Any:
        """An argument: itself, or a function of the slots where it is a tensor that changes."""
        if isinstance(value, TensorUse):
            if value.role == WRITE:
                return self._written(op, value, device)
            if value.role == SHAPE or not value.pieces:
                return self._shape_only(value.layout, device)
            return self.read(value, device)
        if isinstance(value, SparseUse):
            return self._sparse(value, device)
        if isinstance(value, (list, tuple)) and uses(value):
            parts = [self._argument(op, item, device) for item in value]
            made = [_as_made(part, item) for part, item in zip(parts, value, strict=True)]
            return _made_by(lambda slots: [part(slots) if callable(part) else part for part in parts], "list", made)
        return value

    def _sparse(self, use: SparseUse, device: int) -> Callable[[Slots], torch.Tensor]:
        indices, values = self.read(use.indices, device), self.read(use.values, device)

        def make(slots: Slots) -> torch.Tensor:
            return torch.sparse_coo_tensor(
                indices if isinstance(indices, torch.Tensor) else indices(slots),
                values if isinstance(values, torch.Tensor) else values(slots),
                use.size,
                check_invariants=False,
            )

        return make

    def _update(self, update: Update) -> Run:
        device = int(self._plan.op_device[update.op])
        apply = self._updates[update.op]
        gradient = self._argument(update.op, update.gradient, device)
        # The parameter is in the memory that the function updates; what reads it later finds it in its new place.
        take = self._argument(update.op, update.content, device) if update.content.role == WRITE else None

        def run(slots: Slots) -> None:
            if take is not None:
                take(slots)
            apply(gradient(slots) if callable(gradient) else gradient)

        return run

    def _call(self, call: Call) -> Run:
        device = int(self._plan.op_device[call.op])
        schema = getattr(call.function, "_schema", None)
        takes = set() if schema is None else {argument.name for argument in schema.arguments}
        kwargs = {key: self._argument(call.op, value, device) for key, value in call.kwargs.items()}
        if "device" in takes and (kwargs.get("device") is not None or not uses((call.args, call.kwargs))):
            kwargs["device"] = self._devices[device]
        args = [self._argument(call.op, value, device) for value in call.args]
        fills = [(i, arg) for i, arg in enumerate(args) if _is_fill(arg, call.args[i])]
        late = {key: arg for key, arg in kwargs.items() if _is_fill(arg, call.kwargs.get(key))}
        function = getattr(call.function, "_op", call.function)
        if torch.Tag.nondeterministic_seeded in getattr(call.function, "tags", ()):
            function = _seeded(function, call.op, self._randoms[device], "generator" in takes)
        stores: list[Store] = [
            (made.path, self._plan.home[made.value], made.layout)
            for made in call.made
            if self._plan.uses[self._plan.home[made.value]] or self._plan.kept[self._plan.home[made.value]]
        ]
        name = self._plan.program.graph.op_names[call.op]
        relaid: list[bool] = []
        store = _storer(stores, name, relaid)

        def run(slots: Slots) -> None:
            given = args.copy()
            for i, fill in fills:
                given[i] = fill(slots)
            store(slots, function(*given, **kwargs))

        def run_late(slots: Slots) -> None:
            given = args.copy()
            for i, fill in fills:
                given[i] = fill(slots)
            named = kwargs | {key: fill(slots) for key, fill in late.items()}
            store(slots, function(*given, **named))

        found = run_late if late else run
        made_late = [_as_made(arg, given) for arg, given in zip(args, call.args, strict=True)]
        named_late = {key: _as_made(arg, call.kwargs.get(key)) for key, arg in kwargs.items()}
        return _with_parts(found, Parts(call, function, made_late, named_late, stores, relaid))

    def _note_written(self, op: int, used: list[TensorUse]) -> None:
        """Note how the new tensors look at their memory that an op makes by writing in place."""
        plan = self._plan
        for use in used:
            if use.role != WRITE:
                continue
            new, old = plan.home[use.written], plan.taken.get((op, use.written))
            part = plan.program.value_part[use.written]
            if old is not None:
                self._layouts[new] = self.layout(old)
            else:
                count = use.storage_bytes if part is None else slice_bytes(part)
                self._layouts[new] = flat(use.layout.dtype, count)


_DEFAULT_GENERATOR = threading.Lock()
"""Who may draw from PyTorch's own generators."""


def _is_fill(argument: Any, recorded: Any) -> bool:
    """Whether an argument is made in each step: it stands for tensors, and not for one that stays."""
    return callable(argument) and bool(uses([recorded]))


def _made_by(function: Callable[[Slots], Any], kind: str, what: Any) -> Callable[[Slots], Any]:
    """Say what a function of the slots gives, for whoever writes code instead (`envs.measured.regions`)."""
    function.source = kind, what  # type: ignore[attr-defined]
    return function


def _as_made(argument: Any, recorded: Any) -> Any:
    """An argument that is made in each step, with a mark where it has none."""
    if _is_fill(argument, recorded) and not hasattr(argument, "source"):
        return _made_by(argument, "call", None)
    return argument


def _with_parts(run: Run, parts: Parts) -> Run:
    run.parts = parts  # type: ignore[attr-defined]
    return run


def _storer(stores: list[Store], name: str, relaid: list[bool]) -> Callable[[Slots, Any], None]:
    """A function that puts what an op returned into places; `relaid` grows where it had to be laid out anew."""
    if len(stores) == 1 and stores[0][0] == ():
        _, place, layout = stores[0]
        size, stride = layout.size, layout.stride

        def store_one(slots: Slots, out: Any) -> None:
            if out.stride() != stride or out.shape != size:
                out = _laid_out(out, layout, name)
                relaid.append(True)
            slots[place] = out

        return store_one

    def store(slots: Slots, out: Any) -> None:
        for path, place, layout in stores:
            tensor = out
            for position in path:
                tensor = tensor[position]
            if tensor.stride() != layout.stride or tensor.shape != layout.size:
                tensor = _laid_out(tensor, layout, name)
                relaid.append(True)
            slots[place] = tensor

    return store


def _laid_out(tensor: torch.Tensor, layout: Layout, name: str) -> torch.Tensor:
    """A tensor in the layout that the capture foresaw; some kernels of this machine choose another one."""
    if tuple(tensor.shape) != layout.size:
        raise RuntimeError(
            f"op '{name}' made a tensor of shape {list(tensor.shape)} where the capture had {list(layout.size)}"
        )
    made = torch.empty_strided(layout.size, layout.stride, dtype=tensor.dtype, device=tensor.device)
    return made.copy_(tensor)


def _seeded(function: Callable[..., Any], op: int, random: Random, takes_generator: bool) -> Callable[..., Any]:
    """A random op that draws from its own stream."""
    generator = random.generator
    if takes_generator:

        def draw(*args: Any, **kwargs: Any) -> Any:
            generator.manual_seed(random.seed_of(op))
            kwargs["generator"] = generator
            return function(*args, **kwargs)

        return draw

    def draw_from_default(*args: Any, **kwargs: Any) -> Any:
        # Such an op knows only PyTorch's own generator; one worker at a time may have it.
        with _DEFAULT_GENERATOR:
            default = torch.default_generator
            if random.device.type == "cuda":
                default = torch.cuda.default_generators[random.device.index or 0]
            before = default.get_state()
            default.manual_seed(random.seed_of(op))
            try:
                return function(*args, **kwargs)
            finally:
                default.set_state(before)

    return draw_from_default
