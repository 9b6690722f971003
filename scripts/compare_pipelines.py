"""Pipelines of every placer on some models and clusters: fills a page of docs, and a JSON file with every row.

They are `docs/results/pipelines.md` and `docs/data/pipelines.json`; another --out has its own JSON file next to it.

    python scripts/compare_pipelines.py [--graphs bert,resnet50] [--clusters a100x4] [--orders 1f1b,zb_h1]
                                        [--time-limit-s 1] [--seed 0] [--out FILE.md] [--report]

The JSON file is written after every row; started again, the script makes only what is missing. --report writes the page
from the rows there are. A row's search and its twin with uniform moves have the same seconds on the same core, one
after the other, and start from the same opponents.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone runs without being installed

from envs.clusters.catalog import DEVICE_SPECS, load_cluster
from envs.clusters.cluster import Cluster, Device, Link
from envs.pipelines.bound import lower_bound_s
from graphs.errors import InputError, NoFeasiblePlacementError
from graphs.files import write_atomically
from placement.placers.pipeline_stages import heuristics
from placement.placers.replicated_stages import with_replicas
from placement.placers.stage_search import search
from placement.runs.pipeline import Step
from placement.text import seconds

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "pipelines.md"
ROWS = ROOT / "docs" / "data" / "pipelines.json"

GRAPHS = {
    "transformer_lm": "transformer_lm:batch=32",
    "transformer_lm, 24 layers": "transformer_lm:layers=24,batch=32",
    "bert": "bert:batch=64",
    "inception_v3": "inception_v3:batch=64",
    "resnet50": "resnet50:batch=64",
    "U-Net": "python:scripts.pipeline_models:unet",
    "T5": "python:scripts.pipeline_models:t5",
}
"""What is cut, by the name in the table."""

CLUSTERS = ("a100x4", "v100x8", "mixed", "two_hosts", "unequal_hosts")
ORDERS = ("1f1b", "zb_h1", "list")
MICRO_BATCHES = 8

ENOUGH = {"1f1b": 0.08, "zb_h1": 0.12, "list": 0.12}
"""What a search should save over the opponents of the same order."""

SAME_KIND = ("pipedream", "max_load", "equal_segments", "equal_parameters")
REPLICATED = ("data_parallel", "replicated_pipelines", "pipedream_replicas")


class Row(msgspec.Struct, frozen=True):
    """One graph on one cluster under one order.

    Attributes:
        graph: A key of `GRAPHS`.
        cluster: Its name.
        order: Of `envs.pipelines.orders.ORDERS`.
        segments: What it was cut into.
        search_s: Step time of the stages that the search found; None where none fit, or nothing can be cut.
        uniform_s: Of the search with uniform moves.
        opponents: Step times of what fits, by placer.
        bound_s: What no pipeline is below under this order.
        note: Why there is no step time of the search.
    """

    graph: str
    cluster: str
    order: str
    segments: int
    search_s: float | None
    uniform_s: float | None
    opponents: dict[str, float]
    bound_s: float | None
    note: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells a row from all others."""
        return self.graph, self.cluster, self.order

    def best(self, names: Sequence[str]) -> tuple[str, float] | None:
        """The fastest of some opponents."""
        there = {name: self.opponents[name] for name in names if name in self.opponents}
        return min(there.items(), key=lambda item: item[1], default=None)

    @property
    def room(self) -> float | None:
        """What of the fastest opponent of one device a stage could be saved at most."""
        best = self.best(SAME_KIND)
        return None if best is None or self.bound_s is None else 1 - self.bound_s / best[1]


class Rows(msgspec.Struct, frozen=True):
    """The content of the JSON file."""

    time_limit_s: float
    seed: int
    micro_batches: int = MICRO_BATCHES
    rows: tuple[Row, ...] = ()


def unequal_hosts() -> Cluster:
    """Four V100 in one host and four P100 in the other, over 25-gigabit Ethernet."""
    fast, slow = load_cluster("two_hosts"), DEVICE_SPECS["p100"]
    devices = tuple(
        Device(device.name, slow) if device.name in ("gpu:4", "gpu:5", "gpu:6", "gpu:7") else device
        for device in fast.devices
    )
    return Cluster(
        name="unequal_hosts",
        devices=devices,
        links=tuple(Link(link.a, link.b, link.bytes_per_s, link.latency_s) for link in fast.links),
        switches=fast.switches,
        source="Made up: two_hosts, with P100 in place of the second host's V100.",
    )


