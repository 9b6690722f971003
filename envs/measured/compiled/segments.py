"""A region as what is compiled together, and what is run between."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from envs.measured.compiled.code import Code, compiled
from envs.measured.compiled.draft import DoesNotFitError, Draft, Input, Layouts
from envs.measured.compiled.order import in_turns
from envs.measured.ops import Parts
from envs.measured.plan import Plan
from graphs.capture.program import Layout

_LEAST_FUSED = 2
"""With fewer ops in it that a compiler makes code for, nothing is gained."""


@dataclass(frozen=True)
class Segment:
    """Ops of a region that follow each other.

    Attributes:
        ops: In their order.
        code: Of all of them; None where they run one by one.
        inputs: What the code is given.
        outputs: The places that what it returns goes to; a tensor may go to several.
        moved: New places whose tensors are those of old ones, which the code has written in place: pairs of the two.
    """

    ops: list[int]
    code: Checked | None = None
    inputs: tuple[Input, ...] = ()
    outputs: tuple[tuple[int, ...], ...] = ()
    moved: tuple[tuple[int, int], ...] = ()


class Checked:
    """Compiled code whose results are laid out as the capture foresaw; which are not is found at the first call."""

    def __init__(self, code: Code, layouts: Sequence[Layout]) -> None:
        self._code = code
        self._layouts = layouts
        self._relaid: list[int] | None = None

    def __call__(self, *given: torch.Tensor) -> list[torch.Tensor]:
        """Run the code."""
        made = list(self._code(*given))
        if self._relaid is None:
            self._relaid = [i for i, layout in enumerate(self._layouts) if not _is_laid_out(made[i], layout)]
        for i in self._relaid:
            layout = self._layouts[i]
            new = torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype, device=made[i].device)
            made[i] = new.copy_(made[i])
        return made


class RegionCompiler:
    """Compiles the regions of a plan.

    Args:
        plan: What runs.
        runs: By task, the function of each op, with what it consists of.
        layouts: Of the places.
        devices: Of each device number, the device that PyTorch knows.
        threads: Of each device number, with how many threads it computes.
    """

    def __init__(
        self, plan: Plan, runs: Sequence[Any], layouts: Layouts, devices: Sequence[torch.device], threads: Sequence[int]
    ) -> None:
        self._plan = plan
        self._runs = runs
        self._layouts = layouts
        self._devices = devices
        self._threads = threads
        self._readers: dict[int, set[int]] = defaultdict(set)
        for op, task in enumerate(plan.tasks[: plan.program.graph.num_ops]):
            for place in () if task is None else task.releases:
                self._readers[place].add(op)
        self._sent = {copy.source for copy in plan.copies}

    def segments(self, ops: list[int]) -> list[Segment]:
        """What to run for a region, in order; its ops may be in another order than before.

        Args:
            ops: Of one region.
        """
        device = int(self._plan.op_device[ops[0]])
        drafts: list[Draft] = []

        def fits(op: int) -> bool:
            return _joined(self._draft(device), op, self._parts(op))

        def join(op: int, is_new: bool) -> bool:
            if is_new:
                drafts.append(self._draft(device))
            return _joined(drafts[-1], op, self._parts(op))

        found: list[Segment] = []
        made = iter(drafts)
        # By number, as the program has them: the same ops then are the same code, in whichever order they ran.
        for turn, together in in_turns(self._plan, sorted(ops), fits, join):
            draft = next(made) if together else None
            found.append(Segment(turn) if draft is None or draft.fused < _LEAST_FUSED else self._finish(draft, device))
        return found

    def _draft(self, device: int) -> Draft:
        return Draft(self._plan, self._layouts, self._devices[device])

    def _parts(self, op: int) -> Parts | None:
        parts: Parts | None = getattr(self._runs[op], "parts", None)
        return parts

    def _finish(self, draft: Draft, device: int) -> Segment:
        inside = set(draft.ops)
        needed = [place for place in draft.env if self._is_needed(place, inside)]
        moved = tuple((new, old) for new, old in draft.taken.items() if self._is_needed(new, inside))
        by_node: dict[Any, list[int]] = defaultdict(list)
        for place in needed:
            if place not in draft.taken:
                by_node[draft.env[place]].append(place)
        draft.graph.output(tuple(by_node))
        outputs = tuple(map(tuple, by_node.values()))
        code = compiled(
            draft.graph, [given.layout for given in draft.inputs], self._devices[device], self._threads[device]
        )
        checked = Checked(code, [self._layouts(places[0]) for places in outputs])
        return Segment(draft.ops, checked, tuple(draft.inputs), outputs, moved)

    def _is_needed(self, place: int, inside: set[int]) -> bool:
        """Whether a place is used by others than the ops of a graph."""
        return self._plan.kept[place] or place in self._sent or not self._readers[place] <= inside


def _joined(draft: Draft, op: int, parts: Parts | None) -> bool:
    if parts is None:
        return False
    try:
        draft.add(op, parts)
    except DoesNotFitError:
        return False
    return True


def _is_laid_out(tensor: torch.Tensor, layout: Layout) -> bool:
    """Whether a tensor begins where its memory does and lies there as the layout says, as far as that matters."""
    dims = zip(tensor.shape, tensor.stride(), layout.size, layout.stride, strict=True)
    return tensor.storage_offset() == layout.offset and all(
        size == other and (size == 1 or stride == wanted) for size, stride, other, wanted in dims
    )
