"""The script that asks where chains of moves part: its figures are of the search, and bad arguments are named."""

from __future__ import annotations

import numpy as np
import pytest

from scripts import chain_spread
from tests.placement.placer_problems import training_problem


def test_chains_get_better_stage_by_stage_and_each_begins_elsewhere() -> None:
    problem = training_problem(80, 3, seed=2)
    stages, costs_s = chain_spread.spread(problem, evaluations=3000, chains=4)
    assert stages[0] == "coarse"
    assert stages[-1] == "ops"
    assert costs_s.shape == (4, len(stages))
    assert (np.diff(costs_s, axis=1) <= 0).all()
    assert len(set(costs_s[:, 0])) == 4
    again = chain_spread.spread(problem, evaluations=3000, chains=4)[1]
    assert again.tolist() == costs_s.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnnlm"], "cell 'rnnlm' is not of the form GRAPH/CLUSTER"),
        (["rnnlm/k80x2", "--chains", "2"], "--chains is 2; a rank correlation needs at least 3"),
        (["rnnlm/k80x2", "--evaluations", "many"], "--evaluations: 'many' is no whole number above 0"),
        (["rnnlm/k80x2", "--evaluations", "0"], "--evaluations: '0' is no whole number above 0"),
        (["rnnlm/k80x9"], "k80x9"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert chain_spread.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
