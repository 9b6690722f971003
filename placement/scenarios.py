"""What if the batch, the number of devices or the links were others: one placement a cell, and the Pareto front.

Each cell is a problem of its own, placed by one placer under a budget of seconds. Cells that are done are kept in a
file, which is written whole after each, so that a table that was stopped goes on from there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from envs.clusters.catalog import load_cluster
from envs.clusters.cluster import Cluster
from envs.clusters.memories import without
from envs.make_problem import DEFAULT_GROUPS, make_problem
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError, NoFeasiblePlacementError
from graphs.files import SUFFIXES, encode_graph, write_atomically
from graphs.reading import decode_json, exists, read_file
from graphs.sources import load_graph, runs_code
from graphs.zoo import ZOO, parse
from placement.placers import PlacerInfo
from placement.placers.base import Budget
from placement.registry import get_placer
from placement.results.comparison import check_seed, compare_placers
from placement.runs.compile_ahead import compile_ahead
from placement.runs.row_jobs import LEAST_PATIENCE_S, PATIENCE
from placement.workers import Job, Workers, open_workers

MOST_CELLS = 1000
DEFAULT_CELL_S = 3.0
_REMEDY = "start anew with --restart, or give another file"


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One row of the table.

    Attributes:
        batch: Samples a step; None where the graph does not say.
        devices: Accelerators that could be used (of a cluster without any: devices).
        links: What every link's bandwidth was multiplied by.
        graph_sha256: Digest of the graph.
        step_time_s: Simulated seconds of the best placement that was found; None where none fits.
        peak_memory_share: Of the memory that is fullest, a device's or one that several share; None where none fits.
        tokens: Tokens a step, see `ComputationGraph.tokens`.
        note: Why nothing fits.
    """

    batch: int | None
    devices: int
    links: float
    graph_sha256: str
    step_time_s: float | None
    peak_memory_share: float | None
    tokens: int = 0
    note: str = ""

    @property
    def samples_per_s(self) -> float | None:
        """Throughput; steps a second where the batch is not known."""
        return None if not self.step_time_s else (self.batch or 1) / self.step_time_s

    @property
    def device_s_per_sample(self) -> float | None:
        """Seconds of all devices together for one sample; for one step where the batch is not known."""
        return None if self.step_time_s is None else self.devices * self.step_time_s / (self.batch or 1)


