"""The verbs that run steps on real devices: ``run``, ``profile``, and ``train --measured``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.text import Text

from envs.measured.problem import MeasuredProblem, Measurement
from envs.problem import PlacementProblem
from graphs.errors import InputError
from graphs.files import write_atomically
from placement import api
from placement.arguments import check_at_least_one, check_can_write, check_positive
from placement.cli import verbs
from placement.cli.shared import HeadingDisplay, make_console, status
from placement.exports.stages import STAGES
from placement.runs import directory
from placement.runs.plain import COMPILED, Beside, compiles_regions
from placement.runs.steps import MeasuredSteps
from placement.text import seconds, size, table
from placement.workers import parse_workers

if TYPE_CHECKING:
    from placement.runs.measured import MeasuredRun


def run(verb: verbs.Run) -> int:
    """Measure the steps of a placement file.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: The steps could not be run.
    """
    check_at_least_one("--steps", verb.steps)
    check_positive("--time-limit-s", verb.time_limit_s)
    check_can_write(verb.json)
    out = make_console()
    if verb.placement is not None and (verb.placement.name == STAGES or (verb.placement / STAGES).is_file()):
        return _run_pipeline(verb, out)
    if verb.workers is not None:
        raise InputError("--workers is for the stages of a pipeline (--placement RUN/stages.json); leave it out")
    measured = api.run(
        verb.graph,
        verb.placement,
        verb.devices,
        steps=verb.steps,
        time_limit_s=verb.time_limit_s,
        json=verb.json,
        plain=verb.plain,
        compile_regions=verb.compile_regions or None,
        observer=HeadingDisplay(out, make_console(stderr=True)),
    )
    _show_steps(out, measured)
    return 0


def _run_pipeline(verb: verbs.Run, out: Console) -> int:
    """Measure the steps of a pipeline by `torchrun`, on this machine or on those of workers.

    Raises:
        InputError: Bad input, or the steps could not be run; one sentence.
    """
    for name, value in {"--devices": verb.devices, "--compile-regions": verb.compile_regions}.items():
        if value:
            raise InputError(f"{name} does not go with the stages of a pipeline; leave it out")
    if verb.workers is not None:
        parse_workers(verb.workers)
    from placement.pipelines.on_hosts import run_pipeline

    assert verb.placement is not None
    with status(make_console(stderr=True), f"running {verb.graph} in stages"):
        found = run_pipeline(
            verb.graph, verb.placement, workers=verb.workers, steps=verb.steps, time_limit_s=verb.time_limit_s
        )
    text = Text.assemble(("measured step time  ", "dim"), (seconds(found.step_time_s, digits=4), "bold green"))
    if found.stages.step_time_s is not None:
        text.append(f"  simulated {seconds(found.stages.step_time_s)}", "dim")
    out.print(text)
    made = table("rank", "in the stages", "machine", right=("rank",))
    for rank, (device, host) in enumerate(zip(found.stages.ranks, found.hosts, strict=True)):
        made.add_row(str(rank), device, host)
    out.print(made)
    if verb.json is not None:
        figures = {"step_time_s": found.step_time_s, "step_times_s": found.step_times_s, "hosts": found.hosts}
        write_atomically(verb.json, msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")
    return 0


def _show_steps(out: Console, measured: MeasuredSteps) -> None:
    found = measured.measurement
    out.print()
    out.print(
        Text.assemble(
            ("measured step time  ", "dim"),
            (seconds(found.step_time_s, digits=4), "bold green"),
            (
                f"  half of the {len(found.step_times_s)} steps within {seconds(found.spread_s)}"
                f"{', regions compiled' if measured.compile_regions else ''}",
                "dim",
            ),
        )
    )
    count = dict.fromkeys(measured.result.cluster.devices, 0)
    for device in measured.result.ops.values():
        count[device] += 1
    made = table("device", "in the placement", "ops", "peak memory", right=("ops", "peak memory"))
    for real, (device, ops), peak in zip(measured.devices, count.items(), found.peak_memory_bytes, strict=True):
        made.add_row(real.name, device, f"{ops:,}", size(peak))
    out.print(made)
    out.print()
    _show_beside(out, measured.beside)
    _show_verdict(out, measured.beside, "The placement", found.step_time_s)


def _show_beside(out: Console, beside: Beside) -> None:
    """What the same cores take without the placement."""
    for each in beside.plain:
        took = f"failed: {each.reason}" if each.step_time_s is None else seconds(each.step_time_s, digits=4)
        where = f"{each.device}, {each.threads} threads" if each.threads > 1 else each.device
        out.print(f"{each.name} on the same cores: {took} ({where})", soft_wrap=True)
    if beside.one_device is not None:
        (device,) = beside.one_device.cluster.devices
        took = seconds(beside.one_device.step_time_s, digits=4)
        how = ", regions compiled" if compiles_regions(beside.one_device) else ""
        out.print(f"all ops on one device of these cores: {took} ({device}{how})", soft_wrap=True)


def _show_verdict(out: Console, beside: Beside, what: str, placed_s: float) -> None:
    """Whether a placement is worth running."""
    best = beside.fastest
    if best is None or best.step_time_s is None:
        return
    ratio = placed_s / best.step_time_s
    if ratio > 1:
        said = f"{what} takes {ratio:.2f} times as long as {best.name}, which is the fastest: run the model as it is"
        out.print(f"{said}{' by torch.compile' if best.name == COMPILED else ''}.", style="yellow", soft_wrap=True)
    else:
        out.print(f"{what} takes {ratio:.2f} of the time of {best.name}.", style="green", soft_wrap=True)


def profile(verb: verbs.Profile) -> int:
    """Profile the machine by a graph's steps, and write the graph with its times, and the cluster.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: The steps could not be run.
    """
    check_at_least_one("--steps", verb.steps)
    check_at_least_one("--placements", verb.placements)
    check_positive("--time-limit-s", verb.time_limit_s)
    out = make_console()
    profiled = api.profile(
        verb.graph,
        verb.devices,
        verb.out,
        cluster_out=verb.cluster_out,
        schedule=verb.schedule,
        placements=verb.placements,
        steps=verb.steps,
        seed=verb.seed,
        time_limit_s=verb.time_limit_s,
        observer=HeadingDisplay(out, make_console(stderr=True)),
    )
    found = profiled.found
    right = ("step alone", "dispatch", "ops in parallel")
    made = table("device", *right, right=right)
    for i, device in enumerate(profiled.devices):
        step_s, dispatch_s = seconds(found.solo_step_s[i], digits=4), seconds(found.dispatch_s[i])
        made.add_row(device.name, step_s, dispatch_s, f"{found.contention[i]:.2f} x")
    out.print()
    out.print(made)
    for link in found.cluster.links:
        out.print(f"{link.a} to {link.b}  {seconds(link.latency_s)} and {link.bytes_per_s / 1e9:.1f} GB/s")
    out.print(f"graph     {profiled.graph_file}", soft_wrap=True)
    out.print(f"cluster   {profiled.cluster_file}", soft_wrap=True)
    return 0


def train_measured(verb: verbs.Train, out: Console, err: Console) -> int:
    """Learn from measured time.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: No placement could be run.
    """
    if not verb.measured:
        raise InputError(
            "--screen, --devices, --profile and --compile-regions are for learning from measured time; add --measured"
        )
    if verb.graph is None or verb.devices is None:
        raise InputError("train --measured needs a GRAPH and --devices, for example --devices cpu:0,cpu:1")
    _check_measured(verb)
    run_dir = verb.out or directory.free_directory(Path("runs"), f"{verb.graph.partition(':')[0]}-measured")
    run = api.train_measured(
        verb.graph,
        verb.devices,
        cluster=verb.cluster,
        profile=verb.profile,
        schedule=verb.schedule,
        groups=verb.groups,
        screen=verb.screen,
        time_limit_s=verb.time_limit_s,
        seed=verb.seed,
        out=run_dir,
        plain=verb.plain,
        compile_regions=verb.compile_regions,
        observer=_MeasuredDisplay(out, err),
        workers=verb.workers,
    )
    _show_run(out, run)
    return 0


def resume_measured(verb: verbs.Train, out: Console, err: Console) -> int:
    """Go on with a run that learns from measured time.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: No placement could be run.
    """
    _check_measured(verb)
    if verb.devices is not None or verb.profile is not None or verb.screen or verb.compile_regions:
        raise InputError(
            f"the run in '{verb.resume}' knows its devices and how it learns; leave out --devices, --profile, --screen "
            "and --compile-regions, or start a new run with --out"
        )
    run = api.train_measured(
        out=verb.resume,
        resume=True,
        time_limit_s=verb.time_limit_s,
        plain=verb.plain,
        observer=_MeasuredDisplay(out, err),
        workers=verb.workers,
    )
    _show_run(out, run)
    return 0


def _check_measured(verb: verbs.Train) -> None:
    if verb.updates is not None:
        raise InputError("a training on measured time is limited by --time-limit-s, not by --updates")
    if verb.topology is not None:
        raise InputError("a training on measured time runs on devices of this machine; leave out --topology")
    if verb.preset != "default":
        raise InputError("a training on measured time has the preset default alone; leave out --preset")


class _MeasuredDisplay(HeadingDisplay):
    """Shows a training on measured time: each heuristic, and then whatever is faster than all before."""

    _best_s = float("inf")

    def on_problem(self, problem: PlacementProblem) -> None:
        """Print what is placed."""
        super().on_problem(problem)
        self._problem = problem

    def on_measure(self, proposer: str, found: Measurement) -> None:
        """Print a measurement that says something new."""
        faster = not found.reason and found.step_time_s < self._best_s
        if faster:
            self._best_s = found.step_time_s
        if faster or proposer not in ("reinforce", "again") or found.reason:
            said = f"failed: {found.reason}" if found.reason else seconds(found.step_time_s, digits=4)
            assert isinstance(self._problem, MeasuredProblem)
            self.err.print(f"  {self._problem.measurer.count:>4} measured  {proposer:<24} {said}", soft_wrap=True)


def _show_run(out: Console, run: MeasuredRun) -> None:
    out.print()
    right = ("measured", "spread", "simulated")
    made = table("placer", *right, right=right)
    rows = sorted(run.rows[:-1], key=lambda row: row.step_time_s or float("inf"))
    for row in [run.rows[-1], *rows]:
        shown = "failed" if row.reason else seconds(row.step_time_s, digits=4)
        made.add_row(row.placer, shown, seconds(row.spread_s), seconds(row.simulated_s, digits=4))
    out.print(made)
    out.print()
    _show_beside(out, run.beside)
    _show_answer(out, run)
    out.print()
    out.print(
        f"{run.measured:,} placements run, {run.failures:,} of them failed; {run.updates:,} updates of the policy",
        style="dim",
    )
    if run.interrupted:
        out.print("Stopped before the limit; the best placement so far is kept.", style="yellow")
    if run.run_dir is not None:
        out.print(f"placement   {run.run_dir}/{directory.PLACEMENT}", soft_wrap=True)
        if run.result is not run.split:
            out.print(f"best split  {run.run_dir}/{directory.SPLIT}", soft_wrap=True)
        elif run.beside.one_device is not None:
            out.print(f"one device  {run.run_dir}/{directory.ONE_DEVICE}", soft_wrap=True)
        out.print(f"run it      placement run {run.run_dir}", soft_wrap=True)
        out.print(f"go on       placement train --resume {run.run_dir} --time-limit-s 60", soft_wrap=True)


def _show_answer(out: Console, run: MeasuredRun) -> None:
    """What was taken home, and what that is worth."""
    one = run.beside.one_device
    what = "The placement"
    if one is not None:
        ratio = run.split.step_time_s / one.step_time_s
        device = one.cluster.devices[0]
        if run.result is run.split:
            out.print(f"The placement takes {ratio:.2f} of the time of one device {device}.", soft_wrap=True)
        else:
            what = f"One device {device}"
            out.print(
                f"The best split takes {ratio:.2f} times as long as one device of all cores: the answer is {device}.",
                style="yellow",
                soft_wrap=True,
            )
    _show_verdict(out, run.beside, what, run.result.step_time_s)
