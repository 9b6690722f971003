"""The comparison: rows are measured again, a placer's refusal is a row, and ranks, ratios and files follow."""

import csv
import io
import json
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem, ProblemNames
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, TensorRecord, build
from graphs.errors import InputError, NoFeasiblePlacementError
from graphs.synthetic import random_graph
from placement.cli.report import comparison_report, summary
from placement.placers import PlacerInfo
from placement.placers.base import Budget, Placed
from placement.registry import PLACERS, choose_placers, get_placer
from placement.results.comparison import (
    Comparison,
    Row,
    compare_placers,
    make_row,
    quick_placers,
)
from placement.results.comparison_file import encode_comparison, encode_comparison_csv
from placement.text import clock, seconds, size, sparkline


@pytest.fixture(scope="module")
def problem() -> PlacementProblem:
    """Two independent products of a known time and no memory worth the name, on two GPUs."""
    ops = [OpRecord(f"op{i}", "mm", flops=2_185_000_000, bytes_accessed=8, batch=32) for i in range(2)]
    graph = build("pair", ops, [TensorRecord(i, 8, []) for i in range(2)])
    return PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"))


@pytest.fixture(scope="module")
def tight() -> PlacementProblem:
    """A chain with residents, on GPUs of 10 kB and a large CPU: too much for one GPU."""
    graph = random_graph(12, seed=1, resident_bytes=1000)
    return PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2:memory_bytes=10000"))


def row_of(problem: PlacementProblem, name: str, placement: list[int]) -> Row:
    return make_row(problem, name, Placed(np.array(placement), 1, 0.5))


