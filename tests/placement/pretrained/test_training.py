"""Training the policy: what it draws, its advantages, going on where it stopped, and that it learns."""

import numpy as np
import pytest

from graphs.errors import InputError
from placement.learning.threads import one_torch_thread
from placement.pretrained.config import PretrainConfig
from placement.pretrained.families import FAMILIES
from placement.pretrained.features import read
from placement.pretrained.lessons import advantage, answered_s
from placement.pretrained.network import initial
from placement.pretrained.policy import PretrainedPolicy
from placement.pretrained.split import HELD_OUT, TRAINED_ON
from placement.pretrained.training import Pretrainer
from tests.placement.pretrained.small import TINY, problem


def test_ten_families_are_kept_from_the_training() -> None:
    assert len(set(HELD_OUT)) == 10
    assert set(HELD_OUT) | set(TRAINED_ON) == set(FAMILIES)
    assert not set(HELD_OUT) & set(TRAINED_ON)


def test_an_advantage_is_worked_by_hand() -> None:
    """Two samples, one of half the other's step time: each is a spread from the mean."""
    found = advantage(np.array([1.0, 2.0]))
    half = np.log(2.0) / 2
    spreads = half / (half + 0.005)
    utility = np.exp([spreads, -spreads])
    np.testing.assert_allclose(found, [utility[0] - utility[1], utility[1] - utility[0]])


def test_an_advantage_has_no_scale_adds_to_nothing_and_counts_the_best_for_most() -> None:
    charged_s = np.random.default_rng(0).uniform(1, 2, size=6)
    found = advantage(charged_s)
    assert abs(found.sum()) < 1e-9
    np.testing.assert_allclose(advantage(1e-3 * charged_s), found)
    np.testing.assert_array_equal(np.argsort(found), np.argsort(-charged_s))
    mostly_alike = np.ones(16)
    lucky, unlucky = mostly_alike.copy(), mostly_alike.copy()
    lucky[3], unlucky[3] = 0.9, 1 / 0.9
    assert advantage(lucky)[3] > 5 * -advantage(unlucky)[3] > 0
    np.testing.assert_array_equal(advantage(mostly_alike), 0.0)


def test_a_training_that_is_resumed_comes_to_the_same_weights() -> None:
    with one_torch_thread():
        straight = Pretrainer(TINY, seed=3)
        families = [straight.update().family for _ in range(2)]
        first = Pretrainer(TINY, seed=3)
        first.update()
        second = Pretrainer(TINY, seed=3)
        second.restore(first.state())
        again = second.update().family
    assert again == families[1]
    assert not set(families) & set(HELD_OUT)
    assert second.updates == 2
    assert second.best_validation == straight.best_validation
    for name, weight in straight.policy.weights().items():
        np.testing.assert_array_equal(second.policy.weights()[name], weight)
        np.testing.assert_array_equal(second.best[name], straight.best[name])


def test_weights_of_another_policy_are_not_restored() -> None:
    state = Pretrainer(TINY).state()
    del state["weights"]["out"]
    with pytest.raises(InputError, match="lacks a weight 'out'"):
        Pretrainer(TINY).restore(state)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="samples is 1; it must be at least 2"):
        PretrainConfig(samples=1)


def test_a_policy_learns_on_a_few_problems_what_it_then_knows_on_others() -> None:
    """From weights that know nothing at all: each device is as likely."""
    blank = {**initial(0), "skip": np.zeros_like(initial(0)["skip"])}
    tests = [read(problem(100 + seed, ops=16), []) for seed in range(8)]

    def level(trainer: Pretrainer) -> float:
        weights = trainer.policy.weights()
        return float(
            np.mean([np.log(known.best_s / answered_s(weights, known, samples=4, rounds=1, seed=0)) for known in tests])
        )

    class Drawing(Pretrainer):
        """Draws random graphs, which take no time to make."""

        def _drawn(self, number: int) -> tuple[str, object]:  # type: ignore[override]
            return "random", problem(number, ops=16)

    with one_torch_thread():
        trainer = Drawing(PretrainConfig(samples=8, rounds=1, imitation_updates=0, validation_problems=0), seed=0)
        trainer.policy = PretrainedPolicy(blank)
        trainer._optimizer.param_groups[0]["params"] = list(trainer.policy.parameters())
        before = level(trainer)
        for _ in range(60):
            trainer.update()
        after = level(trainer)
    assert after > before + 0.05