def measure(step: Step, graph: str, cluster: Cluster, order: str, time_limit_s: float, seed: int) -> Row:
    """One row."""
    segments = step.segments(MICRO_BATCHES)
    replicated = with_replicas(segments, lambda parts: step.parts(parts, 1), order)
    there = {name: one.step_time_s for name, one in replicated.items() if one.feasible}
    if segments.num_segments == 1:
        note = "cannot be cut: values skip over all modules"
        return Row(graph, cluster.name, order, 1, None, None, there, lower_bound_s(segments, order), note)
    starts = heuristics(segments, order)
    there |= {name: one.step_time_s for name, one in starts.items() if one.feasible}
    found: list[float | None] = []
    note = ""
    for learn in (True, False):
        try:
            placed = search(
                segments,
                order,
                seed=seed,
                time_limit_s=time_limit_s,
                evaluations=10**9,
                learn=learn,
                starts=starts,
                clock=time.process_time,
            )
            found.append(placed.step_time_s)
        except NoFeasiblePlacementError:
            found.append(None)
            note = "no stages fit"
    bound_s = lower_bound_s(segments, order)
    return Row(graph, cluster.name, order, segments.num_segments, found[0], found[1], there, bound_s, note)


def report(content: Rows, command: str) -> str:
    """The page."""
    lines = [
        "# Pipelines",
        "",
        "Simulated step times of stages for PyTorch's pipeline schedules, made by",
        "",
        "```",
        command,
        "```",
        "",
        f"Every step is cut into {content.micro_batches} micro-batches and captured at that size; time and memory are "
        "those of strict lists of whole actions ([Pipelines](../guide/pipelines.md)). "
        f"The search and the one with uniform moves have {content.time_limit_s:g} s of one core each.",
        "",
        "- *Opponent* is the fastest of PipeDream's dynamic programme, that of Tarnawski et al. for the largest load, "
        "equal segments and equal parameters, under the same order and memory. Each has its best number of stages and, "
        "where devices are unlike, its best order of them, all of them simulated: more than these placers do by "
        "themselves. Under `list`, where the search makes lists and may give a device several stages, they get the "
        "best of made lists and all orders.",
        "- *Room* is what nobody can save more of: how far the bound is below the opponent. *Bound* is a step time "
        "that no pipeline of these segments is below under this order, with any cuts and devices "
        "(`envs.pipelines.bound` has the proof); memory and most transfers are left out of it.",
        "- *Data parallel*: the whole model on several devices, in as many or fewer micro-batches. *Replicated*: the "
        "better of equal pipelines side by side and PipeDream's programme with replication; PyTorch's pipelines do not "
        "run these by themselves.",
        "",
        "Every row is in [pipelines.json](../data/pipelines.json). What the simulated times are worth on a machine is "
        "in [Does the simulator predict the machine?](fidelity.md#pipelines).",
        "",
    ]
    for order in dict.fromkeys(row.order for row in content.rows):
        rows = [row for row in content.rows if row.order == order]
        lines += [f"## Order {order}", "", *summary(order, rows), "", *_against(order, rows), "", *_table(rows), ""]
    return "\n".join(lines)


def summary(order: str, rows: Sequence[Row]) -> list[str]:
    """What the rows of one order come to, a sentence a line."""
    fit = [(row, row.search_s) for row in rows if row.search_s is not None]
    cut = [(row, search_s, best[1]) for row, search_s in fit if (best := row.best(SAME_KIND)) is not None]
    if not cut:
        return ["Nothing can be cut here."]
    enough = ENOUGH.get(order, 0.08)
    saved = [1 - search_s / other_s for _, search_s, other_s in cut]
    reached = sum(share >= enough for share in saved)
    room = [row.room for row, _, _ in cut if row.room is not None]
    could = sum(share >= enough for share in room)
    better = [row for row, search_s, _ in cut if (best := row.best(REPLICATED)) and best[1] < search_s]
    parallel = [row for row, search_s, _ in cut if row.opponents.get("data_parallel", search_s) < search_s]
    ratios = [row.uniform_s / search_s - 1 for row, search_s, _ in cut if row.uniform_s is not None]
    worse = sum(share < 0 for share in saved)
    return [
        f"{len(cut)} of {len(rows)} cells can be cut and fit. In {worse or 'none'} of them the search is worse than "
        f"the best opponent of one device a stage; it saves {statistics.median(saved):.1%} at the median and "
        f"{max(saved):.0%} at most.",
        f"It saves at least {enough:.0%} in {reached} cells. In {len(room) - could} the bound proves that nothing can: "
        f"the opponent is within {enough:.0%} of it. In the other {could} the bound leaves room for it.",
        f"Data parallelism is faster than the search's stages in {len(parallel)} cells, and some opponent with several "
        f"devices a stage in {len(better)}: a pipeline is for models that do not fit, or links that are slow.",
        f"Uniform moves in place of learned ones take {statistics.mean(ratios):+.2%} on average, from "
        f"{min(ratios):+.2%} to {max(ratios):+.2%}.",
    ]