def render(comparison: Comparison, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(comparison_report(comparison, width=width), highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_row_is_what_the_simulator_says(problem: PlacementProblem) -> None:
    # 2.185 GFLOP at 4.37 TFLOP/s x 50% is 1 ms, and 6 us to launch.
    together, apart = row_of(problem, "together", [1, 1]), row_of(problem, "apart", [1, 2])
    assert together.step_time_s == pytest.approx(2 * 1.006e-3, rel=1e-9)
    assert apart.step_time_s == pytest.approx(1.006e-3, rel=1e-9)
    assert together.busy_share is not None
    assert together.busy_share.tolist() == pytest.approx([0, 1, 0])
    assert apart.busy_share is not None
    assert apart.busy_share.tolist() == pytest.approx([0, 1, 1])
    assert apart.peak_memory_bytes is not None
    assert apart.peak_memory_bytes.tolist() == [0, 8, 8]


def test_every_single_device_has_a_row_and_the_bound_holds(problem: PlacementProblem) -> None:
    comparison = compare_placers(
        problem, [get_placer(name) for name in ["single_device", "round_robin"]], budget=Budget()
    )
    names = [row.placer for row in comparison.rows]
    assert names == ["single_device:cpu:0", "single_device:gpu:0", "single_device:gpu:1", "round_robin"]
    assert comparison.best is not None
    assert comparison.best.placer == "round_robin"
    assert comparison.best_single_device_s == pytest.approx(2.012e-3)
    assert 0 < comparison.lower_bound_s <= 1.006e-3


def test_a_placers_refusal_is_a_row_and_its_claims_are_not_believed(
    problem: PlacementProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator) -> Placed:
        raise InputError("there is no rule for graph 'pair'")

    def boast(problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator) -> Placed:
        return Placed(np.array([1, 1]), 7, 0.25, note="the fastest ever")

    own = ModuleType("own_placers")
    vars(own).update(refuse=refuse, boast=boast)
    monkeypatch.setitem(sys.modules, "own_placers", own)
    seen: list[str] = []
    comparison = compare_placers(
        problem,
        [PlacerInfo(name, f"own_placers:{name}", "a placer of one's own") for name in ("refuse", "boast")],
        budget=Budget(),
        on_start=seen.append,
        on_row=lambda comparison: seen.append(comparison.rows[-1].note),
    )
    assert seen == ["refuse", "there is no rule for graph 'pair'", "boast", "the fastest ever"]
    refused, boasted = comparison.rows
    assert (refused.step_time_s, refused.feasible, refused.placement) == (None, False, None)
    assert boasted.step_time_s == pytest.approx(2.012e-3)
    assert boasted.evaluations == 7
    text = render(comparison, 100)
    assert "no placement" in text
    assert "refuse: there is no rule for graph 'pair'" in text
    content = json.loads(encode_comparison(comparison))
    assert content["rows"][0]["step_time_s"] is None
    assert content["rows"][0]["note"] == "there is no rule for graph 'pair'"


def test_the_same_seed_gives_a_placer_the_same_numbers_whatever_else_runs(tight: PlacementProblem) -> None:
    alone = compare_placers(tight, [get_placer(name) for name in ["random"]], budget=Budget(evaluations=30), seed=3)
    after = compare_placers(
        tight, [get_placer(name) for name in ["round_robin", "random"]], budget=Budget(evaluations=30), seed=3
    )
    other = compare_placers(tight, [get_placer(name) for name in ["random"]], budget=Budget(evaluations=30), seed=4)
    assert alone.rows[0].placement is not None
    assert after.rows[1].placement is not None
    assert other.rows[0].placement is not None
    assert alone.rows[0].placement.tolist() == after.rows[1].placement.tolist()
    assert alone.rows[0].placement.tolist() != other.rows[0].placement.tolist()


def test_ranks_fastest_first_then_by_memory_short_then_refusals(tight: PlacementProblem) -> None:
    on_cpu, on_gpu = row_of(tight, "cpu", [0] * 12), row_of(tight, "gpu", [1] * 12)
    split = row_of(tight, "split", [1] * 6 + [2] * 6)
    refused = Row("refused", None, False, None, None, None, 0.0, 0, "no")
    comparison = Comparison(tight, 0, 1e-6, (refused, on_gpu, split, on_cpu))
    assert on_cpu.feasible
    assert not on_gpu.feasible
    assert not split.feasible
    assert comparison.short_bytes(split).sum() != comparison.short_bytes(on_gpu).sum()
    nearer = min((split, on_gpu), key=lambda row: int(comparison.short_bytes(row).sum()))
    further = on_gpu if nearer is split else split
    assert comparison.ranked() == [on_cpu, nearer, further, refused]
    with pytest.raises(
        NoFeasiblePlacementError, match=rf"the nearest, {nearer.placer}'s, needs .* on gpu:.*: short by"
    ):
        Comparison(tight, 0, 1e-6, (refused, further, nearer)).check_feasible()
    with pytest.raises(InputError, match=r"none of the placers gave a placement \(refused: no\)"):
        Comparison(tight, 0, 1e-6, (refused,)).check_feasible()
    comparison.check_feasible()


def test_the_table_shows_ratios_and_fits_the_terminal(problem: PlacementProblem) -> None:
    comparison = compare_placers(
        problem, [get_placer(name) for name in ["single_device", "round_robin"]], budget=Budget()
    )
    for width in (80, 100):
        text = render(comparison, width)
        assert max(len(line) for line in text.splitlines()) <= width
        lines = {line.split("  ")[0]: line.split() for line in text.splitlines()[:6]}
        assert lines["round_robin"][1:5] == ["1.006", "ms", "1.00", "0.50"]
        assert lines["single_device gpu:0-1"][2:6] == ["2.012", "ms", "2.00", "1.00"]


def test_the_summary_sets_a_row_against_the_others(problem: PlacementProblem) -> None:
    comparison = compare_placers(
        problem, [get_placer(name) for name in ["single_device", "round_robin"]], budget=Budget()
    )
    slow = row_of(problem, "mine", [1, 1])
    text = summary(comparison.with_row(slow), slow)
    assert text.startswith(
        "A step takes 2.012 ms: as long as on the best single device, 100.0% more than with round_robin"
    )
    assert slow.step_time_s is not None
    assert text.endswith(f", {slow.step_time_s / comparison.lower_bound_s:.2f} times the lower bound.")
    fast = row_of(problem, "mine", [1, 2])
    assert "50.0% less than on the best single device, as long as with round_robin" in summary(comparison, fast)


def test_an_infeasible_row_names_the_memory_that_is_short(tight: PlacementProblem) -> None:
    row = row_of(tight, "gpu", [1] * 12)
    text = " ".join(render(Comparison(tight, 0, 1e-6, (row,)), 100).split())
    assert row.peak_memory_bytes is not None
    assert f"short {size(row.peak_memory_bytes[1] - 10_000)}" in text
    assert f"gpu: needs {size(row.peak_memory_bytes[1])} on gpu:0, which has 10 kB: short by" in text


def test_json_and_csv_hold_the_same_rows(problem: PlacementProblem) -> None:
    comparison = compare_placers(
        problem, [get_placer(name) for name in ["single_device", "round_robin"]], budget=Budget(), seed=9
    )
    content = json.loads(encode_comparison(comparison))
    assert (content["graph"], content["cluster"], content["schedule"], content["seed"]) == (
        "pair",
        "k80x2",
        "priority",
        9,
    )
    assert content["rows"][3]["peak_memory_bytes"] == {"cpu:0": 0, "gpu:0": 8, "gpu:1": 8}
    rows = list(csv.DictReader(io.StringIO(encode_comparison_csv(comparison).decode())))
    assert [row["placer"] for row in rows] == [row.placer for row in comparison.ranked()]
    assert rows[0]["placer"] == "round_robin"
    assert float(rows[0]["step_time_s"]) == content["rows"][3]["step_time_s"]
    assert [float(rows[0][f"ratio_to_{other}"]) for other in ("best", "one_device")] == pytest.approx([1.0, 0.5])
    assert rows[0]["peak_memory_bytes:gpu:1"] == "8"
    assert float(rows[0]["busy_share:gpu:1"]) == pytest.approx(1.0)


def test_choosing_placers(problem: PlacementProblem) -> None:
    assert choose_placers("all") == list(PLACERS)
    assert choose_placers("heft, etf,heft") == ["heft", "etf"]
    with pytest.raises(InputError, match="unknown placer 'hefd'"):
        choose_placers("hefd")
    with pytest.raises(InputError, match="names no placer"):
        choose_placers(",")
    quick = [info.name for info in quick_placers()]
    tables = {"tables_by_size", "tables_by_lookups", "torchrec"}
    special = {"accelerate_balanced", "accelerate_sequential", "llama_cpp"} | tables
    assert {info.name for info in quick_placers(problem)} == set(quick) - special
    for_accelerate = quick_placers(problem.with_schedule("sequential"))
    assert {info.name for info in for_accelerate} == set(quick) - tables - {"llama_cpp"}
    tokens = replace(problem, graph=replace(problem.graph, tokens=4))
    assert {info.name for info in quick_placers(tokens)} == set(quick) - special | {"llama_cpp"}
    configured = replace(tokens, names=ProblemNames("hf:llama", "k80x2", 256))
    assert {info.name for info in quick_placers(configured)} == set(quick) - tables
    assert "reinforce" not in quick
    assert "brute_force" not in quick
    assert "heft" in quick


def test_tokens_a_second_are_shown_where_a_step_makes_some(problem: PlacementProblem) -> None:
    made = replace(problem, graph=replace(problem.graph, tokens=6))
    for of, shown in ((problem, False), (made, True)):
        comparison = compare_placers(of, [get_placer("round_robin")], budget=Budget())
        text = render(comparison, 100)
        assert ("tokens/s" in text) == shown
        if shown:
            rate = 6 / comparison.rows[0].step_time_s  # type: ignore[operator]
            assert f"{rate:,.4g}" in text


def test_numbers_for_people() -> None:
    assert [seconds(s) for s in (0.0, 3.2e-7, 4.5e-5, 0.0123, 0.51234, 1.5, 123.4, None, float("inf"))] == [
        "0 s",
        "320 ns",
        "45.0 us",
        "12.3 ms",
        "512 ms",
        "1.50 s",
        "123 s",
        "-",
        "-",
    ]
    assert [size(b) for b in (0, 1_234, 57_000_000, 999_900_000, 11_400_000_000)] == [
        "0 kB",
        "1 kB",
        "57 MB",
        "1.0 GB",
        "11.4 GB",
    ]
    assert [clock(s) for s in (0, 65, 3_700)] == ["0:00", "1:05", "1:01:40"]
    assert sparkline([3.0, 2.0, 1.0], 3) == "█▅▁"
    assert sparkline([], 3) == ""
