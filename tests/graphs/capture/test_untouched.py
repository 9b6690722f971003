"""A capture leaves no trace, whether it succeeds or is refused: an independent look at all that a model holds."""

import copy
import random
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from types import GenericAlias

import numpy as np
import pytest
import torch
from torch import nn

from graphs.capture import capture
from graphs.errors import InputError


def total(output):
    return output.sum()


def portrait(thing, seen=None):
    """All that can be seen of a thing, identities included, as one nested value to compare."""
    seen = {} if seen is None else seen
    if thing is None or isinstance(
        thing, (bool, int, float, str, bytes, type, GenericAlias, torch.dtype, torch.device)
    ):
        return repr(thing)
    if id(thing) in seen:
        return "seen", id(thing)
    seen[id(thing)] = thing
    look = [type(thing).__name__, None if isinstance(thing, tuple) else id(thing)]
    if isinstance(thing, torch.Tensor):
        content = thing.detach().clone().reshape(-1).view(torch.uint8).tolist()
        return [*look, thing.requires_grad, id(thing.grad), list(thing.shape), content, portrait(vars(thing), seen)]
    if isinstance(thing, np.ndarray):
        return [*look, thing.tobytes()]
    if isinstance(thing, (dict, defaultdict)):
        return [*look, *[(portrait(k, seen), portrait(v, seen)) for k, v in thing.items()]]
    if isinstance(thing, (list, tuple, deque)):
        return [*look, *[portrait(item, seen) for item in thing]]
    if isinstance(thing, set):
        return [*look, sorted(map(repr, thing))]
    if isinstance(thing, torch.Generator):
        return [*look, thing.get_state().tolist()]
    slots = [portrait(getattr(thing, name, "unset"), seen) for name in getattr(type(thing), "__slots__", ())]
    kind = []
    if isinstance(thing, nn.Module) and type(thing).__module__ == __name__:
        kind = [(key, portrait(value, seen)) for key, value in vars(type(thing)).items() if not callable(value)]
    return [*look, portrait(getattr(thing, "__dict__", None), seen), slots, kind]


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)


class TwoNames(Base):
    def __init__(self):
        super().__init__()
        self.again = self.a
        self.inside = nn.ModuleDict({"list": nn.ModuleList([self.b, self.a])})

    def forward(self, x):
        return self.again(self.b(self.a(x)))


class Tied(Base):
    def __init__(self):
        super().__init__()
        self.b.weight = self.a.weight
        self.alias = [self.a.weight, {"bias": self.b.bias}]

    def forward(self, x):
        return self.b(self.a(x))


class Caches(Base):
    shared: dict[object, object] = {}  # noqa: RUF012 (what is tested)
    calls = 0

    def __init__(self):
        super().__init__()
        self.by_key = {"deep": [{}]}
        self.by_order = OrderedDict(first=1)
        self.by_default = defaultdict(list)
        self.steps = [1, 2]
        self.last = deque([0, 1], maxlen=2)
        self.kinds = {1}

    def forward(self, x):
        y = self.a(x)
        self.by_key["deep"][0]["y"] = y
        self.by_order["y"] = y
        self.by_order.move_to_end("first")
        self.by_default["y"].append(y)
        self.steps.append(y)
        self.steps[0] = y
        self.last.append(y)
        self.kinds |= {2}
        self.seen = y
        self.b.note = y
        self.shared["y"] = y
        type(self).calls += 1
        return self.b(y)


class Slotted:
    __slots__ = ("count", "value")

    def __init__(self):
        self.count = 0


@dataclass
class Record:
    values: list = field(default_factory=list)
    best: object = None


class Objects(Base):
    def __init__(self):
        super().__init__()
        self.record = (Record(), Record([1]))
        self.slotted = Slotted()
        self.numbers = np.arange(4)
        self.generator = torch.Generator()
        self.plain = torch.ones(8)
        self.more = [torch.ones(8), torch.ones(8)]

    def forward(self, x):
        self.plain.add_(1)
        torch._foreach_add_(self.more, 1)
        y = self.a(x) * self.plain
        self.record[0].best = y
        self.record[1].values.append(y)
        self.slotted.count += 1
        self.slotted.value = y
        self.numbers[0] += 7
        self.generator.manual_seed(3)
        self.a.weight.note = self.plain.note = y
        self.a.weight.requires_grad_(True)
        return self.b(y + self.more[0])


