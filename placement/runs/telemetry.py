"""What training writes for TensorBoard.

| tag | what it shows |
|---|---|
| `step_time/best_s` | step time of the best feasible placement so far |
| `step_time/mean_s` | mean step time of this update's feasible samples |
| `step_time/greedy_s` | step time of the policy's likeliest device at every step; absent while infeasible |
| `step_time/other_s` | step time of the best other placer, at every update, for comparison |
| `step_time/lower_bound_s` | what no placement can beat |
| `policy/loss` | the loss of the update |
| `policy/entropy` | mean entropy of a group's device, in nats: log of the number of devices at first, 0 when decided |
| `policy/advantage_std` | spread of the advantages before they are normalised |
| `policy/grad_norm` | norm of the gradient before it is clipped |
| `baseline/value` | REINFORCE's baseline, in units of the reward |
| `rollout/infeasible_rate` | share of this update's samples that exceed a device's memory |
| `search/mean_s` | what the chains' placements cost now, mean over the chains: rises and falls with the temperature |
| `search/acceptance` | share of the moves so far that were accepted |
| `search/weight/<feature>` | what the chains have learned so far about which moves pay (`placement.move_search`) |
| `device/<name>/busy` | share of the step in which the device computes, in the best placement so far |
| `device/<name>/peak_memory_bytes` | its peak memory there |
| `device/<name>/memory_share` | the same as a share of the device's memory |
| `time/placements_per_s` | placements evaluated a second since training began, heuristics and search included |
| `trace/best` | the trace of the best placement so far, as an image; where the extra `plots` is installed |

The step of every value is the number of the update; a resumed run goes on where its checkpoint stood, and values that
the interrupted run had written past it are dropped.

The tab Custom Scalars shows what belongs together in one chart each (`LAYOUT`), and the tab HParams compares runs of
other presets, seeds and clusters by their best step time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from envs.problem import PlacementProblem
from graphs.extras import is_installed
from placement.learning.stats import UpdateStats
from placement.results.trace_plot import trace_image

STEP_TAGS = {
    "step_time/best_s": "best_s",
    "step_time/mean_s": "mean_s",
    "step_time/greedy_s": "greedy_s",
    "policy/loss": "loss",
    "policy/entropy": "entropy",
    "policy/advantage_std": "advantage_std",
    "policy/grad_norm": "grad_norm",
    "baseline/value": "baseline",
    "rollout/infeasible_rate": "infeasible_rate",
    "search/mean_s": "search_mean_s",
    "search/acceptance": "search_acceptance",
    "time/placements_per_s": "placements_per_s",
}
"""Tags that are written at every update, and the field of `UpdateStats` that each shows."""


LAYOUT = {
    "Step time": {"step time (s)": ["Multiline", [r"step_time/(best|mean|greedy|other|lower_bound)_s"]]},
    "Devices": {
        "busy (share of the step)": ["Multiline", [r"device/.+/busy"]],
        "memory (share of each device's)": ["Multiline", [r"device/.+/memory_share"]],
    },
    "Learning": {
        "entropy (nats)": ["Multiline", [r"policy/entropy"]],
        "loss": ["Multiline", [r"policy/loss"]],
        "what does not fit (share)": ["Multiline", [r"rollout/infeasible_rate"]],
    },
    "Search": {
        "what the chains' placements cost (s)": ["Multiline", [r"search/mean_s", r"step_time/best_s"]],
        "which moves pay (weights)": ["Multiline", [r"search/weight/.+"]],
    },
}
"""Charts by section, for the tab Custom Scalars: patterns of the tags that share one."""


class Telemetry:
    """Writes one run's TensorBoard events into its directory.

    Args:
        run_dir: The directory.
        first_update: The number of the next update.
        reference_s: Step times to compare with, by their tags, written at every update: `step_time/other_s` and
            `step_time/lower_bound_s`.
        settings: What tells the run from others, for the tab HParams; empty leaves the run out there.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        first_update: int,
        reference_s: Mapping[str, float] | None = None,
        settings: Mapping[str, str | int | float] | None = None,
    ) -> None:
        wait_for_a_later_name(run_dir)
        self._hook = threading.excepthook
        threading.excepthook = self._without_writer_errors
        try:
            # Events at or past `purge_step` are those of updates that are about to be run again.
            self._writer = SummaryWriter(str(run_dir), purge_step=first_update)
        except OSError:
            threading.excepthook = self._hook
            raise
        self._reference_s = {tag: value for tag, value in (reference_s or {}).items() if math.isfinite(value)}
        self._writer.add_custom_scalars(LAYOUT)
        self._end: Any = None
        if settings:
            experiment, begin, self._end = hparams(dict(settings), {"step_time/best_s": 0.0})
            events: Any = self._writer.file_writer
            for summary in (experiment, begin):
                events.add_summary(summary)

    def write_update(self, stats: UpdateStats) -> None:
        """One update's numbers; what is not finite (no feasible sample, say) is left out."""
        for tag, key in STEP_TAGS.items():
            value = getattr(stats, key)
            if math.isfinite(value):
                self._writer.add_scalar(tag, value, stats.update)
        for tag, value in self._reference_s.items():
            self._writer.add_scalar(tag, value, stats.update)
        for feature, weight in stats.search_weights.items():
            self._writer.add_scalar(f"search/weight/{feature}", weight, stats.update)

    def write_devices(self, problem: PlacementProblem, placement: NDArray[np.int64], update: int) -> None:
        """Busy share and peak memory of each device under the best placement so far, ``int64[G]``."""
        trace = problem.trace(placement)
        busy = trace.busy_s() / max(trace.step_time_s, 1e-300)
        for d, name in enumerate(problem.cluster.device_names):
            self._writer.add_scalar(f"device/{name}/busy", busy[d], update)
            self._writer.add_scalar(f"device/{name}/peak_memory_bytes", float(trace.peak_memory_bytes[d]), update)
            share = trace.peak_memory_bytes[d] / max(int(problem.cluster.memory_bytes[d]), 1)
            self._writer.add_scalar(f"device/{name}/memory_share", float(share), update)

    def write_trace(self, problem: PlacementProblem, placement: NDArray[np.int64], update: int) -> None:
        """A picture of the step under the best placement so far, ``int64[G]``; drawing it takes part of a second.

        Nothing is written where Matplotlib is not installed: the picture is all that a run without it lacks.
        """
        if not is_installed("matplotlib"):
            return
        image = trace_image(problem.trace(placement), problem.graph, problem.cluster)
        self._writer.add_image("trace/best", image, update, dataformats="HWC")

    def flush(self) -> None:
        """Hand all that is written to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        try:
            if self._end is not None:
                events: Any = self._writer.file_writer
                events.add_summary(self._end)
            self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _without_writer_errors(self, args: threading.ExceptHookArgs) -> None:
        """Let the thread that writes the events fail in silence: TensorBoard raises its error here, too, and once more.

        As it comes from the thread it would be shown as a traceback, for example where the disk is full.
        """
        from_writer = type(args.thread).__module__ == "tensorboard.summary.writer.event_file_writer"
        if not (from_writer and isinstance(args.exc_value, OSError)):
            self._hook(args)


def wait_for_a_later_name(run_dir: Path) -> None:
    """Wait, for a second at most, until a new file of events sorts behind those that a run before this one left.

    TensorBoard reads the files in the order of their names, which start with the whole second of their making; only
    so does it see what a resumed run takes back after what it takes back.
    """
    newest = max((path.name.split(".")[3] for path in run_dir.glob("events.out.tfevents.*")), default="")
    while newest.isdigit() and int(time.time()) == int(newest):
        time.sleep(0.02)
