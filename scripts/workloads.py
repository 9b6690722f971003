"""Write the table of docs/results/workloads.md: what each workload of the zoo amounts to, next to what its paper says.

    python scripts/workloads.py

The figures that ``placement list graphs`` shows, `graphs/zoo/figures.json`, are written along with it.

Graphs are captured where the cache has none. Every figure but the published ones is computed here; none depends on the
machine that runs this.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np

from envs.clusters.catalog import DEVICE_SPECS
from envs.clusters.cluster import Cluster, Device
from envs.cost_model import op_times_s
from envs.problem import PlacementProblem
from graphs.colocation.rules import colocate, natural_groups
from graphs.computation_graph import ComputationGraph
from graphs.files import write_atomically
from graphs.zoo import ZOO, load
from graphs.zoo.figures import PATH, Figures

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "workloads.md"
BEGIN, END = "<!-- written by scripts/workloads.py: begin -->", "<!-- written by scripts/workloads.py: end -->"

SPECS = ("k80", "h100")
"""Devices that the last columns are about."""


@dataclasses.dataclass(frozen=True)
class Published:
    """What is known of a workload's size from elsewhere.

    Attributes:
        source: The paper, as a link.
        gflop: Forward pass of one example, a multiply-add counting two.
        says: Where that figure is from.
        difference: Why the capture's differs; empty where it does not.
    """

    source: str
    gflop: float
    says: str
    difference: str


def _arxiv(number: str, text: str) -> str:
    return f"[{text}](https://arxiv.org/abs/{number})"


_DLRM_MULTIPLY_ADDS = 13 * 512 + 512 * 256 + 256 * 128 + 27 * 27 * 128 + 479 * 1024 + 1024 * 1536 + 512 * 256 + 256

PUBLISHED = {
    "rnnlm": Published(
        f"{_arxiv('1409.2329', 'Zaremba 2014')}, sizes of {_arxiv('1706.04972', 'Mirhoseini 2017')}",
        2 * 40 * (2 * 8 * 2048**2 + 2048 * 10_000) / 1e9,
        "none published; by hand: 40 steps of 2 x 8 x 2048^2 + 2048 x 10,000 multiply-adds",
        "",
    ),
    "nmt": Published(
        f"{_arxiv('1409.0473', 'Bahdanau 2014')}, sizes of {_arxiv('1706.04972', 'Mirhoseini 2017')}",
        2 * 40 * ((16 + 1 + 12 + 8 + 1) * 1024**2 + 2 * 40 * 1024 + 2048 * 32_000) / 1e9,
        "none published; by hand: 40 steps of (16 + 1 + 20 + 1) x 1024^2 for encoder, keys, decoder and query, "
        "2 x 40 x 1024 for scores and context, 2048 x 32,000 for the softmax",
        "",
    ),
    "inception_v3": Published(
        _arxiv("1512.00567", "Szegedy 2015"),
        2 * 5.72,
        f"5.72 G multiply-adds and 23.8 M parameters ({_arxiv('1707.07012', 'Zoph 2017')}, table 2)",
        "rounding; in training the auxiliary head adds 3.3 M parameters",
    ),
    "resnet50": Published(
        _arxiv("1512.03385", "He 2015"),
        2 * 3.8,
        "3.8 G multiply-adds (table 1)",
        "here a block shrinks the image in its 3 x 3 convolution; with `stride=1x1`, as in the paper, it is 7.72",
    ),
    "nasnet": Published(
        _arxiv("1707.07012", "Zoph 2017"),
        2 * 23.8,
        "23.8 G multiply-adds and 88.9 M parameters (table 2)",
        "0.2 M parameters fewer here",
    ),
    "transformer_lm": Published(
        f"Radford 2019 (GPT-2 small), {_arxiv('1706.03762', 'Vaswani 2017')}",
        1024 * (2 * 12 * 12 * 768**2 + 2 * 12 * 1024 * 768) / 1e9,
        f"none published; formula of {_arxiv('2001.08361', 'Kaplan 2020')}, section 2.1: 2 x 12 x 12 x 768^2 + "
        "2 x 12 x 1024 x 768 a token",
        "the formula leaves out the head (2 x 768 x 50,257 a token) and half of the attention, of which a causal mask "
        "needs only half; PyTorch's count has all of it",
    ),
    "bert": Published(
        _arxiv("1810.04805", "Devlin 2018"),
        22.5,
        f"22.5 GFLOP at 128 tokens ({_arxiv('2004.02984', 'Sun 2020')}); 110 M parameters (Devlin 2018)",
        "here with the heads of pre-training (20 x (768 + 30,522) x 768 multiply-adds), which that count leaves out",
    ),
    "moe_lm": Published(
        f"{_arxiv('1701.06538', 'Shazeer 2017')}, routing of {_arxiv('2202.09368', 'Zhou 2022')}",
        512 * 2 * (4 * (4 * 1024**2 + 2 * 512 * 1024 + 2 * 8 * 1024**2 + 16 * 1024) + 1024 * 32_000) / 1e9,
        "none published at this size; by hand: a token meets two experts of 8 x 1024^2 multiply-adds in each of 4 "
        "blocks, attention of 4 x 1024^2 + 2 x 512 x 1024, and a head of 1024 x 32,000",
        "",
    ),
    "dlrm": Published(
        f"{_arxiv('1906.00091', 'Naumov 2019')}, sizes of MLPerf",
        2 * _DLRM_MULTIPLY_ADDS / 1e9,
        "none published; by hand: products 13-512-256-128 and 479-1024-1024-512-256-1, 27 x 27 inner products of 128",
        "",
    ),
}


def critical_path_share(graph: ComputationGraph, spec: str) -> float:
    """The longest path of the graph over the sum of all ops, in time on one model of device, without transfers."""
    time_s = op_times_s(graph, DEVICE_SPECS[spec])
    finish = time_s.copy()
    start = np.zeros(graph.num_ops)
    offsets = np.searchsorted(graph.edge_producer, np.arange(graph.num_ops + 1))
    for op in range(graph.num_ops):
        finish[op] = start[op] + time_s[op]
        readers = graph.consumers[offsets[op] : offsets[op + 1]]
        start[readers] = np.maximum(start[readers], finish[op])
    return float(finish.max() / time_s.sum())


def one_device_peak_bytes(graph: ComputationGraph) -> int:
    """Peak memory of the step on one device without limit, its ops in PyTorch's order."""
    spec = dataclasses.replace(DEVICE_SPECS["h100"], memory_bytes=10**15)
    problem = PlacementProblem(graph, colocate(graph), Cluster("one", (Device("gpu:0", spec),), ()), "program_order")
    evaluation = problem.evaluate(np.zeros((1, problem.num_groups), dtype=np.int64))
    return int(evaluation.peak_memory_bytes[0, 0])


