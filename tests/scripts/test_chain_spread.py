"""The script that asks where chains of moves part: its figures are of the search, and bad arguments are named."""

from __future__ import annotations

import numpy as np
import pytest

from scripts import chain_spread
from tests.placement.placer_problems import training_problem


def test_chains_get_better_stage_by_stage_and_each_begins_elsewhere() -> None:
    problem = training_problem(80, 3, seed=0)
    stages, costs_s = chain_spread.spread(problem, evaluations=3000, chains=4)
    assert stages[0] == "coarse"
    assert stages[-1] == "ops"
    assert costs_s.shape == (4, len(stages))
    assert (np.diff(costs_s, axis=1) <= 0).all()
    assert len(set(costs_s[:, 0])) == 4
    again = chain_spread.spread(problem, evaluations=3000, chains=4)[1]
    assert again.tolist() == costs_s.tolist()


def test_chains_by_types_begin_with_types_of_op() -> None:
    problem = training_problem(80, 3, seed=2)
    stages, costs_s = chain_spread.spread(problem, evaluations=3000, chains=4, by_types=True)
    assert stages[0] == "types"
    assert not {"coarse", "groups"} & set(stages)
    assert costs_s.shape == (4, len(stages))


def test_so_few_evaluations_that_stages_are_skipped_still_make_a_table() -> None:
    problem = training_problem(80, 3, seed=2)
    stages, costs_s = chain_spread.spread(problem, evaluations=1, chains=4)
    assert costs_s.shape == (4, len(stages))
    assert (np.diff(costs_s, axis=1) <= 0).all()


def test_the_table_has_the_median_the_best_and_the_rank_correlation(capsys: pytest.CaptureFixture[str]) -> None:
    ends = np.array([[0.5, 0.1, 0.3], [0.5, 0.3, 0.1], [0.5, 0.2, 0.2]])
    chain_spread._show(["coarse", "groups", "ops"], ends)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows[0] == ["coarse", "500.0", "ms", "500.0", "ms", "all", "equal"]
    assert rows[1] == ["groups", "200.0", "ms", "100.0", "ms", "-1.00"]
    assert rows[2] == ["ops", "200.0", "ms", "100.0", "ms", "1.00"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnnlm"], "cell 'rnnlm' is not of the form GRAPH/CLUSTER"),
        (["rnnlm/k80x2", "--chains", "2"], "--chains is 2; a rank correlation needs at least 3"),
        (["rnnlm/k80x2", "--evaluations", "many"], "--evaluations: 'many' is no whole number"),
        (["rnnlm/k80x2", "--evaluations", "0"], "--evaluations: 0 leaves a chain nothing to do; give a number above 0"),
        (["rnnlm/k80x9"], "k80x9"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert chain_spread.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
