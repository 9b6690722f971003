"""Attention in one op against the products that it replaces, on every device of the catalogue."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Distribution
from torch.nn import functional as F
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from envs.clusters.device_specs import DEVICE_SPECS
from envs.cost_model import op_class, op_times_s
from graphs.capture import capture, capture_program
from graphs.capture.arguments import Arguments
from graphs.capture.attention import attention
from graphs.capture.costs import batch_rows
from graphs.capture.flops import flops
from graphs.computation_graph import DTYPES, PHASES, OpRecord, build
from graphs.errors import InputError
from graphs.sources import load_graph

ATEN = torch.ops.aten


class Attend(nn.Module):
    """Attention of one sequence to another, as one op or as two products and a softmax."""

    def __init__(self, heads: int, width: int, *, fused: bool) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.heads, self.fused = heads, fused

    def forward(self, x, memory):
        q, k = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (self.query(x), self.key(memory)))
        if self.fused:
            return F.scaled_dot_product_attention(q, k, k)
        return (q @ k.transpose(2, 3)).softmax(3) @ k


def attention_ops(graph):
    """The ops between the heads' tensors: attention in one op, or products of batches of matrices."""
    kinds = [graph.type_names[t] for t in graph.op_type]
    return [i for i, kind in enumerate(kinds) if graph.flops[i] and (kind == "bmm" or op_class(kind) == "attention")]


@pytest.mark.parametrize(("batch", "length", "keys"), [(1, 1, 1), (1, 1, 700), (1, 512, 512), (3, 65, 33), (32, 7, 90)])
@pytest.mark.parametrize("training", [False, True])
def test_attention_in_one_op_costs_no_more_than_its_products(batch, length, keys, training):
    inputs = torch.zeros(batch, length, 32), torch.zeros(batch, keys, 32)
    one, parts = (
        capture(Attend(4, 32, fused=fused), (inputs,), torch.sum, training=training) for fused in (True, False)
    )
    fused, products = attention_ops(one), attention_ops(parts)
    assert (len(fused), len(products)) == ((2, 6) if training else (1, 2))
    if keys <= 8 * length:
        assert {int(one.batch[i]) for i in fused} == {batch * 4 * length}
    for spec in DEVICE_SPECS.values():
        least = op_times_s(parts, spec)[products].sum()
        assert 0 < op_times_s(one, spec)[fused].sum() <= 1.5 * least, spec.name


def record(func, shapes, **numbers):
    """One attention op on tensors of no memory, and its products without a launch, forward or backward."""
    names = [a.name for a in func._schema.arguments]
    backward = "grad_out" in names[0]
    (batch, heads, length, width), (_, _, keys, width_v) = shapes
    tensors = {
        "query": torch.empty(batch, heads, length, width, device="meta"),
        "key": torch.empty(batch, heads, keys, width, device="meta"),
        "value": torch.empty(batch, heads, keys, width_v, device="meta"),
    }
    if str(func).startswith(("aten._flash", "aten._efficient")):
        tensors = {name: tensor.transpose(1, 2) for name, tensor in tensors.items()}
    tensors[names[0]] = tensors["query"]
    called = {**dict.fromkeys(names), **tensors, **numbers}
    args = [called[a.name] for a in func._schema.arguments if not a.kwarg_only]
    kind = str(func._overloadpacket).removeprefix("aten.")
    rows = batch_rows(kind, Arguments(func, args, {}), lambda tensor: True, [], batch)
    moved = sum(tensors[name].nbytes for name in ("query", "key", "value")) + batch * heads * length * width_v * 4
    one = OpRecord("one", kind, flops=flops(func, args, {}, None), batch=rows, bytes_accessed=moved * (1 + backward))
    sizes = [(length, keys, width), (length, keys, width_v)]
    if backward:  # of values and keys, a row for each key
        sizes = [(length, keys, width_v), (keys, length, width_v), (length, keys, width), (keys, length, width)]
    parts = [
        OpRecord(
            f"product {i}",
            "bmm",
            flops=2 * batch * heads * n * m * k,
            batch=batch * heads * n,
            bytes_accessed=4 * batch * heads * (n * k + m * k + n * m),
        )
        for i, (n, m, k) in enumerate(sizes)
    ]
    return one, parts


