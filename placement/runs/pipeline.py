"""A run for the target ``torch_pipeline``: a step in micro-batches, cut into stages for PyTorch's schedules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from envs.clusters.catalog import load_cluster
from envs.clusters.cluster import Cluster
from envs.pipelines.bound import lower_bound_s
from envs.pipelines.cuts import Segments, find_segments
from envs.pipelines.orders import ORDERS
from graphs.errors import InputError, unknown_name
from graphs.files import write_atomically
from graphs.microbatch_parts import batch_of
from graphs.sources import load_microbatches
from placement.exports.stages import Stages, encode_stages, to_stages
from placement.placers.pipeline_stages import PlacedStages, heuristics, search
from placement.runs import directory

STAGES = "stages.json"
"""The file of a run directory that says which rank runs which modules, in which order."""

MOST_EVALUATIONS = 1_000_000
"""Stages that a search with a time limit tries at most."""


@dataclass(frozen=True, eq=False)
class PipelineRun:
    """What came out.

    Attributes:
        stages: The content of ``stages.json``.
        segments: What could be cut.
        found: The best stages.
        opponents: What placers that do not search found under the same order and memory, by name.
        lower_bound_s: Seconds that no pipeline of these segments is below.
    """

    stages: Stages
    segments: Segments
    found: PlacedStages
    opponents: dict[str, PlacedStages]
    lower_bound_s: float


def train_pipeline(
    graph: str,
    cluster: str | Cluster,
    *,
    micro_batches: int = 8,
    order: str = "1f1b",
    time_limit_s: float | None = 20.0,
    evaluations: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> PipelineRun:
    """Find stages for PyTorch's pipeline schedules.

    Args:
        graph: What names the model, see `graphs.sources.load_graph`.
        cluster: A cluster, a known name or a file.
        micro_batches: Parts of the batch; they must divide it.
        order: One of `envs.pipelines.orders.ORDERS`.
        time_limit_s: Seconds for the search.
        evaluations: Stages to try at most; alone, without a time limit, it gives the same stages for the same seed.
        seed: Seeds the search.
        out: The run directory, which then holds ``stages.json``; None writes no file.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: Nothing fits; one sentence.
    """
    if order not in ORDERS:
        raise unknown_name("order", order, ORDERS)
    loaded_cluster = load_cluster(cluster) if isinstance(cluster, str) else cluster
    micro = load_microbatches(graph, micro_batches)
    segments = find_segments(micro, loaded_cluster)
    if segments.num_segments == 1:
        raise InputError(
            f"graph '{graph}' cannot be cut into stages: no module begins where a single value crosses and no weight "
            "is used on both sides (tied weights, or values that skip over all modules); untie the weights, or take "
            "another target"
        )
    batch = batch_of(micro.graph)
    if batch is None:
        raise InputError(f"graph '{graph}' does not say how large its batch is: its inputs have no shapes")
    opponents = heuristics(segments, order)
    found = search(segments, order, seed=seed, time_limit_s=time_limit_s, evaluations=evaluations or MOST_EVALUATIONS)
    name = micro.graph.name.removeprefix(f"{micro_batches} micro-batches of ")
    stages = to_stages(segments, found, graph=name, batch=batch * micro_batches)
    if out is not None:
        run_dir = Path(out)
        with directory.hold(run_dir):
            write_atomically(run_dir / STAGES, encode_stages(stages))
    return PipelineRun(stages, segments, found, opponents, lower_bound_s(segments))
