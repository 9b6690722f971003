"""What a learned placement gains on real cores: its step time against plain PyTorch, one core, expert and heuristics.

    python scripts/fidelity.py                 # profiles the workloads
    python scripts/measured_gain.py --json docs/data/measured_gain.json

For each workload a placement is learned as `placement train --measured --screen` does, on the profiled graph. Then it,
one core, all cores as one device, the expert's placement, the best heuristic's and plain eager PyTorch with a thread a
core are run five times each, in turn; and `torch.compile` with as many threads, five runs in one process. With
``--compile-regions`` the learned placement and one device are run with compiled regions, too. The answer is the fastest
of what a training takes home: the learned placement, or one device. What was measured is kept in the ``--out`` folder
and not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from envs.measured.machine import RealDevice, as_one
from envs.measured.problem import MeasuredProblem, interquartile_mean, measured
from envs.measured.process import MeasuringProcess, measure_plain
from envs.measured.protocol import Failed, Measured, Protocol
from graphs.errors import InputError, NoFeasiblePlacementError
from graphs.files import write_atomically
from placement.results.placement_file import check_placement
from placement.runs.measured import MeasuredRun, train_measured
from placement.runs.plain import COMPILE_LIMIT_S, COMPILED, EAGER, plain_device
from placement.runs.training import compare_others
from placement.text import seconds, table
from scripts.fidelity import Workload, folder_name
from scripts.fidelity_study.workloads import WORKLOADS

ONE_CORE, LEARNED, ALONE = "one core", "learned", "one device"
_REGIONS = "regions compiled"
_RUNS, _LIMIT_S = 5, 60.0
_HOW = Protocol()


class GainRow(msgspec.Struct):
    """One placement, or way to run without one: its name, what is predicted, each run's step time in s, or why none."""

    placer: str
    simulated_s: float | None
    runs_s: list[float]
    reason: str = ""

    @property
    def median_s(self) -> float:
        """Over the runs."""
        return float(np.median(self.runs_s))


class Gain(msgspec.Struct):
    """The rows of a workload."""

    graph: str
    devices: list[str]
    rows: list[GainRow]

    @property
    def answer(self) -> GainRow:
        """The fastest of what a training takes home."""
        ours = [row for row in self.rows if row.runs_s and row.placer.startswith((LEARNED, ALONE))]
        return min(ours, key=lambda row: row.median_s)

    @property
    def plain(self) -> GainRow | None:
        """The faster of eager and compiled plain PyTorch."""
        plain = [row for row in self.rows if row.runs_s and row.placer.startswith((EAGER, COMPILED))]
        return min(plain, key=lambda row: row.median_s, default=None)


