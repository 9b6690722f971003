"""A run for the target ``torch_pipeline``: a step in micro-batches, cut into stages for PyTorch's schedules.

**Objectives.** ``step``: a step of the graph's own batch takes the least time. ``throughput``: the batch is free; a
step takes 1, 2, 4, ... of the graph's batches (`MOST_BATCHES` at most), in micro-batches of the same size, and what
counts is samples a second. More micro-batches a step fill a pipeline better and share out updates; memory says how
many there can be, which depends on the order: ``gpipe`` keeps what each has saved, the others only a few, and all of
them the buffers that PyTorch receives into.

**Micro-batches** ``auto``: the powers of two that divide the batch are tried, `MOST_MICRO_BATCHES` at most, with the
placers that do not search; the search goes on with the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from envs.clusters.catalog import load_cluster
from envs.clusters.cluster import Cluster
from envs.pipelines.bound import lower_bound_s
from envs.pipelines.cuts import find_segments
from envs.pipelines.orders import ORDERS
from envs.pipelines.segments import Segments
from graphs.errors import InputError, NoFeasiblePlacementError, unknown_name
from graphs.files import write_atomically
from graphs.microbatch_parts import batch_of
from graphs.sources import load_microbatches
from placement.exports.stages import Stages, encode_stages, to_stages
from placement.placers.pipeline_stages import PlacedStages, cost, heuristics
from placement.placers.replicated_stages import ReplicatedStages, with_replicas
from placement.placers.stage_search import search
from placement.results.placement_file import STAGES
from placement.runs import directory

MOST_EVALUATIONS = 1_000_000
"""Stages that a search with a time limit tries at most."""

MOST_MICRO_BATCHES = 128
"""What ``auto`` tries at most."""

MOST_BATCHES = 16
"""Batches that a step takes at most under the objective ``throughput``."""

Objective = Literal["step", "throughput"]

OBJECTIVES: tuple[Objective, ...] = ("step", "throughput")
"""What a run may look for."""


@dataclass(frozen=True)
class Tried:
    """What the placers that do not search found for one way to make a step.

    Attributes:
        micro_batches: Parts of the graph's batch.
        batches: How many such batches a step takes.
        step_time_s: Of the best that fits; None where nothing does.
        samples_per_s: Likewise.
    """

    micro_batches: int
    batches: int
    step_time_s: float | None
    samples_per_s: float | None


@dataclass(frozen=True, eq=False)
class PipelineRun:
    """What came out.

    Attributes:
        stages: The content of ``stages.json``.
        segments: What could be cut.
        found: The best stages.
        opponents: What placers that do not search found under the same order and memory, by name.
        replicated: What opponents with several devices a stage found, data parallelism among them, by name.
        lower_bound_s: Seconds that no pipeline of these segments is below under this order.
        tried: What the number of micro-batches, and of batches a step, was chosen among.
    """

    stages: Stages
    segments: Segments
    found: PlacedStages
    opponents: dict[str, PlacedStages]
    replicated: dict[str, ReplicatedStages]
    lower_bound_s: float
    tried: tuple[Tried, ...]

    @property
    def better_replicated(self) -> str | None:
        """The name of the opponent with replicas that is best, where it beats the stages that were found."""
        fitting = {name: one.step_time_s for name, one in self.replicated.items() if one.feasible}
        name = min(fitting, key=lambda key: fitting[key], default=None)
        return name if name is not None and fitting[name] < self.found.step_time_s else None


class Step:
    """A graph's step on a cluster in any number of micro-batches; each is cut once.

    Args:
        graph: What names the model, see `graphs.sources.load_graph`.
        cluster: Where to.

    Attributes:
        name: Of the graph.
        batch: Its batch.
    """

    def __init__(self, graph: str, cluster: Cluster) -> None:
        self._graph = graph
        self._cluster = cluster
        self._known: dict[tuple[int, int], Segments] = {}
        self.name = graph
        self.batch = 0

    def segments(self, micro_batches: int, batches: int = 1) -> Segments:
        """The segments of a step that takes so many batches, each in so many micro-batches.

        Raises:
            InputError: Bad input; one sentence.
        """
        key = (micro_batches, batches)
        if key not in self._known:
            micro = load_microbatches(self._graph, micro_batches, batches=batches, made=2)
            found = find_segments(micro, self._cluster)
            part = batch_of(micro.graph)
            if part is None:
                raise InputError(
                    f"graph '{self._graph}' does not say how large its batch is: its inputs have no shapes"
                )
            self.batch = part * micro_batches
            self.name = micro.graph.name.removeprefix(f"{micro_batches * batches} micro-batches of ")
            self._known[key] = found
        return self._known[key]

    def parts(self, micro_batches: int, batches: int) -> Segments | None:
        """As `segments`, by the number of micro-batches of all batches; None where there are no such parts."""
        if micro_batches % batches or self.batch % (micro_batches // batches):
            return None
        return self.segments(micro_batches // batches, batches)


def train_pipeline(
    graph: str,
    cluster: str | Cluster,
    *,
    micro_batches: int | Literal["auto"] = 8,
    order: str = "1f1b",
    objective: Objective = "step",
    time_limit_s: float | None = 20.0,
    evaluations: int | None = None,
    learn: bool = True,
    seed: int = 0,
    out: str | Path | None = None,
) -> PipelineRun:
    """Find stages for PyTorch's pipeline schedules.

    Args:
        graph: What names the model, see `graphs.sources.load_graph`.
        cluster: A cluster, a known name or a file.
        micro_batches: Parts of the batch; they must divide it. ``"auto"`` chooses a power of two.
        order: One of `envs.pipelines.orders.ORDERS`.
        objective: One of `OBJECTIVES`, see the module's text.
        time_limit_s: Seconds for the search.
        evaluations: Stages to try at most; alone, without a time limit, it gives the same stages for the same seed.
        learn: Whether the search learns which moves to try.
        seed: Seeds the search.
        out: The run directory, which then holds ``stages.json``; None writes no file.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: Nothing fits; one sentence.
    """
    if order not in ORDERS:
        raise unknown_name("order", order, ORDERS)
    if objective not in OBJECTIVES:
        raise unknown_name("objective", objective, OBJECTIVES)
    step = Step(graph, load_cluster(cluster) if isinstance(cluster, str) else cluster)
    choice, tried, opponents = _choose(step, micro_batches, order, objective)
    segments = step.segments(choice.micro_batches, choice.batches)
    replicated = with_replicas(segments, lambda parts: step.parts(parts, choice.batches), order)
    found = search(
        segments,
        order,
        seed=seed,
        time_limit_s=time_limit_s,
        evaluations=evaluations or MOST_EVALUATIONS,
        learn=learn,
        starts=opponents,
    )
    stages = to_stages(segments, found, graph=step.name, batch=step.batch * choice.batches)
    if out is not None:
        run_dir = Path(out)
        with directory.hold(run_dir):
            write_atomically(run_dir / STAGES, encode_stages(stages))
    return PipelineRun(stages, segments, found, opponents, replicated, lower_bound_s(segments, order), tried)


def _choose(
    step: Step, micro_batches: int | Literal["auto"], order: str, objective: Objective
) -> tuple[Tried, tuple[Tried, ...], dict[str, PlacedStages]]:
    """How a step is made, what it was chosen among, and what the placers that do not search find for it.

    Raises:
        InputError: As `Step.segments`.
        NoFeasiblePlacementError: The order serves no such numbers.
    """
    if micro_batches == "auto":
        step.segments(1)  # says how large the batch is
        powers = [2**i for i in range(MOST_MICRO_BATCHES.bit_length()) if step.batch % 2**i == 0]
    else:
        powers = [micro_batches]
    batches = [1]
    while objective == "throughput" and 2 * batches[-1] <= MOST_BATCHES:
        batches.append(2 * batches[-1])
    rows: list[tuple[Tried, dict[str, PlacedStages]]] = []
    refused: NoFeasiblePlacementError | None = None
    for parts in powers:
        for each in batches:
            segments = step.segments(parts, each)
            if segments.num_segments == 1:
                raise InputError(
                    f"graph '{step.name}' cannot be cut into stages: no module begins where a single value crosses, as "
                    "values skip over all of them; take another target"
                )
            try:
                found = heuristics(segments, order)
            except NoFeasiblePlacementError as error:
                refused = error
                continue
            best = min(found.values(), key=lambda placed: cost(placed, segments))
            time_s = best.step_time_s if best.feasible else None
            samples = None if time_s is None else step.batch * each / time_s
            rows.append((Tried(parts, each, time_s, samples), found))
    if not rows:
        assert refused is not None
        raise refused
    chosen, found = max(rows, key=lambda row: row[0].samples_per_s or 0.0)  # of one batch the shortest step, too
    return chosen, tuple(row for row, _ in rows), found
