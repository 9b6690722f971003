"""Problems from seeds: what a tape writes down is a training step, and a seed is all that is needed."""

import numpy as np
import pytest

from envs.problem import PlacementProblem
from graphs.colocation.rules import colocate
from graphs.errors import InputError
from placement.pretrained.families import FAMILIES
from placement.pretrained.problems import draw, draws, make_cluster, make_graph
from placement.pretrained.tape import Tape


def test_the_backward_pass_of_two_layers_is_worked_by_hand() -> None:
    """x -> mm(w0) -> relu -> mm(w1) -> loss: products have a gradient for each side that has a weight behind it."""
    tape = Tape("two layers")
    x = tape.feed(8, 4)
    hidden = tape.pointwise(tape.linear(x, 16))
    tape.apply("loss", (tape.linear(hidden, 2),), (1,))
    graph = tape.graph(training=True)
    names = [graph.type_names[t] for t in graph.op_type]
    # One product's gradient for w0 (x is an input), two for the second product.
    assert names.count("mm_backward") == 3
    assert names.count("relu_backward") == names.count("loss_backward") == names.count("ones_like") == 1
    assert names.count("adam") == names.count("parameter") == 2
    assert graph.total_flops == 2 * 8 * 4 * 16 * 2 + 2 * 8 * 16 * 2 * 3
    assert graph.parameter_bytes == 4 * (4 * 16 + 16 * 2)
    assert graph.resident_bytes.sum() == 3 * graph.parameter_bytes
    assert len(tape.graph(training=False).op_names) == 7


def test_the_gradients_of_a_weight_that_is_read_twice_are_added() -> None:
    tape = Tape("shared")
    weight = tape.weight(4, 4)
    x = tape.linear(tape.feed(2, 4), 4, weight)
    tape.apply("loss", (tape.linear(x, 4, weight),), (1,))
    graph = tape.graph(training=True)
    names = [graph.type_names[t] for t in graph.op_type]
    assert names.count("adam") == 1
    assert names.count("mm_backward") == 3
    assert names.count("add") == 1


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_trains_and_infers_and_can_be_placed(family: str) -> None:
    for seed in range(2):
        graph = make_graph(family, np.random.default_rng(seed))
        assert graph.num_ops >= 20
        groups = colocate(graph, wanted_groups=48)
        problem = PlacementProblem(graph, groups, make_cluster(np.random.default_rng(seed)))
        assert groups.num_groups > 4
        placement = np.where(problem.allowed.all(axis=1), 1, 0)
        assert problem.evaluate(placement[None]).step_time_s[0] > 0
        training = bool((graph.phase == 2).any())
        parameters = sum(graph.type_names[t] == "parameter" for t in graph.op_type)
        assert sum(graph.type_names[t] == "adam" for t in graph.op_type) == (parameters if training else 0)


def test_there_are_thirty_families_and_a_seed_makes_the_same_problem() -> None:
    assert len(FAMILIES) >= 30
    for seed in (0, 17):
        first, again = draw(seed), draw(seed)
        assert first.family == again.family
        assert first.problem.graph.op_names == again.problem.graph.op_names
        assert first.problem.cluster.sha256 == again.problem.cluster.sha256
        rows = np.where(first.problem.allowed.all(axis=1), 1, 0)[None]
        assert first.problem.evaluate(rows).step_time_s == again.problem.evaluate(rows).step_time_s


def test_seeds_draw_different_families_clusters_and_memories() -> None:
    drawn = [made for made, _ in zip(draws(100), range(24), strict=False)]
    assert [made.seed for made in drawn] == list(range(100, 124))
    assert len({made.family for made in drawn}) >= 10
    assert len({made.problem.num_devices for made in drawn}) >= 4
    short = [made for made in drawn if any("short" in d.spec.name for d in made.problem.cluster.devices)]
    assert 3 <= len(short) <= 14
    only = draw(5, families=["mixer"])
    assert only.family == "mixer"
    with pytest.raises(InputError, match="unknown family 'mixr'"):
        draw(5, families=["mixr"])