def main() -> int:
    """Learn and measure what is missing, and report."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--workloads", nargs="+", default=["inception_v3", "nmt", "rnnlm", "moe_lm"])
    parser.add_argument("--devices", default="cpu:0,cpu:1")
    parser.add_argument("--profiles", type=Path, default=Path("runs/fidelity"), help="--out of scripts/fidelity.py")
    parser.add_argument("--time-limit-s", type=float, default=60.0, help="of learning, for each workload")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--compile-regions", action="store_true", help="compile our regions, too, which takes minutes")
    parser.add_argument("--out", type=Path, default=Path("runs/measured_gain"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    gains = []
    for name in args.workloads:
        path = args.out / f"{folder_name(name)}.json"
        if not path.exists():
            profile = Workload(
                name, WORKLOADS.get(name, name), args.devices, args.profiles / folder_name(name), args.seed
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(
                path,
                _json(
                    measure_gain(
                        profile,
                        args.time_limit_s,
                        args.seed,
                        compiles=not args.no_compile,
                        compile_regions=args.compile_regions,
                    )
                ),
            )
        gains.append(msgspec.json.decode(path.read_bytes(), type=Gain))
    _show(gains)
    if args.json is not None:
        write_atomically(args.json, _json({"workloads": gains}))
    return 0


def _json(content: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def measure_gain(
    profile: Workload, time_limit_s: float, seed: int, *, compiles: bool, compile_regions: bool = False
) -> Gain:
    """Learn, then run the learned placement and the others in turn."""
    if not (profile.folder / "cluster.yaml").exists():
        raise InputError(f"there is no profile in '{profile.folder}'; run scripts/fidelity.py first")
    with measured(
        profile.problem, profile.source, profile.devices, how=_HOW, compile_regions=compile_regions
    ) as problem:
        run = train_measured(
            problem, time_limit_s=time_limit_s, seed=seed, screen=True, compile_regions=compile_regions
        )
        chosen = _chosen(problem, run, time_limit_s, seed)
        simulated_s = {
            name: float(problem.simulated.evaluate_ops(ops[None]).step_time_s[0]) for name, ops in chosen.items()
        }
        process = problem.measurer.process
        ways = {name: partial(_run_placed, process, ops, problem.schedule) for name, ops in chosen.items()}
        if compile_regions:
            ways[f"{LEARNED}, {_REGIONS}"] = partial(_run_placed, process, chosen[LEARNED], problem.schedule, True)
        devices = process.devices
        wide = as_one(devices)
        with contextlib.ExitStack() as held:
            if wide is not None and len(devices) > 1:
                alone = MeasuringProcess(
                    profile.source,
                    problem.graph.untimed.sha256,
                    (wide,),
                    problem.simulator_input.remaining_path_s,
                    compile_regions=compile_regions,
                )
                held.enter_context(alone)
                everywhere = np.zeros(problem.graph.num_ops, dtype=np.int32)
                name = f"{ALONE} {wide.name}"
                ways[name] = partial(_run_placed, alone, everywhere, problem.schedule)
                if compile_regions:
                    ways[f"{name}, {_REGIONS}"] = partial(_run_placed, alone, everywhere, problem.schedule, True)
            plain = plain_device(devices)
            ways[f"{EAGER}, {_threads(plain)}"] = partial(_run_plain, profile.source, plain)
            rows = {name: GainRow(name, simulated_s.get(name), []) for name in ways}
            for _ in range(_RUNS):
                for name, run_once in ways.items():
                    rows[name].runs_s.append(run_once())
    found = list(rows.values())
    if compiles:
        found.append(_compiled(profile.source, plain))
    return Gain(profile.name, profile.devices.split(","), found)


def _threads(device: RealDevice) -> str:
    return f"{len(device.cores)} threads" if device.kind == "cpu" else device.name


def _run_placed(
    process: MeasuringProcess, ops: NDArray[np.integer], schedule: str, compile_regions: bool = False
) -> float:
    """Seconds of a step under a placement: the interquartile mean of a run."""
    return _mean_s(
        process.measure(ops, schedule=schedule, time_limit_s=_LIMIT_S, how=_HOW, compile_regions=compile_regions)
    )


def _run_plain(source: str, device: RealDevice) -> float:
    """The same of plain PyTorch."""
    return _mean_s(measure_plain(source, device, is_compiled=False, time_limit_s=_LIMIT_S, how=_HOW))


def _mean_s(reply: Measured | Failed) -> float:
    if isinstance(reply, Failed):
        raise NoFeasiblePlacementError(f"a step cannot be run: {reply.reason}")
    return interquartile_mean(tuple(reply.step_times_s))


def _compiled(source: str, device: RealDevice) -> GainRow:
    """`torch.compile`: it compiles once, and five runs follow each other."""
    how = Protocol(steps=_RUNS * _HOW.steps, short_steps=_RUNS * _HOW.short_steps, least_steps=_RUNS)
    reply = measure_plain(source, device, is_compiled=True, time_limit_s=COMPILE_LIMIT_S, how=how)
    name = f"{COMPILED}, {_threads(device)}"
    if isinstance(reply, Failed):
        return GainRow(name, None, [], reply.reason)
    runs = np.array_split(np.array(reply.step_times_s), _RUNS)
    return GainRow(name, None, [interquartile_mean(tuple(each.tolist())) for each in runs])


def _chosen(
    problem: MeasuredProblem, run: MeasuredRun, time_limit_s: float, seed: int
) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int32]]]:
    """The placements of ops to run, by the name of their row."""
    others = compare_others(problem.simulated, seed=seed, time_limit_s=time_limit_s)
    made = {row.placer: problem.to_ops(row.placement) for row in others.rows if row.placement is not None}
    ranked = sorted((r.step_time_s, r.placer) for r in run.rows[:-1] if r.step_time_s is not None)
    best = next(n for _, n in ranked if n in made and n != "expert" and not n.startswith("single_device"))
    alone = next(name for name in made if name.startswith("single_device"))
    chosen = {ONE_CORE: made[alone]}
    if "expert" in made:
        chosen["expert"] = made["expert"]
    chosen[f"best heuristic ({best})"] = made[best]
    chosen[LEARNED] = check_placement(run.split, problem.graph, problem.cluster)
    return chosen


def _show(gains: list[Gain]) -> None:
    right = ("measured", "from", "to", "x learned", "simulated")
    made = table("graph", "placement", *right, right=right)
    for gain in gains:
        learned_s = next(row.median_s for row in gain.rows if row.placer == LEARNED)
        for row in gain.rows:
            if not row.runs_s:
                made.add_row(gain.graph, row.placer, f"failed: {row.reason[:60]}", "", "", "", "")
                continue
            made.add_row(
                gain.graph,
                row.placer,
                seconds(row.median_s, digits=4),
                seconds(min(row.runs_s), digits=4),
                seconds(max(row.runs_s), digits=4),
                f"{row.median_s / learned_s:.2f}",
                seconds(row.simulated_s, digits=4),
            )
    console = Console(width=140)
    console.print(made)
    for gain in gains:
        answer, plain = gain.answer, gain.plain
        said = f"{gain.graph}: the answer is {answer.placer}, {seconds(answer.median_s, digits=4)}"
        if plain is not None:
            said += f", {answer.median_s / plain.median_s:.2f} of the time of {plain.placer}"
        console.print(said, soft_wrap=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (InputError, NoFeasiblePlacementError) as error:
        print(f"measured_gain: {error}", file=sys.stderr)
        sys.exit(2)
