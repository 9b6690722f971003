"""The one way from names to a problem: whoever asks by the same names gets the same problem."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import envs  # noqa: F401  (registers the environments)
import placement
from envs.clusters.catalog import DEVICE_SPECS, load_cluster
from envs.clusters.file import cluster_to_yaml
from envs.make_problem import make_problem
from envs.problem import PlacementProblem, ProblemNames
from graphs.colocation.groups import one_group_an_op
from graphs.errors import InputError
from graphs.files import save_graph_file
from graphs.synthetic import random_graph

ENVIRONMENTS = ("DevicePlacement-v0", "DevicePlacementOneShot-v0")


def assert_equal_problems(first: PlacementProblem, second: PlacementProblem) -> None:
    assert first.graph.sha256 == second.graph.sha256
    assert first.cluster.sha256 == second.cluster.sha256
    assert first.groups.names == second.groups.names
    assert np.array_equal(first.groups.group_of_op, second.groups.group_of_op)
    assert (first.schedule, first.names) == (second.schedule, second.names)


@pytest.fixture
def names(tmp_path: Path) -> tuple[str, str]:
    """A graph file with ops in int8 and float32, and a cluster file with an accelerator that computes int8 alone."""
    path, cluster_path = tmp_path / "g.graph.json", tmp_path / "c.yaml"
    save_graph_file(random_graph(40, seed=3, name="mixed"), path)
    content = json.loads(path.read_text())
    for op in content["ops"][::3]:
        op["dtype"] = "int8"
    path.write_text(json.dumps(content))
    cluster = load_cluster("k80x2")
    int8_only = replace(cluster.devices[-1].spec, name="int8-chip", peak_flops_per_s={"int8": 1e12})
    devices = (*cluster.devices[:-1], replace(cluster.devices[-1], spec=int8_only))
    text = cluster_to_yaml(replace(cluster, devices=devices), DEVICE_SPECS)
    cluster_path.write_text(text)
    return str(path), str(cluster_path)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize(("schedule", "groups"), [("priority", 5), ("fifo", 64), ("program_order", 1)])
def test_environments_and_functions_make_equal_problems_from_equal_names(
    names: tuple[str, str], environment: str, schedule: str, groups: int
) -> None:
    graph, cluster = names
    problem = placement.make_problem(graph, cluster, schedule=schedule, groups=groups)
    assert problem.names == ProblemNames(graph, cluster, groups)
    asked: dict[str, Any] = {"graph": graph, "cluster": cluster, "schedule": schedule, "groups": groups}
    assert_equal_problems(problem, gym.make(environment, **asked).unwrapped.problem)  # type: ignore[attr-defined]


def test_both_refuse_the_same_names(names: tuple[str, str]) -> None:
    graph, cluster = names
    for asked, message in (
        ({"groups": 0}, "wanted number of groups is 0; it must be at least 1"),
        ({"groups": -3}, "wanted number of groups is -3"),
        ({"schedule": "lifo"}, "unknown schedule 'lifo'"),
        ({"cluster": "k80x3"}, "unknown cluster 'k80x3'"),
        ({"graph": "nmtt"}, "unknown graph 'nmtt'"),
    ):
        given: dict[str, Any] = {"graph": graph, "cluster": cluster, **asked}
        with pytest.raises(InputError, match=message):
            make_problem(**given)
        for environment in ENVIRONMENTS:
            with pytest.raises(InputError, match=message):
                gym.make(environment, **given)


def test_a_problem_remembers_names_only_as_long_as_they_make_it(names: tuple[str, str]) -> None:
    graph, cluster = names
    problem = make_problem(graph, cluster, groups=6)
    assert problem.with_schedule("fifo").names == problem.names
    assert problem.with_groups(one_group_an_op(problem.graph)).names is None
    given = make_problem(problem.graph, problem.cluster, groups=6)
    assert given.names == ProblemNames(None, None, 6)