class FirstCall(Base):
    def forward(self, x):
        if not hasattr(self, "ready"):
            self.ready = True
            self.register_buffer("table", torch.arange(8.0))
            self.late = nn.Linear(8, 8)
            self.b.register_forward_hook(lambda module, args, output: output * 2)
            self.b.register_forward_pre_hook(lambda module, args: None)
            self.b.register_full_backward_hook(lambda module, before, after: None)
            self.a.forward = lambda x, plain=self.a.forward: plain(x) + 1
        return self.b(self.a(x)) + self.table


class Modes(Base):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.norm.eval()
        self.drop = nn.Dropout()

    def forward(self, x):
        self.a.train(not self.a.training)
        self.b.bias.requires_grad_(False)
        return self.b(self.drop(self.norm(self.a(x))))


class Seeds(Base):
    def forward(self, x):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 (what models do)
        return self.b(self.a(x))


class Generator(Base):
    def forward(self, x):
        if random.random() < 2 and np.random.rand() < 2:  # noqa: NPY002
            x = x + torch.rand(8)
        return self.b(self.a(x))


MODELS = [TwoNames, Tied, Caches, Objects, FirstCall, Modes, Seeds, Generator]


class Refused(nn.Module):
    """Runs a model and then does what no capture can follow."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.seen = []

    def forward(self, x):
        y = self.inner(x)
        self.seen.append(y)
        return y if y.sum() > 0 else -y


def randomness():
    numbers = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), numbers[1].tolist(), numbers[2:]


def check_untouched(model, batch, loss, refused=False, **options):
    before, drawn = portrait((model, loss, batch)), randomness()
    if refused:
        with pytest.raises(InputError):
            capture(model, batch, loss, **options)
    else:
        assert capture(model, batch, loss, **options).num_ops > 1
    assert portrait((model, loss, batch)) == before
    assert randomness() == drawn


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("make", MODELS)
def test_no_trace_is_left_in_a_model(make, refused, training):
    model = Refused(make()) if refused else make()
    check_untouched(model, torch.zeros(4, 8), total, refused, training=training)


@pytest.mark.parametrize("make", [*MODELS, lambda: nn.Sequential(*(make() for make in MODELS))])
def test_what_is_captured_does_not_depend_on_earlier_captures(make):
    model, batch = make(), torch.zeros(4, 8)
    graphs = [capture(model, batch, total, name="again") for _ in range(2)]
    assert graphs[0].sha256 == graphs[1].sha256


@pytest.mark.parametrize("make", MODELS)
def test_a_model_computes_and_learns_after_a_capture_as_one_that_was_not_captured(make):
    torch.manual_seed(0)
    model = make().eval()
    other, x = copy.deepcopy(model), torch.randn(4, 8)
    capture(model, x, total)
    got = []
    for each in (model, other):
        torch.manual_seed(0)
        Caches.shared.clear()
        outputs = []
        for _ in range(2):
            outputs.append(each(x))
            outputs[-1].sum().backward()
        got.append([*outputs, *[p.grad for p in each.parameters() if p.grad is not None]])
    assert len(got[0]) == len(got[1]) > 3
    assert all(torch.equal(a, b) for a, b in zip(*got, strict=True))


def test_no_trace_is_left_in_a_loss_or_a_batch():
    kept, counts = [], {"calls": 0}

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.history = []

        def forward(self, output):
            self.history.append(output)
            return output.mean()

    module = Loss()

    def loss(output):
        kept.append(output)
        counts["calls"] += 1
        return module(output)

    class Pops(Base):
        def forward(self, x, extra):
            extra["rest"].append(x)
            return self.a(x + extra.pop("y"))

    batch = {"x": torch.zeros(4, 8), "extra": {"y": torch.zeros(4, 8), "rest": []}}
    check_untouched(Pops(), batch, loss)
    assert (kept, counts, module.history) == ([], {"calls": 0}, [])


def test_no_trace_is_left_by_hooks_that_transformers_installs_in_the_first_call():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    config = transformers.BertConfig(num_hidden_layers=2, output_hidden_states=True, **sizes)
    batch = {"input_ids": torch.zeros(2, 8, dtype=torch.int64)}
    model = transformers.BertModel(config).eval()
    capture(model, batch, training=False)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert len(model(**batch).hidden_states) == 3


def test_no_trace_is_left_in_a_cache_of_keys_that_the_user_passes():
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 50, "n_positions": 16}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    cache = transformers.DynamicCache()
    batch = {"input_ids": torch.zeros(2, 8, dtype=torch.int64), "past_key_values": cache, "use_cache": True}
    before = portrait(vars(cache))
    capture(model, batch, training=False)
    assert portrait(vars(cache)) == before
    assert cache.get_seq_length() == 0