def figures_of(graph: ComputationGraph) -> Figures:
    """What the list of graphs shows."""
    return Figures(
        ops=graph.num_ops,
        groups=natural_groups(graph).num_groups,
        parameter_bytes=graph.parameter_bytes,
        flops=graph.total_flops,
        peak_memory_bytes=one_device_peak_bytes(graph),
    )


def table(figures: dict[str, Figures]) -> str:
    """Both tables in Markdown."""
    sizes = [
        "| workload | source | batch | ops | groups | parameters | GFLOP a step | peak memory on one device | "
        f"critical path / work on {' and '.join(SPECS)} |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    flops = [
        "| workload | GFLOP of one example, forward | published | difference | published where; why the difference |",
        "|---|--:|--:|--:|---|",
    ]
    for name, workload in ZOO.items():
        known = PUBLISHED[name]
        graph, forward = load(name), load(f"{name}:training=0")
        batch = int(workload.knobs["batch"].default)
        shares = " and ".join(f"{critical_path_share(graph, spec):.2f}" for spec in SPECS)
        has = figures[name]
        sizes.append(
            f"| `{name}` | {known.source} | {batch:,} | {has.ops:,} | {has.groups} | {_size(has.parameter_bytes)} | "
            f"{has.flops / 1e9:,.0f} | {_size(has.peak_memory_bytes)} | {shares} |"
        )
        gflop = forward.total_flops / batch / 1e9
        flops.append(
            f"| `{name}` | {gflop:.4g} | {known.gflop:.4g} | {gflop / known.gflop - 1:+.1%} | "
            f"{known.says}{'; ' if known.difference else ''}{known.difference} |"
        )
    return "\n".join([*sizes, "", *flops])


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def main() -> None:
    """Write the figures, and put the tables between the marks of the page."""
    figures = {name: figures_of(load(name)) for name in ZOO}
    write_atomically(PATH, msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(figures)}\n{END}{after}")
    print(f"wrote {PAGE} and {PATH}")


if __name__ == "__main__":
    main()