def _against(order: str, rows: Sequence[Row]) -> list[str]:
    """How often the search is better than each opponent."""
    enough = ENOUGH.get(order, 0.08)
    heads = ["opponent", "devices a stage", "cells", "saved, median", "search slower", f"saves {enough:.0%} or more"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name in (*SAME_KIND, *REPLICATED):
        saved = [1 - row.search_s / row.opponents[name] for row in rows if row.search_s and name in row.opponents]
        if saved:
            slower, reached = sum(share < 0 for share in saved), sum(share >= enough for share in saved)
            one = "one" if name in SAME_KIND else "several"
            lines.append(f"| {name} | {one} | {len(saved)} | {statistics.median(saved):.1%} | {slower} | {reached} |")
    return lines


def _table(rows: Sequence[Row]) -> list[str]:
    heads = ["graph", "cluster", "segments", "search", "uniform moves", "opponent", "saved", "room", "bound"]
    heads += ["data parallel", "replicated"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        best, many = row.best(SAME_KIND), row.best(REPLICATED[1:])
        saved = f"{1 - row.search_s / best[1]:.1%}" if best and row.search_s is not None else ""
        more = (
            f"{row.uniform_s / row.search_s - 1:+.2%}" if row.search_s is not None and row.uniform_s is not None else ""
        )
        cells = [
            row.graph,
            row.cluster,
            str(row.segments),
            row.note if row.search_s is None else seconds(row.search_s),
            more,
            f"{seconds(best[1])} ({best[0]})" if best else "",
            saved,
            f"{row.room:.1%}" if row.room is not None else "",
            seconds(row.bound_s) if row.bound_s is not None else "",
            seconds(row.opponents["data_parallel"]) if "data_parallel" in row.opponents else "does not fit",
            f"{seconds(many[1])} ({many[0]})" if many else "does not fit",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", default=None, help=f"of {', '.join(GRAPHS)}; separated by semicolons")
    parser.add_argument("--clusters", default=",".join(CLUSTERS), help="with commas between: %(default)s")
    parser.add_argument("--orders", default=",".join(ORDERS), help="with commas between: %(default)s")
    parser.add_argument(
        "--time-limit-s", type=float, default=1.0, help="seconds of a core for each search: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the searches: %(default)s")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page: %(default)s")
    parser.add_argument("--report", action="store_true", help="write the page from the rows there are")
    asked = parser.parse_args(args)
    file = ROWS if asked.out == PAGE else asked.out.with_suffix(".json")
    content = Rows(asked.time_limit_s, asked.seed)
    if file.exists():
        content = msgspec.json.decode(file.read_bytes(), type=Rows)
        if (content.time_limit_s, content.seed) != (asked.time_limit_s, asked.seed) and not asked.report:
            print(f"compare_pipelines: '{file}' has rows of another budget; remove it, or give --out", file=sys.stderr)
            return 2
    done = {row.key for row in content.rows}
    graphs = list(GRAPHS) if asked.graphs is None else asked.graphs.split(";")
    for graph in [] if asked.report else graphs:
        for name in asked.clusters.split(","):
            cluster = unequal_hosts() if name == "unequal_hosts" else load_cluster(name)
            step = Step(GRAPHS.get(graph, graph), cluster)
            for order in asked.orders.split(","):
                if (graph, cluster.name, order) in done:
                    continue
                try:
                    row = measure(step, graph, cluster, order, asked.time_limit_s, asked.seed)
                except InputError as error:
                    print(f"compare_pipelines: {error}", file=sys.stderr)
                    return 2
                content = msgspec.structs.replace(content, rows=(*content.rows, row))
                write_atomically(file, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
                print(f"{graph} on {cluster.name}, {order}: {row.search_s}", flush=True)
    command = f"python scripts/compare_pipelines.py --time-limit-s {content.time_limit_s:g} --seed {content.seed}"
    write_atomically(asked.out, report(content, command).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