FORWARD = [
    ATEN._scaled_dot_product_flash_attention.default,
    ATEN._scaled_dot_product_efficient_attention.default,
    ATEN._scaled_dot_product_cudnn_attention.default,
    ATEN._scaled_dot_product_fused_attention_overrideable.default,
    ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    ATEN._flash_attention_forward.default,
    ATEN._efficient_attention_forward.default,
    ATEN._cudnn_attention_forward.default,
]
BACKWARD = [
    ATEN._scaled_dot_product_flash_attention_backward.default,
    ATEN._scaled_dot_product_efficient_attention_backward.default,
    ATEN._scaled_dot_product_cudnn_attention_backward.default,
    ATEN._scaled_dot_product_fused_attention_overrideable_backward.default,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default,
    ATEN._flash_attention_backward.default,
    ATEN._efficient_attention_backward.default,
    ATEN._cudnn_attention_backward.default,
]
SIZES = st.one_of(st.integers(1, 130), st.sampled_from([256, 1000, 4096, 65_536]))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([*FORWARD, *BACKWARD]),
    st.integers(1, 64),
    st.integers(1, 32),
    SIZES,
    SIZES,
    st.sampled_from([8, 64, 128]),
    st.sampled_from([8, 64, 256]),
)
def test_every_kernel_of_attention_costs_no_more_than_its_products(func, batch, heads, length, keys, width, width_v):
    one, parts = record(func, ((batch, heads, length, width), (batch, heads, keys, width_v)))
    assert one.flops == (
        2 * batch * heads * length * keys * (3 * width + 2 * width_v if func in BACKWARD else width + width_v)
    )
    if func in FORWARD or keys <= 8 * length:
        assert one.batch == batch * heads * length
    graph = build("attention", [one, *parts], [])
    for spec in DEVICE_SPECS.values():
        seconds = op_times_s(graph, spec)
        assert seconds[0] <= 1.5 * seconds[1:].sum(), spec.name


def test_sequences_one_after_another_count_their_own_queries():
    """32 sequences of 100 queries in one tensor [3200, heads, width], with the longest's number of keys."""
    query = torch.empty(3200, 4, 16, device="meta")
    offsets = torch.empty(33, dtype=torch.int32, device="meta")
    func = ATEN._flash_attention_forward.default
    args = [query, query, query, offsets, offsets, 100, 100, 0.0, True, False]
    found = attention("_flash_attention_forward", Arguments(func, args, {}))
    assert found is not None
    assert found.rows == 3200 * 4
    assert flops(func, args, {}, None) == 32 * (2 * 2 * 4 * 100 * 100 * 16)


@pytest.mark.parametrize("spec", ["v100", "h100", "tpu_v3_chip"])
def test_four_quarters_of_a_batch_cost_little_more_than_the_whole(spec):
    whole, quarter = (load_graph(f"transformer_lm:batch={batch},layers=2,hidden=512,heads=8") for batch in (8, 2))
    step = quarter.phase != PHASES.index("update")  # once, whatever the number of parts
    launches = 3 * DEVICE_SPECS[spec].launch_overhead_s * step.sum()
    parts = 4 * op_times_s(quarter, DEVICE_SPECS[spec])[step].sum()
    assert parts <= 1.05 * op_times_s(whole, DEVICE_SPECS[spec])[step].sum() + launches


class Flex(nn.Module):
    """Flex attention with a learned bias for each head, and fewer heads of keys than of queries."""

    def __init__(self, *, compiled: bool = False, mask=None) -> None:
        super().__init__()
        self.layer, self.bias = nn.Linear(32, 32), nn.Parameter(torch.zeros(4))
        self.attend, self.mask = torch.compile(flex_attention) if compiled else flex_attention, mask

    def forward(self, x):
        q = self.layer(x).unflatten(2, (4, 8)).transpose(1, 2)

        def biased(score, b, h, i, j):
            return score + self.bias[h]

        return self.attend(q, q[:, :2], q[:, :2], score_mod=biased, block_mask=self.mask, enable_gqa=True)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_flex_attention_is_one_op_forward_and_one_backward(compiled, masked, monkeypatch):
    # torch.compile changes it for good.
    monkeypatch.setattr(Distribution, "_validate_args", Distribution._validate_args)
    before = dict(vars(flex))
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 128, 128, device="cpu") if masked else None
    graph = capture(Flex(compiled=compiled, mask=mask), torch.zeros(3, 128, 32), torch.sum, optimizer="sgd")
    ops = attention_ops(graph)
    assert [graph.type_names[graph.op_type[i]] for i in ops] == ["flex_attention", "flex_attention_backward"]
    product = 2 * 3 * 4 * 128 * 128 * 8
    assert graph.flops[ops].tolist() == [2 * product, 5 * product]
    assert graph.batch[ops].tolist() == [3 * 4 * 128] * 2
    updates = [name for name in graph.op_names if name.endswith("sgd_update")]
    assert sorted(updates) == ["bias/sgd_update", "layer.bias/sgd_update", "layer.weight/sgd_update"]
    assert {k: v for k, v in vars(flex).items() if before.get(k) is not v} == {}


def test_flex_attention_is_captured_but_not_run():
    with pytest.raises(InputError, match=r"flex_attention cannot be run by a placement.*scaled_dot_product_attention"):
        capture_program(Flex(), torch.zeros(3, 128, 32), torch.sum)


def test_flex_attention_under_autocast_is_in_its_dtype():
    class Lower(Flex):
        def forward(self, x):
            with torch.autocast("cuda", torch.bfloat16):
                return super().forward(x)

    graph = capture(Lower(), torch.zeros(3, 128, 32), lambda out: out.float().sum())
    assert {DTYPES[graph.dtype[i]] for i in range(graph.num_ops) if graph.flops[i]} == {"bfloat16"}
