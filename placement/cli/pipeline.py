"""The verb ``train`` for the target ``torch_pipeline``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from envs.clusters.cluster import Cluster
from graphs.errors import InputError
from placement.cli import verbs
from placement.cli.shared import status
from placement.runs.pipeline import STAGES, PipelineRun, train_pipeline
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
    out.print(
        f"{stages.graph} x {stages.micro_batches} micro-batches on {stages.cluster}, target torch_pipeline, order "
        f"{stages.order}: {run.segments.num_segments} segments to cut between",
        soft_wrap=True,
    )
    rows = table("placer", "step time", "stages", "ranks", "fits", right=("step time", "stages", "ranks"))
    found = {"search": run.found, **run.opponents}
    for name, placed in sorted(found.items(), key=lambda item: (not item[1].feasible, item[1].step_time_s)):
        fits = "yes" if placed.feasible else "no"
        rows.add_row(name, seconds(placed.step_time_s), str(len(placed.devices)), str(len(set(placed.devices))), fits)
    rows.add_row("lower bound", seconds(run.lower_bound_s), "", "", "")
    out.print(rows)
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


def check(verb: verbs.Train) -> None:
    """Raise for settings that only other targets have, or only this one.

    Raises:
        InputError: It names the setting.
    """
    if verb.target != "torch_pipeline":
        own = {"--micro-batches": verb.micro_batches, "--order": verb.order}
        for name, given in own.items():
            if given is not None:
                raise InputError(f"{name} is for --target torch_pipeline, not for '{verb.target}'; give that target")
        return
    others = {
        "--resume": verb.resume,
        "--updates": verb.updates,
        "--measured": verb.measured,
        "--screen": verb.screen,
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
    if verb.micro_batches is not None and verb.micro_batches < 1:
        raise InputError(f"--micro-batches is {verb.micro_batches}; it must be at least 1")
