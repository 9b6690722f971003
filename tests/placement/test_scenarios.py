"""What-if: each cell is the problem that it says, the front is not beaten, and a stopped table goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import placement
from envs.clusters.catalog import load_cluster
from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import InputError
from graphs.files import save_graph_file
from placement.cli.main import main
from placement.scenarios import Cell, WhatIf, pareto_front, parse_factors, parse_numbers
from placement.workers import open_workers


def wide(width: int = 4, flops: int = 10**10, size: int = 10**6) -> ComputationGraph:
    """As many equal products as there are devices, and one op that reads them all."""
    ops = [OpRecord(f"p{i}", "mm", flops=flops, bytes_accessed=1) for i in range(width)]
    ops.append(OpRecord("sum", "add", bytes_accessed=1))
    return build("wide", ops, [TensorRecord(i, size, [width]) for i in range(width)])


def cell(batch: int, devices: int, step_time_s: float | None, links: float = 1.0) -> Cell:
    return Cell(
        batch=batch, devices=devices, links=links, graph_sha256="", step_time_s=step_time_s, peak_memory_share=0.5
    )


def test_cells_are_the_problems_that_they_say() -> None:
    found = placement.what_if(
        wide(), "a100x4", devices=[1, 2, 4], links=[0.5, 1], placer="heft", time_limit_s=None, groups=64
    )
    assert [(c.links, c.devices) for c in found.cells] == [(f, n) for f in (0.5, 1.0) for n in (1, 2, 4)]
    times = {(c.links, c.devices): c.step_time_s or 0.0 for c in found.cells}
    one = 4 * (5e-6 + 10**10 / (156e12 / 2))
    assert times[1.0, 1] == pytest.approx(one, rel=0.2)
    for factor in (0.5, 1.0):
        assert times[factor, 1] > times[factor, 2] > times[factor, 4]
    assert times[0.5, 4] > times[1.0, 4]  # a megabyte takes longer
    assert {c.batch for c in found.cells} == {None}
    for c in found.cells:
        assert c.samples_per_s == pytest.approx(1 / times[c.links, c.devices])
        assert c.device_s_per_sample == pytest.approx(c.devices * times[c.links, c.devices])


def test_the_batch_is_set_in_the_name() -> None:
    found = placement.what_if(
        "transformer_lm:layers=1,hidden=64,heads=2,length=16,vocabulary=100,batch=1",
        "k80x2",
        batches=[2, 8],
        devices=[1],
        placer="heft",
        time_limit_s=None,
    )
    assert [c.batch for c in found.cells] == [2, 8]
    few, many = found.cells
    assert few.graph_sha256 != many.graph_sha256
    assert many.samples_per_s is not None
    assert few.samples_per_s is not None
    assert many.samples_per_s > few.samples_per_s


@pytest.mark.parametrize("seed", range(20))
def test_nothing_beats_the_front_and_the_front_beats_the_rest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = [
        cell(int(b), int(n), None if rng.random() < 0.1 else float(rng.integers(1, 6)), float(f))
        for b, n, f in zip(rng.integers(1, 4, 30), rng.integers(1, 5, 30), rng.integers(1, 3, 30), strict=True)
    ]
    front = pareto_front(cells)
    assert front

    def at_least(a: Cell, b: Cell) -> bool:
        assert a.samples_per_s is not None
        assert a.device_s_per_sample is not None
        assert b.samples_per_s is not None
        assert b.device_s_per_sample is not None
        same = a.links == b.links
        return same and a.samples_per_s >= b.samples_per_s and a.device_s_per_sample <= b.device_s_per_sample

    for a in front:
        assert not any(at_least(b, a) for b in front if b is not a)
    for b in cells:
        assert b.step_time_s is None or any(at_least(a, b) for a in front)


def test_a_stopped_table_goes_on_and_is_that_of_one_go(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    settings = {"devices": [1, 2, 3], "placer": "heft", "time_limit_s": None, "json": path}

    def stop(done: WhatIf) -> None:
        if len(done.cells) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        placement.what_if(wide(), "a100x4", on_cell=stop, **settings)  # type: ignore[arg-type]
    assert len(json.loads(path.read_text())["cells"]) == 2
    seen: list[int] = []
    found = placement.what_if(wide(), "a100x4", on_cell=lambda d: seen.append(len(d.cells)), **settings)  # type: ignore[arg-type]
    assert seen == [2, 3]
    again = placement.what_if(wide(), "a100x4", **{**settings, "json": None})  # type: ignore[arg-type]
    assert found.cells == again.cells
    for change, word in (({"seed": 1}, "seed"), ({"placer": "etf"}, "placer"), ({"groups": 9}, "groups")):
        with pytest.raises(InputError, match=f"{word} .*--restart"):
            placement.what_if(wide(), "a100x4", **{**settings, **change})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="another graph"):
        placement.what_if(wide(flops=10**9), "a100x4", **{**settings, "devices": [4]})  # type: ignore[arg-type]
    path.write_text("{")
    with pytest.raises(InputError, match="no table of what-if"):
        placement.what_if(wide(), "a100x4", **settings)  # type: ignore[arg-type]


def test_what_does_not_fit_is_a_row_that_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ops = [OpRecord(f"p{i}", "parameter", resident_bytes={"parameter": 30 * 10**9}) for i in range(4)]
    ops += [OpRecord(f"m{i}", "mm", flops=10**9, bytes_accessed=1, allowed_kinds=("gpu",)) for i in range(4)]
    graph = build("big", ops, [TensorRecord(i, 30 * 10**9, [4 + i], resident=True) for i in range(4)])
    save_graph_file(graph, tmp_path / "big.graph.json")
    source, rows, picture = str(tmp_path / "big.graph.json"), tmp_path / "c.json", tmp_path / "c.png"
    args = ["what-if", source, "--cluster", "a100x4:memory_bytes=50e9", "--devices", "1..4", "--placer", "heft"]
    assert main([*args, "--json", str(rows), "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert out.count("does not fit") >= 1
    assert "*" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    cells = json.loads(rows.read_text())["cells"]
    assert [c["devices"] for c in cells] == [1, 2, 3, 4]
    assert cells[0]["step_time_s"] is None
    assert cells[0]["note"]
    assert cells[3]["step_time_s"] is not None
    assert cells[3]["peak_memory_share"] <= 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--devices", "0"], ["--devices has '0'", "1..8"]),
        (["--devices", "3..1"], ["'3..1'"]),
        (["--devices", "9"], ["from 1 to 4 devices to use, not 9"]),
        (["--links", "fast"], ["--links has 'fast'", "0.5x"]),
        (["--links", "0x"], ["'0x'"]),
        (["--batch", "2"], ["the batch that it was captured with"]),
        (["--placer", "hefty"], ["unknown placer 'hefty'", "heft"]),
        (["--devices", "1..4", "--links", ",".join(f"{i}x" for i in range(1, 400))], ["1,596 cells"]),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: list[str]
) -> None:
    save_graph_file(wide(), tmp_path / "w.graph.json")
    assert main(["what-if", str(tmp_path / "w.graph.json"), "--cluster", "a100x4", *args]) == 2
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    for word in words:
        assert word in last


def test_numbers_and_factors_are_read_in_order_and_once() -> None:
    assert parse_numbers("--batch", "16,32,16") == [16, 32]
    assert parse_numbers("--devices", " 1..3 ,2,8") == [1, 2, 3, 8]
    assert parse_factors("--links", "2x,1,2.0x") == [2.0, 1.0]
    assert load_cluster("a100x4").num_devices == 5


def test_cells_are_the_same_on_workers(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    asked = {"batches": [2, 8], "devices": [1, 2], "placer": "annealing", "time_limit_s": None, "evaluations": 40}
    graph = "transformer_lm:layers=1,hidden=64,heads=2,length=16,vocabulary=100,batch=1"
    alone = placement.what_if(graph, "k80x2", **asked)  # type: ignore[arg-type]
    seen: list[WhatIf] = []
    with open_workers(2) as workers:
        found = placement.what_if(graph, "k80x2", workers=workers, json=path, on_cell=seen.append, **asked)  # type: ignore[arg-type]
        assert found == alone
        assert [len(table.cells) for table in seen] == [1, 2, 3, 4]
        kept = json.loads(path.read_bytes())
        path.write_text(json.dumps(kept | {"cells": kept["cells"][1:3]}))
        again = placement.what_if(graph, "k80x2", workers=workers, json=path, **asked)  # type: ignore[arg-type]
        assert again == alone
        nothing = build("large", [OpRecord("x", "mm", flops=1, resident_bytes={"parameter": 10**15})], [])
        (cell,) = placement.what_if(nothing, "k80x2", devices=[1], placer="heft", workers=workers).cells
    assert cell.step_time_s is None
    assert "short by" in cell.note
