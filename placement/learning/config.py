"""How a placement is learned: the settings of the policy, its updates, the search and screening, and the presets.

Each part is handed its own settings whole. Result files and checkpoints hold all of them side by side in one flat
dict, as `flatten` makes it and `unflatten` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from graphs.errors import InputError
from placement.move_search.config import MoveConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

REWARDS = ("sqrt", "log")
BASELINES = ("moving_average", "leave_one_out")

_FLAT_NAME, _PREFIX = "flat_name", "prefix"  # keys of a field's metadata, see `flatten`


def _need(ok: bool, message: str) -> None:
    if not ok:
        raise InputError(f"training config: {message}")


@dataclass(frozen=True)
class PolicyConfig:
    """How the policy is built.

    Attributes:
        paper: Read the paper's features and learn an embedding a device, instead of making it from features.
        hidden_size: Units of each LSTM direction and of the decoder.
        embedding_size: Size of the op types' embeddings.
    """

    paper: bool = field(default=False, metadata={_FLAT_NAME: "paper_policy"})
    hidden_size: int = 64
    embedding_size: int = 16

    def __post_init__(self) -> None:
        for key in ("hidden_size", "embedding_size"):
            _need(getattr(self, key) > 0, f"{key} is {getattr(self, key)}; it must be positive")


@dataclass(frozen=True)
class UpdateConfig:
    """What an update of the policy samples, and what it learns from.

    Attributes:
        samples: Placements sampled from the policy an update.
        learning_rate: Of Adam.
        clip_norm: The gradient is scaled down to this norm where it is larger.
        entropy_bonus: Weight of the entropy (summed over the groups) in the loss, at first.
        entropy_half_life: Updates in which that weight halves; 0 keeps it.
        reward: ``sqrt``, the negative root of the step time (the paper's), or ``log``, the negative logarithm.
        baseline: ``moving_average`` over updates (the paper's), or ``leave_one_out``: the mean of the other samples.
        baseline_decay: Of the moving average.
        normalise_advantage: Divide advantages by their standard deviation over the batch.
        failing_ratio: The failing signal, the step time that an infeasible placement is charged, over the time of all
            groups one after the other on the slowest device, and no less than any step can take; where it is 0, it is
            charged more than the best feasible step, by the memory that each device lacks
            (`placement.placers.best.charged_s`).
        feasible_only_after: After this many updates infeasible samples are not learned from; 0 always learns from them.
        imitation_updates: Updates at the start that only imitate the elite.
        imitation_weight: Weight of the elite's log-likelihood in the loss afterwards.
        elites: How many of the best different placements so far are the elite; 0 keeps none.
    """

    samples: int = 32
    learning_rate: float = 3e-3
    clip_norm: float = 1.0
    entropy_bonus: float = 0.01
    entropy_half_life: int = 300
    reward: str = "log"
    baseline: str = "leave_one_out"
    baseline_decay: float = 0.9
    normalise_advantage: bool = True
    failing_ratio: float = 0.0
    feasible_only_after: int = 0
    imitation_updates: int = 20
    imitation_weight: float = 0.3
    elites: int = 8

    def __post_init__(self) -> None:
        _need(self.reward in REWARDS, f"reward is '{self.reward}'; it must be one of {', '.join(REWARDS)}")
        _need(self.baseline in BASELINES, f"baseline is '{self.baseline}'; it must be one of {', '.join(BASELINES)}")
        least = 2 if self.baseline == "leave_one_out" else 1
        _need(self.samples >= least, f"samples is {self.samples}; baseline {self.baseline} needs at least {least}")
        for key in ("learning_rate", "clip_norm"):
            _need(getattr(self, key) > 0, f"{key} is {getattr(self, key)}; it must be positive")
        for key in ("entropy_bonus", "entropy_half_life", "failing_ratio", "feasible_only_after", "elites"):
            _need(getattr(self, key) >= 0, f"{key} is {getattr(self, key)}; it must not be negative")
        _need(0 <= self.baseline_decay < 1, f"baseline_decay is {self.baseline_decay}; it must be in [0, 1)")


@dataclass(frozen=True)
class ScreeningConfig:
    """How a model finds what to evaluate where few evaluations are allowed (`placement.learning.screening`).

    Attributes:
        noise: The model of a simulated problem has op times that are off by up to this share.
    """

    noise: float = 0.2

    def __post_init__(self) -> None:
        _need(0 <= self.noise < 1, f"screening noise is {self.noise}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class LearningConfig:
    """How a placement is learned; the defaults are the `default` preset.

    Attributes:
        preset: Name that results carry.
        policy: How the policy is built.
        update: How it learns.
        search: How the chains of moves go about it (`placement.move_search`).
        screening: How few evaluations are spent.
        warm_start: Evaluate the heuristic placers first, and learn from the best of them.
        search_moves: Moves that each chain makes an update, while the policy learns; fewer on graphs of many ops, so
            that updates stay short. 0 is no search.
        search_advice: Whether the search asks the policy which device it would give each group.
        learns: False leaves the policy out altogether: nothing is sampled and nothing learned, the search proposes by
            itself and has all cores. For ablations.
    """

    preset: str = "default"
    policy: PolicyConfig = field(default=PolicyConfig(), metadata={_PREFIX: ""})
    update: UpdateConfig = field(default=UpdateConfig(), metadata={_PREFIX: ""})
    search: MoveConfig = field(default=MoveConfig(chains=4, survivors=2), metadata={_PREFIX: "search_"})
    screening: ScreeningConfig = field(default=ScreeningConfig(), metadata={_PREFIX: "screen_"})
    warm_start: bool = True
    search_moves: int = 16384
    search_advice: bool = True
    learns: bool = True

    def __post_init__(self) -> None:
        _need(self.search_moves >= 0, f"search_moves is {self.search_moves}; it must not be negative")
        alone = self.warm_start and self.search_moves > 0 and not self.search_advice
        _need(self.learns or alone, "without learns, warm_start and search_moves must be on, and search_advice off")


_CHAINS = LearningConfig().search

PRESETS = {
    "default": LearningConfig(),
    # Ablations of the default, all with its start and its chains. Uniform proposals in the place of all that learns:
    "uniform": LearningConfig(
        preset="uniform",
        search=replace(_CHAINS, learning_rate=0.0, kind_rate=0.0, uniform_share=1.0),
        search_advice=False,
        learns=False,
    ),
    # the chains that learn, without the sequence-to-sequence policy;
    "moves": LearningConfig(preset="moves", search_advice=False, learns=False),
    # all of it, but the chains' weights stay as they were set by hand;
    "fixed": LearningConfig(preset="fixed", search=replace(_CHAINS, learning_rate=0.0, kind_rate=0.0)),
    # all of it, but only groups are moved.
    "groups": LearningConfig(preset="groups", search=replace(_CHAINS, finest="groups")),
    # The policy that is shipped with its weights, alone: REINFORCE goes on from them on the problem at hand
    # (`placement.pretrained.learner`).
    "pretrained": LearningConfig(
        preset="pretrained",
        update=UpdateConfig(
            samples=16,
            learning_rate=3e-4,
            entropy_bonus=2e-3,
            entropy_half_life=0,
            imitation_updates=0,
            imitation_weight=0.0,
        ),
        search_moves=0,
        search_advice=False,
    ),
    # As published, where the paper says: features, learned device embeddings, root of the step time, moving-average
    # baseline that starts at the failing signal, Adam, nothing learned from failures after 5,000 updates. Its failing
    # signal of 100 s is four times the slowest single-device step that it reports (26.2 s); here it is four times that
    # of the problem at hand, since a baseline that starts a thousand steps away drowns what there is to learn. It is
    # silent about sizes, rates and the baseline's decay: these learn steadily within minutes on two cores, where larger
    # networks or rates settle on one device before the baseline has forgotten its start.
    "paper": LearningConfig(
        preset="paper",
        policy=PolicyConfig(paper=True, hidden_size=128, embedding_size=32),
        update=UpdateConfig(
            samples=16,
            learning_rate=3e-4,
            entropy_bonus=0.0,
            entropy_half_life=0,
            reward="sqrt",
            baseline="moving_average",
            baseline_decay=0.5,
            normalise_advantage=False,
            failing_ratio=4.0,
            feasible_only_after=5000,
            imitation_updates=0,
            imitation_weight=0.0,
            elites=0,
        ),
        warm_start=False,
        search_moves=0,
    ),
}
"""Settings by name."""

Settings = TypeVar("Settings", bound="DataclassInstance")


def flatten(config: DataclassInstance) -> dict[str, Any]:
    """All settings of a config in one dict; the names of a part's settings begin with the part's prefix.

    Result files and checkpoints hold them like this.
    """
    flat: dict[str, Any] = {}
    for key in fields(config):
        value = getattr(config, key.name)
        if is_dataclass(value) and not isinstance(value, type):
            flat |= {key.metadata[_PREFIX] + name: setting for name, setting in flatten(value).items()}
        else:
            flat[key.metadata.get(_FLAT_NAME, key.name)] = value
    return flat


def unflatten(flat: Mapping[str, Any], config: Settings) -> Settings:
    """The config of `flatten`'s dict.

    Args:
        flat: Settings by their flat names.
        config: Of the kind that is wanted; its values are replaced.

    Raises:
        InputError: There is a setting too many or one is missing, or a value is out of its range; the message names it.
    """
    known = flatten(config)
    _need(set(flat) <= set(known), f"there is no setting {', '.join(sorted(set(flat) - set(known)))}")
    _need(set(known) <= set(flat), f"settings are missing: {', '.join(sorted(set(known) - set(flat)))}")
    changes: dict[str, Any] = {}
    for key in fields(config):
        value = getattr(config, key.name)
        if is_dataclass(value) and not isinstance(value, type):
            prefix = key.metadata[_PREFIX]
            own = {name: flat[prefix + name] for name in flatten(value)}
            changes[key.name] = unflatten(own, value)
        else:
            changes[key.name] = flat[key.metadata.get(_FLAT_NAME, key.name)]
    return replace(config, **changes)
