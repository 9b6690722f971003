import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from envs.problem import PlacementProblem
from envs.simulator.trace_file import write_chrome_trace
from graphs.errors import InputError
from tests.envs.simulator.simulator_problems import graph_of, hub, problem_of


def relay() -> tuple[PlacementProblem, np.ndarray]:
    """a (1 s, gpu:0) sends 2 bytes to b (1 s, gpu:1) at 1 byte/s over two links."""
    return problem_of(graph_of([1.0, 1.0], [(0, 2, [1])]), hub(2)), np.array([0, 1])


def test_a_trace_file_says_what_ran_where_and_when(tmp_path: Path) -> None:
    problem, placement = relay()
    path = tmp_path / "trace.json"
    write_chrome_trace(path, problem.trace(placement), problem.graph, problem.cluster)
    events = json.loads(path.read_text())["traceEvents"]
    tracks = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    slices = [(tracks[e["pid"], e["tid"]], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert slices == [
        ("gpu:0", "a", 0.0, 1e6),
        ("gpu:1", "b", 3e6, 1e6),
        ("gpu:0 → s", "a", 1e6, 2e6),
        ("s → gpu:1", "a", 1e6, 2e6),
    ]
    counters = [(e["name"], e["ts"], e["args"]["bytes"]) for e in events if e["ph"] == "C"]
    # The tensor is on gpu:0 from a's start to the end of the transfer, on gpu:1 from its start to b's end.
    assert counters == [
        ("gpu:0", 0.0, 2),
        ("gpu:0", 3e6, 0),
        ("gpu:1", 0.0, 0),
        ("gpu:1", 1e6, 2),
        ("gpu:1", 4e6, 0),
    ]


def test_the_same_trace_gives_the_same_bytes_also_compressed(tmp_path: Path) -> None:
    problem, placement = relay()
    for name in ("one.json.gz", "two.json.gz", "plain.json"):
        write_chrome_trace(tmp_path / name, problem.trace(placement), problem.graph, problem.cluster)
    assert (tmp_path / "one.json.gz").read_bytes() == (tmp_path / "two.json.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.json.gz").read_bytes()) == (tmp_path / "plain.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.json.gz", "plain.json", "two.json.gz"]


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    problem, placement = relay()
    with pytest.raises(InputError, match=r"no-such-folder/t\.json' cannot be written"):
        write_chrome_trace(
            tmp_path / "no-such-folder" / "t.json", problem.trace(placement), problem.graph, problem.cluster
        )
