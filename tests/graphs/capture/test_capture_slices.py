import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graphs.capture import capture
from graphs.capture.slices import disjoint, slice_bytes, slice_of


@st.composite
def views(draw, base):
    """A view of a tensor by a few random narrowings, steps, transpositions and expansions."""
    view = base
    for _ in range(draw(st.integers(1, 4))):
        dim = draw(st.integers(0, view.dim() - 1))
        how = draw(st.sampled_from(["narrow", "transpose", "step", "expand", "window"]))
        if how == "narrow":
            start = draw(st.integers(0, view.shape[dim] - 1))
            view = view.narrow(dim, start, draw(st.integers(1, view.shape[dim] - start)))
        elif how == "step":
            view = view[(slice(None),) * dim + (slice(None, None, 2),)]
        elif how == "expand":
            view = view.unsqueeze(0).expand(2, *view.shape)
        elif how == "window" and view.shape[dim] >= 2:
            view = view.unfold(dim, 2, 1)
        else:
            view = view.transpose(0, dim)
    return view


def covered(view, base):
    """For every byte of the base, whether a view shows it."""
    mark = torch.zeros_like(base)
    index = torch.arange(base.numel()).as_strided(view.shape, view.stride(), view.storage_offset())
    mark.view(-1)[index.reshape(-1)] = 1
    return np.repeat(mark.numpy().ravel().astype(bool), base.itemsize)


@given(st.data())
def test_slices_against_marking_every_byte(data):
    base = torch.zeros(data.draw(st.tuples(*[st.integers(1, 5)] * 3)), dtype=torch.int16)
    drawn = [data.draw(views(base)) for _ in range(3)]
    parts = [slice_of(view) for view in drawn]
    marks = [covered(view, base) for view in drawn]
    for part, mark in zip(parts, marks, strict=True):
        if mark.all():
            assert part is None
        elif part is not None and disjoint([part], mark.size):
            assert slice_bytes(part) == mark.sum()
    known = [(part, mark) for part, mark in zip(parts, marks, strict=True) if part is not None]
    if known and disjoint([part for part, _ in known], marks[0].size):
        assert np.sum([mark for _, mark in known], axis=0).max() == 1


def test_same_bytes_seen_otherwise_are_the_same_slice():
    base = torch.zeros(4, 6)
    assert slice_of(base[:, 2:4]) == slice_of(base.t()[2:4]) == slice_of(base.view(2, 2, 6)[:, :, 2:4].unsqueeze(0))
    assert slice_of(base.t()) is None
    assert slice_of(base[:, :3].expand(2, 4, 3)) == slice_of(base[:, :3])


def tensors_of(graph, op_name):
    """(bytes, names of readers) of each tensor that an op makes."""
    op = graph.op_names.index(op_name)
    return [
        (
            int(graph.tensor_bytes[t]),
            [graph.op_names[c] for c in graph.consumers[graph.consumer_offsets[t] : graph.consumer_offsets[t + 1]]],
        )
        for t in range(graph.tensor_offsets[op], graph.tensor_offsets[op + 1])
    ]


class Wrapped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def forward_graph(function, shape=(4, 8)):
    return capture(Wrapped(function), torch.zeros(shape), training=False)


def test_parts_that_are_read_apart_are_tensors_apart():
    def split(x):
        left, right = x.exp().chunk(2, dim=1)
        return left.sin() + right.cos()

    graph = forward_graph(split)
    assert tensors_of(graph, "./exp_0") == [(64, ["./sin_0"]), (64, ["./cos_0"])]


def test_a_reader_of_the_whole_reads_all_parts_and_the_rest():
    def whole_and_part(x):
        y = x.exp()
        return y[:, :2].sin().sum() + y.cos().sum()

    graph = forward_graph(whole_and_part)
    assert tensors_of(graph, "./exp_0") == [(32, ["./sin_0", "./cos_0"]), (96, ["./cos_0"])]


def test_what_nobody_reads_still_needs_memory():
    graph = forward_graph(lambda x: x.exp()[:, :2].sin())
    assert tensors_of(graph, "./exp_0") == [(32, ["./sin_0"]), (96, [])]


def test_overlapping_parts_are_one_tensor():
    def shifted(x):
        y = x.exp()
        return y[:, :-1].sin() + y[:, 1:].cos()

    graph = forward_graph(shifted)
    assert tensors_of(graph, "./exp_0") == [(128, ["./sin_0", "./cos_0"])]


def test_in_place_ops_on_parts_make_parts_anew():
    def gates(x):
        y = x.exp()
        left, right = y.chunk(2, dim=1)
        left.sigmoid_()
        return left * right, y.sin()

    graph = forward_graph(gates)
    # The whole is the old whole and the new part, so sin also keeps the old left half: it is not told apart.
    assert tensors_of(graph, "./exp_0") == [(64, ["./sigmoid__0", "./sin_0"]), (64, ["./mul_0", "./sin_0"])]
    assert tensors_of(graph, "./sigmoid__0") == [(64, ["./mul_0", "./sin_0"])]


def test_a_tensor_that_is_assembled_from_parts_has_a_producer_for_each():
    def assembled(x):
        y = torch.empty(2, 4, 8)
        y[0] = x.exp()
        y[1] = x.sin()
        return y.cos(), y[1].tan()

    graph = forward_graph(assembled)
    assert "empty" not in graph.type_names
    assert tensors_of(graph, "./copy__0") == [(128, ["./cos_0"])]
    assert tensors_of(graph, "./copy__1") == [(128, ["./cos_0", "./tan_0"])]


def test_writing_across_parts_makes_a_new_whole():
    def crossed(x):
        y = torch.zeros(4, 8)
        y[:, :4] = x[:, :4]
        y[:, 2:6] = x[:, 4:]
        return y.cos()

    graph = forward_graph(crossed)
    assert tensors_of(graph, "./zeros_0") == [(128, ["./copy__1"])]
    assert tensors_of(graph, "./copy__0") == [(64, ["./copy__1"])]
    assert tensors_of(graph, "./copy__1") == [(128, ["./cos_0"])]


def test_overwriting_the_whole_forgets_what_was_there():
    def overwritten(x):
        y = x.exp()
        y.copy_(x)
        return y.cos()

    graph = forward_graph(overwritten)
    assert tensors_of(graph, "./exp_0") == [(128, [])]
    assert tensors_of(graph, "./copy__0") == [(128, ["./cos_0"])]


def test_slices_of_a_parameter_stay_resident_and_are_sent_alone():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 8, 8))

        def forward(self, x):
            return x @ self.weight[0], x @ self.weight[1]

    graph = capture(Experts(), torch.zeros(4, 8), lambda out: out[0].sum() + out[1].sum())
    whole, first, second = tensors_of(graph, "weight")
    assert whole == (512, ["weight/adam_update"])
    assert first == (256, ["./mm_0"])
    assert second == (256, ["./mm_1"])
    assert graph.tensor_resident[graph.tensor_producer == graph.op_names.index("weight")].all()