class WhatIf(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The cells that are done and how they were made; what the file holds."""

    format: Literal["device-placement-what-if"] = "device-placement-what-if"
    version: Literal[1] = 1
    graph: str
    cluster: str
    cluster_sha256: str
    schedule: str
    groups: int
    placer: str
    seed: int
    time_limit_s: float | None
    evaluations: int | None
    cells: tuple[Cell, ...] = ()

    def front(self) -> list[Cell]:
        """The cells that are best for someone; see `pareto_front`."""
        return pareto_front(self.cells)


_DECODER = msgspec.json.Decoder(WhatIf)


def pareto_front(cells: Sequence[Cell]) -> list[Cell]:
    """Cells that no other with the same links beats in throughput without costing more device-seconds a sample.

    Of cells that are equal in both the first counts.
    """
    front = []
    for i, cell in enumerate(cells):
        rate, cost = cell.samples_per_s, cell.device_s_per_sample
        if rate is None or cost is None:
            continue
        beaten = False
        for j, other in enumerate(cells):
            if i == j or other.links != cell.links:
                continue
            other_rate, other_cost = other.samples_per_s, other.device_s_per_sample
            if other_rate is None or other_cost is None or other_rate < rate or other_cost > cost:
                continue
            beaten = beaten or other_rate > rate or other_cost < cost or j < i
        if not beaten:
            front.append(cell)
    return front


def what_if(
    graph: str | ComputationGraph,
    cluster: str | Cluster,
    *,
    batches: Sequence[int] = (),
    devices: Sequence[int] = (),
    links: Sequence[float] = (1.0,),
    placer: str = "reinforce",
    time_limit_s: float | None = DEFAULT_CELL_S,
    evaluations: int | None = None,
    schedule: str = "priority",
    groups: int = DEFAULT_GROUPS,
    seed: int = 0,
    json: str | Path | None = None,
    restart: bool = False,
    workers: Workers | str | int | None = None,
    on_cell: Callable[[WhatIf], None] | None = None,
) -> WhatIf:
    """Place a graph for every batch, number of devices and speed of links.

    Args:
        graph: What names a graph; with `batches` one whose name takes a batch.
        cluster: A cluster, or what names one.
        batches: Batch sizes; none leaves the graph's own.
        devices: Numbers of accelerators, the first ones of the cluster; none takes all.
        links: Factors of every link's bandwidth.
        placer: A name in `placement.registry.PLACERS`; the learned one starts from the best of the heuristics.
        time_limit_s: Seconds of search a cell.
        evaluations: Placements that may be evaluated a cell.
        schedule: Which ready op a device runs first.
        groups: Wanted number of co-location groups.
        seed: Seeds the random numbers of each cell.
        json: A file for the cells, written whole after each; cells that it holds are not placed again.
        restart: Do not look at what is in that file.
        workers: Place cells at the same time: see `placement.workers.open_workers`; None places one after the other,
            each on all cores.
        on_cell: Called with all cells that are done after each of them, and at first where some were in the file.

    Raises:
        InputError: A value is out of range, the graph has no batch to set, or the file holds something else.
    """
    info = get_placer(placer)
    check_seed(seed)
    if info.searches and time_limit_s is None and evaluations is None:
        raise InputError(f"placer '{placer}' searches until it is stopped; give a time limit or evaluations")
    whole = load_cluster(cluster) if isinstance(cluster, str) else cluster
    counts = list(devices) or [len(_counted(whole))]
    smaller = {(count, factor): _changed(whole, count, factor) for count in counts for factor in links}
    sources: list[tuple[int | None, str | ComputationGraph]]
    sources = [(batch, _with_batch(graph, batch)) for batch in batches] or [(_batch_of(graph), graph)]
    if len(sources) * len(smaller) > MOST_CELLS:
        raise InputError(f"these are {len(sources) * len(smaller):,} cells; give at most {MOST_CELLS:,}")
    done = WhatIf(
        graph=graph if isinstance(graph, str) else graph.name,
        cluster=whole.name,
        cluster_sha256=whole.sha256,
        schedule=schedule,
        groups=groups,
        placer=placer,
        seed=seed,
        time_limit_s=time_limit_s,
        evaluations=evaluations,
    )
    path = None if json is None else Path(json)
    if path is not None and not restart:
        done = _resumed(path, done)
    if done.cells and on_cell is not None:
        on_cell(done)
    budget = Budget(time_limit_s=time_limit_s, evaluations=evaluations)

    def missing() -> Iterator[tuple[ComputationGraph, Cluster, Cell]]:
        """What is left to place; a graph is loaded when its first cell is asked for."""
        placed = {(c.batch, c.devices, c.links) for c in done.cells}
        digests = {(c.batch, c.graph_sha256) for c in done.cells}
        for batch, source in sources:
            keys = [key for key in smaller if (batch, *key) not in placed]
            if not keys:
                continue
            loaded = load_graph(source) if isinstance(source, str) else source
            if any(of == batch and sha256 != loaded.sha256 for of, sha256 in digests):
                raise InputError(f"'{path}' holds cells of another graph '{loaded.name}'; {_REMEDY}")
            for count, factor in keys:
                cell = Cell(
                    batch=batch,
                    devices=count,
                    links=factor,
                    graph_sha256=loaded.sha256,
                    step_time_s=None,
                    peak_memory_share=None,
                    tokens=loaded.tokens,
                )
                yield loaded, smaller[count, factor], cell

    how: dict[str, Any] = {"info": info, "budget": budget, "schedule": schedule, "groups": groups, "seed": seed}
    with contextlib.ExitStack() as opened:
        placed: Iterator[Cell]
        if workers is None:
            placed = (place_cell(loaded, cluster=there, cell=cell, **how) for loaded, there, cell in missing())
        else:
            held = opened.enter_context(open_workers(workers)) if isinstance(workers, str | int) else workers
            placed = _placed_by(held, missing(), how, time_limit_s)
        for cell in placed:
            done = msgspec.structs.replace(done, cells=(*done.cells, cell))
            if path is not None:
                write_atomically(path, msgspec.json.format(msgspec.json.encode(done), indent=1) + b"\n")
            if on_cell is not None:
                on_cell(done)
    wanted = {(batch, *key) for batch, _ in sources for key in smaller}
    order = {key: i for i, key in enumerate((b, n, f) for f in links for b, _ in sources for n in counts)}
    cells = sorted(
        (c for c in done.cells if (c.batch, c.devices, c.links) in wanted),
        key=lambda c: order[c.batch, c.devices, c.links],
    )
    return msgspec.structs.replace(done, cells=tuple(cells))


def _placed_by(
    workers: Workers,
    cells: Iterable[tuple[ComputationGraph, Cluster, Cell]],
    how: Mapping[str, Any],
    time_limit_s: float | None,
) -> Iterator[Cell]:
    """Cells that workers place, as they are done; each graph travels to each worker once."""
    jobs = (
        Job(
            f"{cell.batch} {cell.devices} {cell.links}",
            "placement.scenarios:place_cell",
            {"cluster": cluster, "cell": cell, **how},
            workers.share(encode_graph(graph), "graphs.files:decode_graph"),
            None if time_limit_s is None else PATIENCE * time_limit_s + LEAST_PATIENCE_S,
        )
        for graph, cluster, cell in cells
    )
    for done in workers.run(jobs):
        cell: Cell = done.result()
        yield cell


def place_cell(
    graph: ComputationGraph,
    *,
    cluster: Cluster,
    cell: Cell,
    info: PlacerInfo,
    budget: Budget,
    schedule: str,
    groups: int,
    seed: int,
) -> Cell:
    """Place one cell; what a worker runs.

    Args:
        graph: With the cell's batch.
        cluster: With the cell's devices and links.
        cell: What it is to be; its step time and memory are filled in.
        info: Who places it.
        budget: What that may spend.
        schedule: Which ready op a device runs first.
        groups: Wanted number of co-location groups.
        seed: Seeds its random numbers.
    """
    if info.learns:  # before its time begins
        compile_ahead(schedule)
    try:
        problem = make_problem(graph, cluster, schedule=schedule, groups=groups)
        best = compare_placers(problem, [info], budget=budget, seed=seed).best
    except NoFeasiblePlacementError as error:
        return msgspec.structs.replace(cell, note=str(error))
    if best is None or best.step_time_s is None or best.peak_memory_bytes is None:
        return msgspec.structs.replace(cell, note="no placement that fits was found")
    memories = problem.cluster.memories
    shares = memories.used(best.peak_memory_bytes[None])[0] / np.maximum(memories.limit_bytes, 1)
    return msgspec.structs.replace(cell, step_time_s=best.step_time_s, peak_memory_share=float(shares.max()))


def parse_numbers(option: str, text: str) -> list[int]:
    """Whole numbers from 1, as ``"1,2,4"`` or ``"1..8"``.

    Raises:
        InputError: The text is no such list.

    >>> parse_numbers("--devices", "1..3,8")
    [1, 2, 3, 8]
    """
    found: list[int] = []
    for part in text.split(","):
        span = re.fullmatch(r"\s*([1-9][0-9]{0,8})(?:\.\.([1-9][0-9]{0,8}))?\s*", part)
        if span is None or (span[2] and not int(span[1]) <= int(span[2]) < int(span[1]) + MOST_CELLS):
            raise InputError(f"{option} has '{part.strip()}'; write whole numbers, as in 1,2,4 or 1..8")
        found += range(int(span[1]), int(span[2] or span[1]) + 1)
    return list(dict.fromkeys(found))


def parse_factors(option: str, text: str) -> list[float]:
    """Factors, as ``"0.5x,1x,2x"``.

    Raises:
        InputError: The text is no such list.

    >>> parse_factors("--links", "0.5x,2")
    [0.5, 2.0]
    """
    found: list[float] = []
    for part in text.split(","):
        number = re.fullmatch(r"\s*([0-9]{1,6}(?:\.[0-9]{1,6})?)x?\s*", part)
        if number is None or float(number[1]) == 0:
            raise InputError(f"{option} has '{part.strip()}'; write factors, as in 0.5x,1x,2x")
        found.append(float(number[1]))
    return list(dict.fromkeys(found))


def _counted(cluster: Cluster) -> list[int]:
    """The devices that are counted: accelerators, or all where there are none."""
    accelerators = [i for i, device in enumerate(cluster.devices) if device.spec.kind != "cpu"]
    return accelerators or list(range(cluster.num_devices))


def _changed(cluster: Cluster, count: int, factor: float) -> Cluster:
    """The cluster with its first `count` accelerators only, and links `factor` times as fast."""
    counted = _counted(cluster)
    if not 1 <= count <= len(counted):
        raise InputError(f"cluster '{cluster.name}' has from 1 to {len(counted)} devices to use, not {count}")
    if not factor > 0:
        raise InputError(f"links cannot be {factor:g} times as fast; give a factor above 0")
    gone = {cluster.device_names[i] for i in counted[count:]}
    links = tuple(
        replace(
            link,
            bytes_per_s=link.bytes_per_s * factor,
            back_bytes_per_s=None if link.back_bytes_per_s is None else link.back_bytes_per_s * factor,
        )
        for link in cluster.links
        if not {link.a, link.b} & gone
    )
    return replace(
        cluster,
        name=f"{cluster.name}, {count} devices, links x {factor:g}",
        devices=tuple(device for device in cluster.devices if device.name not in gone),
        links=links,
        shared_memories=without(cluster.shared_memories, gone),
    )


def _with_batch(graph: str | ComputationGraph, batch: int) -> str:
    """The name of the same graph with another batch."""
    name = graph if isinstance(graph, str) else graph.name
    if not isinstance(graph, str) or runs_code(graph) or graph.endswith(SUFFIXES):
        raise InputError(f"graph '{name}' has the batch that it was captured with; leave out the batches")
    head, colon, text = graph.rpartition(":")
    if not colon or "=" not in text:
        return f"{graph}:batch={batch}"
    kept = [part for part in text.split(",") if part.partition("=")[0].strip() != "batch"]
    return f"{head}:{','.join([*kept, f'batch={batch}'])}"


def _batch_of(graph: str | ComputationGraph) -> int | None:
    """The batch that a graph's name says, None where it says none."""
    if not isinstance(graph, str):
        return None
    said = re.search(r"[:,]\s*batch\s*=\s*([0-9]{1,9})\s*(?:,|$)", graph)
    if said is not None:
        return int(said[1])
    return int(parse(graph)[1]["batch"]) if graph.partition(":")[0] in ZOO else None


def _resumed(path: Path, new: WhatIf) -> WhatIf:
    """`new` with the cells that a file holds, if it is of the same question."""
    if not exists(path):
        return new
    try:
        old = decode_json(read_file(path, "file"), _DECODER)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' is no table of what-if: {' '.join(str(error).split())}; {_REMEDY}") from None
    for name in new.__struct_fields__:
        if name != "cells" and getattr(old, name) != getattr(new, name):
            raise InputError(
                f"'{path}' was made with {name} {getattr(old, name)!r}, not {getattr(new, name)!r}; {_REMEDY}"
            )
    return old


def cells_by_line(cells: Sequence[Cell]) -> dict[tuple[float, int | None], list[Cell]]:
    """Cells that differ in nothing but the number of devices, by links and batch."""
    lines: dict[tuple[float, int | None], list[Cell]] = {}
    for cell in cells:
        lines.setdefault((cell.links, cell.batch), []).append(cell)
    return lines
