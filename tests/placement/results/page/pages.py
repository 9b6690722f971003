"""Placements that pages are made of, in tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.extras import is_installed
from placement.placers.base import Budget
from placement.registry import PLACERS
from placement.results.comparison import compare_placers
from placement.results.page.content import Curve, PageContent
from placement.results.reasons.explain import explain
from placement.results.reasons.explanation import Explanation
from tests.placement.placer_problems import cluster, training_graph

needs_bokeh = pytest.mark.skipif(
    not is_installed("bokeh"), reason="Bokeh is not installed: pip install 'device-placement[report]'"
)

BAD = "</script><script>document.body.dataset.taken='yes'</script><b>"


def problem_of(num_groups: int = 30, seed: int = 1) -> PlacementProblem:
    graph, groups = training_graph(num_groups, seed=seed)
    return PlacementProblem(graph, groups, cluster(3))


def explained(problem: PlacementProblem) -> Explanation:
    rng = np.random.default_rng(0)
    made = np.where(problem.allowed, rng.random(problem.allowed.shape), -1).argmax(axis=1)
    return explain(problem, made, tries=16)


def content_of(problem: PlacementProblem) -> PageContent:
    found = explained(problem)
    placers = [PLACERS[name] for name in ("single_device", "round_robin", "heft")]
    updates = np.arange(1.0, 40.0)
    curve = Curve(updates, {"best": 1 / updates, "greedy": np.where(updates < 5, np.nan, 2 / updates)})
    return PageContent(found, compare_placers(problem, placers, budget=Budget()), curve, ("placement train a & b",))


def badly_named() -> PlacementProblem:
    problem = problem_of(5)
    graph = replace(problem.graph, name=BAD, op_names=tuple(f"{BAD}{i}" for i in range(problem.graph.num_ops)))
    return PlacementProblem(graph, one_group_an_op(graph), problem.cluster)
