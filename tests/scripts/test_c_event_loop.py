"""The loop in C that the simulator's speed is measured against gives the simulator's step times, to the last digit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from envs.simulator.simulate import simulate, simulate_batch
from graphs.colocation.groups import one_group_an_op
from graphs.synthetic import random_graph
from scripts.c_event_loop import compile_loop, compiler, loop_in_c


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
def test_the_loop_in_c_gives_the_same_step_times(tmp_path: Path) -> None:
    library = compile_loop(tmp_path)
    compared = 0
    for cluster in ("k80x4", "v100x8", "mixed"):
        for seed in range(4):
            graph = random_graph(300, seed=seed)
            problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster(cluster), "fifo")
            rng = np.random.default_rng(seed)
            placements = rng.integers(problem.num_devices, size=(5, graph.num_ops)).astype(np.int32)
            placements[0] = 0
            step_s, peaks, sent = loop_in_c(library, problem.simulator_input)(placements)
            expected_s, expected_peaks = simulate_batch(problem.simulator_input, placements)
            assert step_s.tolist() == expected_s.tolist()
            assert (peaks >= expected_peaks).all()
            assert (peaks[0] == expected_peaks[0]).all(), "without transfers there is nothing to estimate"
            assert sent == len(simulate(problem.simulator_input, placements[-1]).transfer_tensor)
            compared += sent
    assert compared > 1000
