import io
from pathlib import Path

import matplotlib.image
import numpy as np

from graphs.computation_graph import PHASES
from placement.results.trace_plot import _PHASE_RGB, _shares, plot_trace, trace_image, trace_png, write_trace_png
from tests.envs.simulator.simulator_problems import graph_of, hub, problem_of


def test_a_column_shows_the_share_of_its_time_that_each_phase_took() -> None:
    # 1400 columns over 3.5 s: 400 a second. a runs 0-1 on gpu:0, b 3-3.5 on gpu:1 after a transfer of 2 s.
    problem = problem_of(graph_of([1.0, 0.5], [(0, 2, [1])]), hub(2))
    trace = problem.trace(np.array([0, 1]))
    phase = problem.graph.phase.astype(int)
    first = _shares(trace, trace.op_start_s, trace.op_end_s, phase, trace.op_device == 0)
    second = _shares(trace, trace.op_start_s, trace.op_end_s, phase, trace.op_device == 1)
    np.testing.assert_allclose(first[0], np.repeat([1.0, 0.0], [400, 1000]), atol=1e-9)
    np.testing.assert_allclose(second[0], np.repeat([0.0, 1.0], [1200, 200]), atol=1e-9)
    assert first[1:].sum() == second[1:].sum() == 0


def test_the_picture_shows_the_phases_of_what_ran(tmp_path: Path) -> None:
    problem = problem_of(graph_of([1.0, 0.5], [(0, 2, [1])]), hub(2))
    trace = problem.trace(np.array([0, 1]))
    write_trace_png(tmp_path / "t.png", trace, problem.graph, problem.cluster, title="two ops")
    pixels = matplotlib.image.imread(io.BytesIO((tmp_path / "t.png").read_bytes()))[:, :, :3]
    share = {
        name: float((np.abs(pixels - rgb) < 0.01).all(axis=2).mean())
        for name, rgb in zip(PHASES, _PHASE_RGB, strict=True)
    }
    assert share["forward"] > 0.02  # beyond what the legend takes
    assert share["backward"] < 0.005
    assert trace_png(trace, problem.graph, problem.cluster) == trace_png(trace, problem.graph, problem.cluster)


def test_nothing_to_send_no_time_and_many_links_are_drawn_too() -> None:
    still = problem_of(graph_of([0.0], []), hub(1))
    figure = plot_trace(still.trace(np.array([0])), still.graph, still.cluster)
    assert "nothing is sent" in figure.axes[1].get_title(loc="left")
    wide = problem_of(graph_of([1.0] * 20, [(0, 5, list(range(1, 20)))]), hub(20))
    figure = plot_trace(wide.trace(np.arange(20)), wide.graph, wide.cluster)
    assert "8 more are not shown" in figure.axes[1].get_title(loc="left")  # 1 + 19 directions, 12 rows
    image = trace_image(wide.trace(np.arange(20)), wide.graph, wide.cluster)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
