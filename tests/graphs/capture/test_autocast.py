"""A step under autocast for a GPU is captured in the dtypes that it would run in there, without one."""

import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from graphs.capture import capture
from graphs.computation_graph import DTYPES
from graphs.errors import InputError

SEEN: list = []
"""What a step has seen; what a function holds itself is as before when a capture has ended."""


class Step(nn.Module):
    """A function of the input and a layer."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(8, 8), function

    def forward(self, x):
        return self.function(self.layer, x)


def dtypes(graph, *, products=True):
    return {DTYPES[graph.dtype[i]] for i in range(graph.num_ops) if not products or graph.flops[i]}


@pytest.mark.parametrize("device", ["cuda", "xpu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_are_in_the_lower_precision_forward_and_backward(device, dtype):
    def function(layer, x):
        with torch.autocast(device, dtype):
            return layer(layer(x))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = capture(Step(function), torch.zeros(4, 8), lambda out: out.float().sum())
    assert dtypes(graph) == {str(dtype).removeprefix("torch.")}
    kinds = [graph.type_names[t] for t in graph.op_type]
    casts = [i for i, kind in enumerate(kinds) if kind == "_to_copy" and "bwd" not in graph.op_names[i]]
    assert len(casts) == 3 + 1  # input, weight and bias once each although they are used twice; the loss
    assert [DTYPES[graph.dtype[i]] for i, kind in enumerate(kinds) if kind == "adam_update"] == ["float32"] * 2


def own_decorator(layer, x):
    return torch.autocast("cuda", torch.bfloat16)(layer)(x)


def old_name(layer, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = torch.cuda.amp.autocast(dtype=torch.bfloat16)
    with context:
        return layer(x)


def inside_of_cpu(layer, x):
    with torch.autocast("cpu", torch.float16), torch.autocast("cuda", torch.bfloat16):
        return layer(x)


@pytest.mark.parametrize("function", [own_decorator, old_name, inside_of_cpu])
def test_every_way_to_enter_it(function):
    assert dtypes(capture(Step(function), torch.zeros(4, 8), training=False)) == {"bfloat16"}


def test_inside_of_one_another():
    SEEN.clear()

    def function(layer, x):
        with torch.autocast("cuda", torch.float16):
            with torch.autocast("cuda", enabled=False):
                SEEN.append((layer(x).dtype, torch.is_autocast_enabled("cuda")))
            with torch.autocast("cpu", enabled=False):
                SEEN.append((layer(x).dtype, torch.is_autocast_enabled("cuda")))
            with torch.autocast("cuda", torch.bfloat16):
                SEEN.append((layer(x).dtype, torch.get_autocast_dtype("cuda") is torch.bfloat16))
            SEEN.append((layer(x).dtype, torch.is_autocast_enabled("cuda")))
        with torch.autocast("cuda", enabled=False):
            return layer(x)

    graph = capture(Step(function), torch.zeros(4, 8), torch.sum)
    assert [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True), (torch.float16, True)] == SEEN
    assert dtypes(graph) == {"float32", "float16", "bfloat16"}


def half(x):
    return x @ x


def image(x):
    return x.unflatten(0, (1, 1, -1))


def biases(x):
    return x.flatten().narrow(0, 0, 32)


FUNCTIONS = {
    "product": lambda x: x @ x,
    "linear": lambda x: F.linear(x, x, x.sum(0)),
    "attention": lambda x: F.scaled_dot_product_attention(image(x), image(x), image(x)),
    "convolution": lambda x: F.conv2d(image(x), image(x.narrow(0, 0, 3).narrow(1, 0, 3)), padding=1),
    "convolution by name": lambda x: F.conv1d(x.unsqueeze(0), x.unsqueeze(2), padding="same"),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "bilinear": lambda x: F.bilinear(half(x), half(x), x.unsqueeze(0)),
    "softmax": lambda x: half(x).softmax(-1),
    "softmax into": lambda x: F.softmax(half(x), -1, dtype=torch.bfloat16),
    "log softmax": lambda x: F.log_softmax(half(x), -1),
    "layer norm": lambda x: F.layer_norm(half(x), (8,)),
    "group norm": lambda x: F.group_norm(half(x), 2),
    "rms norm": lambda x: F.rms_norm(half(x), (8,)),
    "batch norm": lambda x: F.batch_norm(half(x), None, None, training=True),
    "sum": lambda x: half(x).sum(),
    "sum over": lambda x: half(x).sum(0),
    "mean": lambda x: half(x).mean(),
    "prod": lambda x: half(x).prod(0),
    "cumsum": lambda x: half(x).cumsum(0),
    "norm": lambda x: half(x).norm(),
    "norm over": lambda x: torch.norm(half(x), dim=1),
    "vector norm": lambda x: torch.linalg.vector_norm(half(x), dim=1),
    "exp": lambda x: half(x).exp(),
    "power": lambda x: half(x) ** 3,
    "gelu": lambda x: F.gelu(half(x)),
    "add": lambda x: half(x) + x,
    "cat": lambda x: torch.cat([half(x), x]),
    "stack": lambda x: torch.stack([half(x), half(x)]),
    "addcmul of two": lambda x: torch.addcmul(half(x), half(x), x),
    "addcmul": lambda x: torch.addcmul(half(x), half(x), half(x)),
    "pool": lambda x: F.avg_pool2d(half(x).unsqueeze(0), 2),
    "pad": lambda x: F.pad(half(x).unsqueeze(0), (1, 1), mode="reflect"),
    "upsample": lambda x: F.interpolate(image(half(x)), scale_factor=2, mode="bilinear"),
    "squared error": lambda x: F.mse_loss(half(x), half(x)),
    "cross entropy": lambda x: F.cross_entropy(half(x), torch.zeros(8, dtype=torch.int64, device=x.device)),
    "binary": lambda x: F.binary_cross_entropy_with_logits(half(x), half(x)),
    "distances": lambda x: torch.cdist(half(x), half(x)),
    "double": lambda x: x.double() @ x.double(),
    "whole numbers": lambda x: torch.ones(8, 8, dtype=torch.int64, device=x.device).sum(0),
    "cell": lambda x: torch.lstm_cell(x, (x, x), x.repeat(4, 1), x.repeat(4, 1), biases(x), biases(x)),
}


def dtypes_of(value):
    return [t.dtype for t in (value if isinstance(value, tuple) else (value,))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_dtypes_are_those_of_tensors_on_a_gpu(name):
    """Against PyTorch's own autocast on fake tensors that say that they are on a GPU."""
    SEEN.clear()

    with FakeTensorMode():
        x = torch.empty(8, 8, device="cuda")
        before = torch.is_autocast_enabled("cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.autocast_increment_nesting()
        try:
            expected = dtypes_of(FUNCTIONS[name](x))
        finally:
            torch.autocast_decrement_nesting()
            torch.set_autocast_enabled("cuda", before)

    def function(layer, x):
        with torch.autocast("cuda"):
            SEEN.extend(dtypes_of(FUNCTIONS[name](x)))
        return layer(x)

    capture(Step(function), torch.zeros(8, 8), training=False)
    assert expected == SEEN


def raises(layer, x):
    with torch.autocast("cuda"):
        return F.binary_cross_entropy(layer(x).sigmoid(), x)


def test_all_is_as_before_also_after_a_refusal():
    methods = {name: vars(torch.autocast)[name] for name in ("__init__", "__enter__", "__exit__")}
    x = torch.ones(4, 8)
    with pytest.raises(InputError, match="use binary_cross_entropy_with_logits"):
        capture(Step(raises), x, training=False)
    assert {name: vars(torch.autocast)[name] for name in methods} == methods
    assert not any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
    with torch.autocast("cpu"):
        assert (x @ x.T).softmax(0).dtype is torch.bfloat16  # a GPU would make float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is not switched off where there is a GPU")
def test_one_that_was_switched_off_before_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = torch.autocast("cuda", torch.bfloat16)

    def function(layer, x):
        with context:
            return layer(x)

    with pytest.raises(InputError, match="make it where it is entered"):
        capture(Step(function), torch.zeros(4, 8), training=False)
