"""The parts of a step between neighbouring cuts, what they take, and the pipelines that runs of them make.

`envs.pipelines.cuts` finds them. A *stage* is a run of segments on a device, or on several that each serve a part of
the micro-batches (*replicas*).

**Tied weights.** A parameter that several segments read stays with the first of them. Where they are in stages on
different ranks, each rank has a copy with optimizer state and gradient of its own; at the end of the step the gradients
are summed over these ranks, and each updates its copy, as Megatron-LM does with tied embeddings.

**Replicas** sum their gradients in buckets of `graphs.replicate.BUCKET_BYTES`, each as soon as all have it, while they
go on with the backward pass, as PyTorch's ``DistributedDataParallel`` does.

Letters: ``K`` segments, ``D`` devices, ``M`` micro-batches, ``S`` stages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from envs.clusters.cluster import Cluster
from envs.pipelines.actions import Pipeline
from envs.pipelines.sums import Sum
from graphs.errors import InputError
from graphs.replicate import BUCKET_BYTES


@dataclass(frozen=True, eq=False)
class Tied:
    """A parameter that several segments read.

    Attributes:
        name: Of the parameter.
        segments: Those that read it, ascending; it belongs to the first.
        fixed_bytes: Of a copy: the parameter, its optimizer state and its accumulated gradient.
        gradient_bytes: Of the gradient.
        update_s: ``float64[D]``, seconds of its update.
    """

    name: str
    segments: tuple[int, ...]
    fixed_bytes: int
    gradient_bytes: int
    update_s: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Segments:
    """A step cut wherever it may be.

    Attributes:
        cluster: The devices.
        micro_batches: ``M``.
        modules: Of each of ``K`` segments the outermost whole modules, in program order.
        action_s: ``float64[D, K, 3]``: seconds of forward, input gradient and weight gradient of a micro-batch.
        add_s: ``float64[D, K]``: what of a weight gradient is its addition to those of the micro-batches before.
        update_s: ``float64[D, K]``, once a step.
        crossing_bytes: ``int64[K + 1]``: activations that cross before a segment; 0 at both ends.
        gradient_bytes: ``int64[K + 1]``: gradients that cross there.
        output_bytes: ``int64[K + 1]``: of the activations what is kept for nothing but being an output.
        saved_bytes: ``int64[K]``: kept for the backward pass.
        working_bytes: ``int64[K, 2]``: most that is alive besides, in the forward and in the backward pass.
        fixed_bytes: ``int64[K]``: parameters, optimizer state and accumulated gradients.
        summed_bytes: ``int64[K]``: of these the accumulated gradients.
        tied: Parameters that several segments read.
        spans: Of each module the first and the last segment with a part of it, by its path.
    """

    cluster: Cluster
    micro_batches: int
    modules: tuple[tuple[str, ...], ...]
    action_s: NDArray[np.float64]
    add_s: NDArray[np.float64]
    update_s: NDArray[np.float64]
    crossing_bytes: NDArray[np.int64]
    gradient_bytes: NDArray[np.int64]
    output_bytes: NDArray[np.int64]
    saved_bytes: NDArray[np.int64]
    working_bytes: NDArray[np.int64]
    fixed_bytes: NDArray[np.int64]
    summed_bytes: NDArray[np.int64]
    tied: tuple[Tied, ...] = ()
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def num_segments(self) -> int:
        """``K``."""
        return len(self.modules)

    def pipeline(self, cuts: Sequence[int], devices: Sequence[int]) -> Pipeline:
        """The stages between cuts.

        Args:
            cuts: The first segment of each stage but the first, ascending.
            devices: The device of each of ``S`` stages; the ranks are the distinct ones by first appearance.

        Raises:
            InputError: The cuts are not ascending inside the step, or do not fit the devices.
        """
        spans = self._spans(cuts, len(devices))
        ranks = list(dict.fromkeys(devices))
        rank_of_stage = np.array([ranks.index(d) for d in devices], dtype=np.int32)
        own = [self.micro_batches] * len(devices)
        return self._pipeline(spans, range(len(devices)), devices, rank_of_stage, own)

    def replicas(self, cuts: Sequence[int], devices: Sequence[Sequence[int]], *, split: bool) -> Pipeline:
        """Stages of which each is on one device or several; replica ``i`` of ``r`` serves micro-batches ``i + j r``.

        Args:
            cuts: As for `pipeline`.
            devices: For each of ``S`` stages its devices; none is given twice. Each is a rank with one stage of the
                pipeline that comes out, which are numbered in this order.
            split: Whether gradients of parameters are actions of their own, after which their sums begin.

        Raises:
            InputError: As `pipeline`.
        """
        spans = self._spans(cuts, len(devices))
        counts = [len(row) for row in devices]
        first = np.cumsum([0, *counts])
        logical = np.repeat(np.arange(len(devices)), counts).tolist()
        flat = [device for row in devices for device in row]
        if len(set(flat)) < len(flat) or not all(counts):
            raise InputError(f"devices {list(map(list, devices))} must be one at least a stage, and none twice")
        own = [len(range(i, self.micro_batches, len(row))) for row in devices for i in range(len(row))]
        numbers = np.arange(self.micro_batches)[:, None]
        paths = first[:-1][None] + numbers % np.array(counts)[None]  # [M, S]
        ranks = np.arange(len(flat), dtype=np.int32)
        sums = [
            one
            for stage, (a, b) in enumerate(spans)
            if counts[stage] > 1
            for one in self._buckets(a, b, int(first[stage]), devices[stage], split)
        ]
        return self._pipeline([spans[s] for s in logical], logical, flat, ranks, own, paths, sums)

    def _spans(self, cuts: Sequence[int], stages: int) -> list[tuple[int, int]]:
        spans = list(zip([0, *cuts], [*cuts, self.num_segments], strict=True))
        if len(spans) != stages or any(a >= b for a, b in spans):
            raise InputError(f"cuts {list(cuts)} do not make {stages} stages of {self.num_segments} segments")
        return spans

    def _buckets(self, start: int, end: int, stage: int, devices: Sequence[int], split: bool) -> list[Sum]:
        """The sums of one stage's gradients over its replicas, the last segments first."""
        kinds = slice(2, 3) if split else slice(1, 3)
        after_s = {d: np.cumsum(self.action_s[d, start:end, kinds].sum(axis=1)) for d in devices}  # of earlier segments
        sums, size = [], 0
        for k in range(end - 1, start - 1, -1):
            size += int(self.summed_bytes[k])
            if size and (size >= BUCKET_BYTES or k == start):
                early_s = tuple(float(after_s[d][k - start - 1]) if k > start else 0.0 for d in devices)
                sums.append(Sum(tuple(range(stage, stage + len(devices))), size, early_s))
                size = 0
        return sums

    def _pipeline(
        self,
        spans: Sequence[tuple[int, int]],
        logical: Sequence[int],
        devices: Sequence[int],
        rank_of_stage: NDArray[np.int32],
        own: Sequence[int],
        paths: NDArray[np.int64] | None = None,
        sums: Sequence[Sum] = (),
    ) -> Pipeline:
        """The pipeline of some stages, with the copies of tied weights."""
        sums_of = self._sums
        times, update_s, saved, fixed, working = [], [], [], [], []
        for (a, b), d, count in zip(spans, devices, own, strict=True):
            forward, given, weight, added, update = (
                after - before for before, after in zip(sums_of.times_s[d][a], sums_of.times_s[d][b], strict=True)
            )
            if count <= 1 < self.micro_batches:  # there is nothing to add a gradient to
                weight = max(weight - added, 0.0)
            times.append((forward, given + weight, given, weight))
            update_s.append(update)
            crossing, gradient = sums_of.crossing[a], sums_of.gradient[b]
            saved.append(sums_of.saved[b] - sums_of.saved[a] + crossing + sums_of.output[b])
            fixed.append(sums_of.fixed[b] - sums_of.fixed[a] + count * (crossing + gradient))
            in_backward = max(sums_of.backward[a:b])
            working.append((max(sums_of.forward[a:b]), in_backward, in_backward, in_backward))
        shared = list(sums)
        for one in self.tied:
            holders = [[s for s, (a, b) in enumerate(spans) if a <= k < b] for k in one.segments]
            stage_of_rank: dict[int, int] = {}
            for s in (s for row in holders for s in row):
                rank = int(rank_of_stage[s])
                if rank not in stage_of_rank:
                    stage_of_rank[rank] = s
                    if s not in holders[0]:
                        fixed[s] += one.fixed_bytes
                        update_s[s] += float(one.update_s[devices[s]])
            if len({logical[s] for s in stage_of_rank.values()}) > 1:
                shared.append(Sum(tuple(stage_of_rank.values()), one.gradient_bytes))
        return Pipeline(
            device_of_rank=np.array(list(dict.fromkeys(devices)), dtype=np.int32),
            rank_of_stage=rank_of_stage,
            action_s=np.array(times),
            update_s=np.array(update_s),
            forward_bytes=np.array([sums_of.crossing[b] for _, b in spans], dtype=np.int64),
            backward_bytes=np.array([sums_of.gradient[a] for a, _ in spans], dtype=np.int64),
            saved_bytes=np.array(saved, dtype=np.int64),
            working_bytes=np.array(working, dtype=np.int64),
            fixed_bytes=np.array(fixed, dtype=np.int64),
            routes=self.cluster.routes,
            paths=paths,
            sums=tuple(shared),
        )

    @cached_property
    def _sums(self) -> _Sums:
        return _Sums(self)

    def modules_between(self, start: int, end: int) -> tuple[str, ...]:
        """The outermost whole modules of some neighbouring segments, in program order.

        A list of modules such as ``layers`` is no module that is called, so its members are named, ``layers.0`` each.
        """
        listed = [path for segment in self.modules[start:end] for path in segment]
        return tuple(dict.fromkeys(self._outermost(path, start, end) for path in listed))

    def _outermost(self, path: str, start: int, end: int) -> str:
        """The outermost module around one that is in these segments alone and has no list of modules in it."""
        for last in (match.start() for match in re.finditer(r"\.", path)):
            first_of, last_of = self.spans.get(path[:last], (-1, end))
            if start <= first_of and last_of < end and path[:last] not in self._with_lists:
                return path[:last]
        return path

    @cached_property
    def _with_lists(self) -> set[str]:
        """The lists of modules, and the modules that they are in."""
        found = set()
        for path in self.spans:
            parts = path.split(".")
            number = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
            found |= {".".join(parts[:i]) for i in range(1, number + 1)}
        return found


