"""What `scripts/fidelity.py` measured, against what models say: errors, rank correlations, and a picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from envs.measured.problem import interquartile_mean
from envs.measured.profile import AGREE, MOST_RUNS, Observation
from envs.problem import PlacementProblem
from placement.learning.screening import with_op_times

Floats = NDArray[np.float64]

COLOURS = {
    "random": "#999999",
    "blocks": "#e1812c",
    "heuristic": "#4c78a8",
    "near learned": "#8cc9a1",
    "learned": "#2a9d55",
}


@dataclass
class Measurements:
    """Placements and what their steps came to; NaN where not measured yet.

    Attributes:
        op_device: ``int8[P, N]``.
        kind: ``str[P]``, how each was found.
        runs_s: ``float64[P, MOST_RUNS]``: of each run the interquartile mean of its steps.
        op_s: ``float32[P, N]``, mean seconds of each op in the fastest run; so are the following.
        copies: ``float64[P, D, 3]``: of the copies that a device received number, bytes and seconds.
        pauses: ``float64[P, D]``, mean seconds of dispatch between tasks.
    """

    op_device: NDArray[np.int8]
    kind: NDArray[np.str_]
    runs_s: Floats
    op_s: NDArray[np.float32]
    copies: Floats
    pauses: Floats

    @classmethod
    def empty(cls, op_device: NDArray[np.int8], kind: NDArray[np.str_], num_devices: int) -> Measurements:
        """Placements that were not measured."""
        count, num_ops = op_device.shape
        return cls(
            op_device,
            kind,
            np.full((count, MOST_RUNS), np.nan),
            np.full((count, num_ops), np.nan, dtype=np.float32),
            np.full((count, num_devices, 3), np.nan),
            np.full((count, num_devices), np.nan),
        )

    @property
    def two_fastest_s(self) -> Floats:
        """``float64[P, 2]``, NaN where there are not so many."""
        return np.sort(self.runs_s, axis=1)[:, :2]

    @property
    def step_s(self) -> Floats:
        """``float64[P]``: the mean of the two fastest runs, for what disturbs a machine only slows it."""
        return self.two_fastest_s.mean(axis=1)

    @property
    def wanting(self) -> NDArray[np.int64]:
        """The placements that must be run (again), those with the fewest runs first."""
        first, second = self.two_fastest_s.T
        runs = (~np.isnan(self.runs_s)).sum(axis=1)
        wanted = np.flatnonzero(~(second <= first * (1 + AGREE)) & (runs < MOST_RUNS))
        return wanted[np.argsort(runs[wanted], kind="stable")]

    def note(self, row: int, each: Observation) -> None:
        """Keep what matters of an observation."""
        step_s = interquartile_mean(tuple(each.step_times_s.tolist()))
        runs = self.runs_s[row]
        runs[np.flatnonzero(np.isnan(runs))[0]] = step_s
        if step_s > np.nanmin(runs):
            return
        mean_s = each.seconds.mean(axis=0)
        self.op_s[row] = mean_s[: each.num_ops]
        for device in range(self.copies.shape[1]):
            mine = each.copies[:, 2] == device
            received_s = mean_s[each.num_ops :][mine]
            self.copies[row, device] = mine.sum(), each.copies[mine, 3].sum(), received_s.sum()
            pauses = each.pauses_s(device)[1]
            short = pauses[pauses < 5e-5]
            self.pauses[row, device] = short.mean() if short.size else 0.0


@dataclass(frozen=True)
class Fit:
    """How well predictions and measurements agree; errors are relative to the measured step time."""

    predicted_s: Floats
    median_error: float
    p95_error: float
    bias: float
    spearman: float
    kendall: float


@dataclass(frozen=True)
class Row:
    """A workload: its placements' measured step times, and the fit of each model by name.

    Attributes:
        graph: The workload.
        devices: Names.
        kind: ``str[P]``.
        measured_s: ``float64[P]``.
        fits: By model.
        repeat_error: Median relative difference of the two runs that count.
        repeat_spearman: Rank correlation of each placement's first run with its second: more than that no prediction
            of a single run could reach.
        copies_share: Median over placements of the share of the devices' time in which they copy.
        dispatch_share: The same of dispatch.
        load_error: Median over placements of how far the sum of the op times is from the profile's, relative.
    """

    graph: str
    devices: str
    kind: NDArray[np.str_]
    measured_s: Floats
    fits: dict[str, Fit]
    repeat_error: float
    repeat_spearman: float
    copies_share: float
    dispatch_share: float
    load_error: float

    def record(self, model: str) -> dict[str, object]:
        """The row of the JSON file."""
        fit = self.fits[model]
        return {
            "graph": self.graph,
            "devices": self.devices.split(","),
            "placements": len(self.measured_s),
            "median_error": fit.median_error,
            "p95_error": fit.p95_error,
            "spearman": fit.spearman,
            "kendall": fit.kendall,
        }


def fit_of(predicted_s: Floats, measured_s: Floats) -> Fit:
    """Compare predictions with measurements."""
    from scipy.stats import kendalltau, spearmanr  # slow to load

    error = predicted_s / measured_s - 1
    return Fit(
        predicted_s,
        float(np.median(np.abs(error))),
        float(np.percentile(np.abs(error), 95)),
        float(np.median(error)),
        float(spearmanr(predicted_s, measured_s).statistic),
        float(kendalltau(predicted_s, measured_s).statistic),
    )


def row_of(graph: str, devices: str, problem: PlacementProblem, found: Measurements) -> Row:
    """What the models say of what was measured.

    ``link`` lets copies overlap; ``receiver`` is the simulator, in which they take the receiver's time where the links
    of the profile say so; ``own ops`` has instead the op times of the very steps that are predicted, so that what is
    left of the error comes from order, waiting and copies.
    """
    from scipy.stats import spearmanr

    places, measured_s = found.op_device.astype(np.int32), found.step_s
    links = tuple(replace(link, receiver_copies=False) for link in problem.cluster.links)
    overlapping = replace(problem, cluster=replace(problem.cluster, links=links))
    link = overlapping.evaluate_ops(places).step_time_s
    receiver = problem.evaluate_ops(places).step_time_s
    own = []
    specs = len(problem.simulator_input.op_time_s)
    for place, op_s, pauses in zip(places, found.op_s, found.pauses, strict=True):
        own_s = np.where(np.isnan(op_s), 0.0, op_s + pauses[place])
        of_its_own = with_op_times(problem, np.tile(own_s, (specs, 1)))
        own.append(float(of_its_own.evaluate_ops(place[None]).step_time_s[0]))
    fits = {"link": link, "receiver": receiver, "own ops": np.array(own)}
    times = problem.op_time_s[places, np.arange(places.shape[1])]  # [P, N]
    runs = ~np.isnan(found.op_s)  # bool[P, N]
    pauses = np.take_along_axis(found.pauses, places, axis=1)
    load_s = np.where(runs, found.op_s + pauses, 0.0).sum(axis=1)
    device_s = measured_s * problem.num_devices
    first, second = found.two_fastest_s.T
    return Row(
        graph,
        devices,
        found.kind,
        measured_s,
        {name: fit_of(predicted, measured_s) for name, predicted in fits.items()},
        float(np.median(second / first - 1)),
        float(spearmanr(found.runs_s[:, 0], found.runs_s[:, 1]).statistic),
        float(np.median(found.copies[:, :, 2].sum(axis=1) / device_s)),
        float(np.median(np.where(runs, pauses, 0.0).sum(axis=1) / device_s)),
        float(np.median(np.abs(load_s / times.sum(axis=1) - 1))),
    )


def plot_rows(rows: list[Row], path: Path) -> None:
    """Draw measured against simulated, a panel for each workload and model."""
    figure = Figure(figsize=(3.1 * len(rows), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(rows), squeeze=False)
    for column, row in enumerate(rows):
        for line, (model, title) in enumerate([("link", "copies overlap"), ("receiver", "copies by the receiver")]):
            axes, fit = panels[line][column], row.fits[model]
            both = 1e3 * np.concatenate([fit.predicted_s, row.measured_s])
            ends = [both.min() * 0.95, both.max() * 1.05]
            axes.plot(ends, ends, color="#bbbbbb", linewidth=1, zorder=0)
            for kind, colour in COLOURS.items():
                mine = row.kind == kind
                axes.scatter(
                    1e3 * row.measured_s[mine], 1e3 * fit.predicted_s[mine], s=12, color=colour, label=kind, alpha=0.85
                )
            axes.set_title(
                f"{row.graph}, {title}\nmedian error {fit.median_error:.1%}, Spearman {fit.spearman:.3f}", fontsize=8
            )
            axes.set_xlim(*ends)
            axes.set_ylim(*ends)
            axes.tick_params(labelsize=7)
            if column == 0:
                axes.set_ylabel("simulated step, ms", fontsize=8)
            if line == 1:
                axes.set_xlabel("measured step, ms", fontsize=8)
    panels[0][0].legend(fontsize=6, loc="upper left")
    figure.savefig(path, dpi=110)
