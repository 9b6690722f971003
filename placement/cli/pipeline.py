"""The verb ``train`` for the target ``torch_pipeline``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from envs.clusters.cluster import Cluster
from graphs.errors import InputError
from placement.cli import verbs
from placement.cli.shared import status
from placement.placers.pipeline_stages import PlacedStages
from placement.placers.replicated_stages import ReplicatedStages
from placement.results.placement_file import STAGES
from placement.runs.pipeline import PipelineRun, train_pipeline
from placement.text import seconds, size, table

DEFAULT_SEARCH_S = 20.0
"""Seconds of a search where no limit is given."""


def train(verb: verbs.Train, cluster: str | Cluster, run_dir: Path, out: Console, err: Console) -> int:
    """Find stages, show them beside what others find, and write them.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: Nothing fits; one sentence.
    """
    assert verb.graph is not None
    micro_batches = verb.micro_batches or verbs.DEFAULT_MICRO_BATCHES
    with status(err, f"cutting {verb.graph} into stages"):
        run = train_pipeline(
            verb.graph,
            cluster,
            micro_batches=micro_batches,
            order=verb.order or verbs.DEFAULT_ORDER,
            objective=verb.objective or "step",
            time_limit_s=DEFAULT_SEARCH_S if verb.time_limit_s is None else verb.time_limit_s,
            seed=verb.seed,
            out=run_dir,
        )
    show(out, run)
    out.print(f"\nwritten: {run_dir / STAGES}", soft_wrap=True)
    return 0


def show(out: Console, run: PipelineRun) -> None:
    """The table of placers, and the stages."""
    stages = run.stages
    _show_tried(out, run)
    out.print(
        f"{stages.graph} x {stages.micro_batches} micro-batches on {stages.cluster}, target torch_pipeline, order "
        f"{stages.order}: {run.segments.num_segments} segments to cut between",
        soft_wrap=True,
    )
    heads = ("step time", "samples/s", "stages", "devices")
    rows = table("placer", *heads, "fits", right=heads)
    found: dict[str, tuple[PlacedStages | ReplicatedStages, int]] = {"search": (run.found, len(set(run.found.devices)))}
    found |= {name: (one, len(set(one.devices))) for name, one in run.opponents.items()}
    found |= {name: (one, one.num_devices) for name, one in run.replicated.items()}
    for name, (placed, devices) in sorted(found.items(), key=lambda item: _rank(item[1][0])):
        fits = "yes" if placed.feasible else "no"
        speed = f"{stages.batch / placed.step_time_s:,.4g}"
        rows.add_row(name, seconds(placed.step_time_s), speed, str(len(placed.cuts) + 1), str(devices), fits)
    rows.add_row("lower bound", seconds(run.lower_bound_s), f"{stages.batch / run.lower_bound_s:,.4g}", "", "", "")
    out.print(rows)
    better = run.better_replicated
    if better is not None:
        out.print(_better(run.replicated[better], better, run.found.step_time_s), soft_wrap=True)
    shown = table("stage", "rank", "device", "from", "to", right=("stage", "rank"))
    for number, stage in enumerate(stages.stages):
        shown.add_row(
            str(number), str(stage.rank), stages.ranks[stage.rank], stage.modules[0] or "(the model)", stage.modules[-1]
        )
    out.print(shown)
    peaks = ", ".join(
        f"{name} {size(float(peak))}" for name, peak in zip(stages.ranks, run.found.peak_memory_bytes, strict=True)
    )
    out.print(f"peak memory: {peaks}", soft_wrap=True)


def _rank(placed: PlacedStages | ReplicatedStages) -> tuple[bool, float]:
    return not placed.feasible, placed.step_time_s


def _show_tried(out: Console, run: PipelineRun) -> None:
    """What the number of micro-batches, or of batches a step, was chosen among."""
    if len(run.tried) == 1:
        return
    several = len({row.batches for row in run.tried}) > 1
    parts = [
        f"{row.micro_batches}{f' x {row.batches} batches' if several else ''} "
        + ("too big" if row.samples_per_s is None else f"{row.samples_per_s:,.4g}/s")
        for row in run.tried
    ]
    out.print(f"micro-batches tried, and samples a second without a search: {', '.join(parts)}", soft_wrap=True)


def _better(placed: ReplicatedStages, name: str, step_time_s: float) -> str:
    """The sentence that a pipeline is not the thing to take."""
    less = 1 - placed.step_time_s / step_time_s
    if name == "data_parallel":
        return (
            f"data parallelism is faster: {placed.num_devices} replicas of the whole model, {placed.micro_batches} "
            f"micro-batches in all, take {seconds(placed.step_time_s)}, {less:.0%} less than the pipeline; train with "
            "torch.nn.parallel.DistributedDataParallel"
        )
    rows = " + ".join(str(len(row)) for row in placed.devices)
    return (
        f"stages on several devices each ({rows}) would be faster: {seconds(placed.step_time_s)}, {less:.0%} less than "
        "the pipeline; PyTorch's pipelines run that only together with DistributedDataParallel, by hand"
    )


def check(verb: verbs.Train) -> None:
    """Raise for settings that only other targets have, or only this one.

    Raises:
        InputError: It names the setting.
    """
    if verb.target != "torch_pipeline":
        own = {"--micro-batches": verb.micro_batches, "--order": verb.order, "--objective": verb.objective}
        for name, given in own.items():
            if given is not None:
                raise InputError(f"{name} is for --target torch_pipeline, not for '{verb.target}'; give that target")
        return
    others = {
        "--resume": verb.resume,
        "--updates": verb.updates,
        "--measured": verb.measured,
        "--screen": verb.screen,
        "--compile-regions": verb.compile_regions,
        "--devices": verb.devices,
        "--profile": verb.profile,
        "--pin": verb.pin,
        "--forbid": verb.forbid,
        "--reserve": verb.reserve,
        "--start": verb.start,
        "--workers": verb.workers,
        "--chains": verb.chains,
    }
    for name, value in others.items():
        if value:
            raise InputError(f"{name} does not go with --target torch_pipeline; leave it out")
    if verb.schedule != verbs.DEFAULT_SCHEDULE:
        raise InputError("--schedule is for the engine; for --target torch_pipeline give --order")
    if isinstance(verb.micro_batches, int) and verb.micro_batches < 1:
        raise InputError(f"--micro-batches is {verb.micro_batches}; it must be at least 1")