class _Sums:
    """The columns of segments, what stages add up as running sums: a search makes thousands of pipelines a second.

    Attributes:
        times_s: For each device ``K + 1`` sums of forward, input gradient, weight gradient, addition and update.
        saved: ``K + 1`` sums of `Segments.saved_bytes`; likewise `fixed`.
        crossing: `Segments.crossing_bytes`; likewise `gradient` and `output`.
        forward: ``K``, the forward pass's working bytes; likewise `backward`.
    """

    def __init__(self, segments: Segments) -> None:
        columns = np.concatenate([segments.action_s, segments.add_s[..., None], segments.update_s[..., None]], axis=2)
        self.times_s: list[list[list[float]]] = np.pad(columns.cumsum(axis=1), ((0, 0), (1, 0), (0, 0))).tolist()
        self.saved: list[int] = [0, *np.cumsum(segments.saved_bytes).tolist()]
        self.fixed: list[int] = [0, *np.cumsum(segments.fixed_bytes).tolist()]
        self.crossing: list[int] = segments.crossing_bytes.tolist()
        self.gradient: list[int] = segments.gradient_bytes.tolist()
        self.output: list[int] = segments.output_bytes.tolist()
        self.forward: list[int]
        self.backward: list[int]
        self.forward, self.backward = segments.working_bytes.T.tolist()
