from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from graphs.capture import capture
from graphs.computation_graph import DTYPES, INPUT, PARAMETER, PHASES, RESIDENT_PARTS
from graphs.errors import InputError

OPTIMIZER = RESIDENT_PARTS.index("optimizer")
CONSTANT = RESIDENT_PARTS.index("constant")


def total(output):
    return output.sum()


def rows(graph):
    """What a person would want to see of each op."""
    return [
        (
            graph.op_names[i],
            graph.type_names[graph.op_type[i]],
            f"{graph.module_names[graph.module[i]]}@{graph.module_call[i]}",
            PHASES[graph.phase[i]],
            int(graph.flops[i]),
            int(graph.bytes_accessed[i]),
        )
        for i in range(graph.num_ops)
    ]


def readers(graph, name):
    op = graph.op_names.index(name)
    return sorted({graph.op_names[c] for c in graph.consumers[graph.edge_producer == op]})


def tags(graph, phase):
    chosen = graph.phase == PHASES.index(phase)
    return {
        (graph.module_names[m], int(c)) for m, c in zip(graph.module[chosen], graph.module_call[chosen], strict=True)
    }


class Residual(nn.Module):
    """Calls one layer twice and has a skip connection, so weights and activations have several gradients."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8, bias=False)

    def forward(self, x):
        x = self.layer(x)
        return x + self.layer(x)


def test_two_layers_by_hand():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4, bias=False))
    graph = capture(model, torch.zeros(32, 8), total, optimizer="momentum", name="by hand")
    x, h, y, w0, w2, b0 = 4 * 32 * 8, 4 * 32 * 16, 4 * 32 * 4, 4 * 16 * 8, 4 * 4 * 16, 4 * 16
    one, two = 2 * 32 * 8 * 16, 2 * 32 * 16 * 4
    assert rows(graph) == [
        ("input", INPUT, "@0", "forward", 0, 0),
        ("0.weight", PARAMETER, "0@0", "forward", 0, 0),
        ("0.bias", PARAMETER, "0@0", "forward", 0, 0),
        ("0/addmm_0", "addmm", "0@0", "forward", one, b0 + x + w0 + h),
        ("1/relu_0", "relu", "1@0", "forward", 0, 2 * h),
        ("2.weight", PARAMETER, "2@0", "forward", 0, 0),
        ("2/mm_0", "mm", "2@0", "forward", two, h + w2 + y),
        ("loss/sum_0", "sum", "loss@0", "forward", 0, y + 4),
        # The first gradient is one number, expanded without a copy; autograd makes it for the loss's first node.
        ("2/bwd/ones_like_0", "ones_like", "2@0", "backward", 0, 4),
        ("2/bwd/mm_0", "mm", "2@0", "backward", two, 4 + h + w2),
        ("2/bwd/mm_1", "mm", "2@0", "backward", two, 4 + w2 + h),
        ("1/bwd/threshold_backward_0", "threshold_backward", "1@0", "backward", 0, 3 * h),
        ("0/bwd/mm_0", "mm", "0@0", "backward", one, h + x + w0),
        ("0/bwd/sum_0", "sum", "0@0", "backward", 0, h + b0),
        ("0.weight/momentum_update", "momentum_update", "0@0", "update", 0, 5 * w0),
        ("0.bias/momentum_update", "momentum_update", "0@0", "update", 0, 5 * b0),
        ("2.weight/momentum_update", "momentum_update", "2@0", "update", 0, 5 * w2),
    ]
    assert graph.name == "by hand"
    assert graph.parameter_bytes == graph.resident_bytes[:, OPTIMIZER].sum() == w0 + w2 + b0
    assert readers(graph, "0.weight") == ["0.weight/momentum_update", "0/addmm_0"]
    assert readers(graph, "1/relu_0") == ["1/bwd/threshold_backward_0", "2/bwd/mm_0", "2/mm_0"]
    assert graph.output_shapes[graph.op_names.index("0/addmm_0")] == ((32, 16),)
    assert graph.batch[graph.op_names.index("0/bwd/mm_0")] == 32
    together = graph.colocation[[graph.op_names.index(n) for n in ("0.weight", "0.weight/momentum_update")]]
    assert together[0] == together[1] >= 0


def test_gradients_are_summed_where_they_belong():
    graph = capture(Residual(), torch.zeros(4, 8), total)
    adds = {row[0]: row[2] for row in rows(graph) if row[1] == "add" and row[3] == "backward"}
    # One sum for the weight, on the weight's device; one for the first call's output, which its backward reads.
    weight_sum, activation_sum = readers(graph, "layer/bwd/mm_2")[0], readers(graph, "layer/bwd/mm_1")[0]
    assert set(adds) == {weight_sum, activation_sum}
    assert adds == {weight_sum: "layer@0", activation_sum: "layer@0"}
    assert readers(graph, weight_sum) == ["layer.weight/adam_update"]
    bound = [graph.op_names[i] for i in np.flatnonzero(graph.colocation >= 0)]
    assert sorted(bound) == sorted(["layer.weight", weight_sum, "layer.weight/adam_update"])
    assert {("layer", 0), ("layer", 1), ("", 0), ("loss", 0)} >= tags(graph, "forward") >= {("layer", 0), ("layer", 1)}
    assert tags(graph, "backward") == {("layer", 0), ("layer", 1)}


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 0), ("momentum", 1), ("rmsprop", 1), ("adam", 2)])
def test_optimizers(optimizer, states):
    graph = capture(nn.Linear(8, 4, bias=False), torch.zeros(2, 8), total, optimizer=optimizer)
    size = 4 * 8 * 4
    update = graph.op_names.index(f"weight/{optimizer}_update")
    assert graph.resident_bytes[:, OPTIMIZER].sum() == states * size
    assert graph.bytes_accessed[update] == (3 + 2 * states) * size


def test_a_tied_weight_is_one_parameter():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10, bias=False))
    model[1].weight = model[0].weight
    graph = capture(model, torch.zeros(4, 5, dtype=torch.int64), total)
    assert graph.parameter_bytes == 4 * 10 * 8
    assert [row[0] for row in rows(graph) if row[3] == "update"] == ["0.weight/adam_update"]
    assert {"0/embedding_0", "1/mm_0"} <= set(readers(graph, "0.weight"))


def test_an_embedding_is_charged_for_its_rows_and_its_gradient_for_the_table():
    graph = capture(nn.Embedding(1000, 8), torch.zeros(4, dtype=torch.int64), total)
    cost = {row[0]: row[5] for row in rows(graph)}
    indices, out, table = 8 * 4, 4 * 4 * 8, 4 * 1000 * 8
    assert cost["./embedding_0"] == indices + out + out
    assert cost["./bwd/embedding_dense_backward_0"] == 4 + indices + table + 2 * out


def test_a_bag_of_embeddings_is_charged_for_its_rows():
    graph = capture(nn.EmbeddingBag(1000, 8, mode="sum"), torch.zeros(4, 3, dtype=torch.int64), total)
    cost = {row[0]: row[5] for row in rows(graph)}
    table, twelve_rows = 4 * 1000 * 8, 12 * 4 * 8
    assert twelve_rows < cost["./_embedding_bag_0"] < 3 * twelve_rows
    assert table + 2 * twelve_rows < cost["./bwd/_embedding_bag_backward_0"] < table + 5 * twelve_rows


class SharedTable(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.table = nn.Embedding(1000, 8, **settings)

    def forward(self, x):
        return self.table(x) + self.table(x + 1)


def test_a_sparse_gradient_is_its_indices_and_values():
    graph = capture(SharedTable(sparse=True), torch.zeros(4, dtype=torch.int64), total)
    cost = {row[0]: row[5] for row in rows(graph)}
    indices, values = 8 * 8, 4 * 8 * 8  # of eight rows
    assert cost["table.weight/adam_update"] == indices + 7 * values
    assert max(cost.values()) == indices + 7 * values
    bound = {graph.op_names[i] for i in np.flatnonzero(graph.colocation >= 0)}
    assert bound == {"table.weight", "table.weight/adam_update", "table/bwd/cat_0", "table/bwd/cat_1"}
    bag = capture(nn.EmbeddingBag(1000, 8, mode="sum", sparse=True), torch.zeros(4, 3, dtype=torch.int64), total)
    update = bag.op_names.index("weight/adam_update")
    assert bag.bytes_accessed[update] == 12 * 8 + 7 * 12 * 8 * 4


def test_the_backward_of_a_grouped_convolution_is_twice_its_forward():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 3, padding=1, groups=4))
    graph = capture(model, torch.zeros(2, 8, 5, 5), total)
    flops = {row[0]: row[4] for row in rows(graph)}
    first, second = 2 * 2 * 8 * 25 * 9, 2 * 2 * 8 * 25 * 9 * 2
    assert flops["0/convolution_0"] == flops["0/bwd/convolution_backward_0"] == first
    assert flops["1/convolution_0"] == second
    assert flops["1/bwd/convolution_backward_0"] == 2 * second


def test_rows_of_products():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.Parameter(torch.zeros(3, 8, 8))
            self.conv = nn.Conv1d(3, 8, 1)

        def forward(self, x):  # [2, 3, 5, 8]
            y = torch.bmm(x[0], self.experts)
            scores = torch.bmm(y, x[0].transpose(1, 2))
            return scores.sum() + self.conv(x[:, :, 0]).sum()

    graph = capture(Products(), torch.zeros(2, 3, 5, 8), total)
    batch = dict(zip(graph.op_names, graph.batch.tolist(), strict=True))
    assert batch["./bmm_0"] == 5  # rows that one expert gets
    assert batch["./bmm_1"] == 3 * 5  # no weight in it
    assert batch["conv/convolution_0"] == batch["conv/bwd/convolution_backward_0"] == 2 * 8


def test_buffers_are_resident_and_their_updates_stay_with_them():
    graph = capture(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), torch.zeros(2, 3, 4, 4), total)
    resident = dict(zip(graph.op_names, graph.resident_bytes[:, CONSTANT].tolist(), strict=True))
    names = ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert [resident[name] for name in names] == [32, 32, 8]
    number = dict(zip(graph.op_names, graph.colocation.tolist(), strict=True))
    assert number["1.running_mean"] == number["1.running_var"] == number["1/native_batch_norm_0"] >= 0
    assert number["1.num_batches_tracked"] == number["1/add__0"] >= 0
    still = capture(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), torch.zeros(2, 3, 4, 4), training=False)
    assert (still.colocation == -1).all()


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x, scale):
        return {"logits": self.layer(x) * scale, "hidden": x}


def cross_entropy(output, labels):
    return F.cross_entropy(output["logits"], labels)


BATCH = torch.zeros(6, 8), torch.ones(6, 1), torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("batch", "loss", "names"),
    [
        (((BATCH[0], BATCH[1]), BATCH[2]), cross_entropy, ["input/0", "input/1", "target/0"]),
        ([[BATCH[0], BATCH[1]], BATCH[2]], cross_entropy, ["input/0", "input/1", "target/0"]),
        (({"x": BATCH[0], "scale": BATCH[1]}, BATCH[2]), cross_entropy, ["input/x", "input/scale", "target/0"]),
        ({"x": BATCH[0], "scale": BATCH[1]}, lambda out: out["logits"].sum(), ["input/x", "input/scale"]),
        ({"x": BATCH[0], "scale": 2.0}, lambda out: out["logits"].sum(), ["input/x"]),
        (((BATCH[0], BATCH[1]), {"y": BATCH[0]}), lambda out, t: (out["hidden"] - t["y"]).sum(), None),
    ],
)
def test_what_a_batch_may_be(batch, loss, names):
    if names is None:
        with pytest.raises(InputError, match="does not depend on any parameter"):
            capture(TwoInputs(), batch, loss)
        return
    graph = capture(TwoInputs(), batch, loss)
    assert sorted(row[0] for row in rows(graph) if row[1] == INPUT) == sorted(names)
    assert graph.flops.sum() == 2 * 2 * 6 * 8 * 4


def test_a_loss_module_and_a_tensor_that_is_input_and_target():
    model = nn.Linear(8, 8)
    x = torch.zeros(4, 8)
    graph = capture(model, (x, x), nn.MSELoss())
    assert [row[0] for row in rows(graph) if row[1] == INPUT] == ["input"]
    assert readers(graph, "input") == ["./addmm_0", "./bwd/mm_0", "loss/bwd/mse_loss_backward_0", "loss/mse_loss_0"]


@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: {"loss": v}, lambda v: SimpleNamespace(loss=v)])
def test_a_model_may_return_its_loss(wrap):
    class Own(nn.Linear):
        def forward(self, x):
            return wrap(super().forward(x).sum())

    assert capture(Own(8, 4), torch.zeros(2, 8)).total_flops == 2 * 2 * 2 * 8 * 4


def test_inference_has_no_backward_no_update_and_no_targets():
    model = nn.Sequential(nn.Linear(8, 4), nn.Dropout())
    graph = capture(model, (torch.zeros(2, 8), torch.zeros(2)), total, training=False)
    assert [row[0] for row in rows(graph)] == ["input", "0.weight", "0.bias", "0/addmm_0"]
    assert graph.resident_bytes.sum() == graph.parameter_bytes


def test_frozen_and_unused_parameters_have_no_update():
    model = nn.ModuleDict({"used": nn.Linear(8, 8), "frozen": nn.Linear(8, 8), "idle": nn.Linear(8, 8)})
    model["frozen"].requires_grad_(False)

    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts["frozen"](self.parts["used"](x))

    graph = capture(Uses(), torch.zeros(2, 8), total)
    updated = {row[0].split("/")[0] for row in rows(graph) if row[3] == "update"}
    assert updated == {"parts.used.weight", "parts.used.bias"}
    assert graph.parameter_bytes == 3 * 4 * (64 + 8)
    state = dict(zip(graph.op_names, graph.resident_bytes[:, OPTIMIZER].tolist(), strict=True))
    assert (state["parts.used.weight"], state["parts.frozen.weight"], state["parts.idle.weight"]) == (512, 0, 512)


def test_what_runs_without_gradients_has_no_backward():
    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = nn.Linear(8, 8)
            self.student = nn.Linear(8, 8)

        def forward(self, x):
            with torch.no_grad():
                wanted = self.teacher(x)
            return F.mse_loss(self.student(x), wanted)

    graph = capture(Teacher(), torch.zeros(4, 8))
    assert tags(graph, "backward") <= {("", 0), ("student", 0)}
    assert {row[0] for row in rows(graph) if row[3] == "update"} == {
        "student.weight/adam_update",
        "student.bias/adam_update",
    }
    assert graph.total_flops == 3 * 2 * 4 * 8 * 8  # teacher, student, the gradient of the student's weight


def test_products_of_int8():
    class Quantized(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.zeros(8, 16, dtype=torch.int8))

        def forward(self, x):
            return torch._int_mm(x, self.weight)

    graph = capture(Quantized(), torch.zeros(32, 8, dtype=torch.int8), training=False)
    product = graph.op_names.index("./_int_mm_0")
    assert (DTYPES[graph.dtype[product]], graph.flops[product]) == ("int8", 2 * 32 * 8 * 16)
    assert graph.bytes_accessed[product] == 32 * 8 + 8 * 16 + 4 * 32 * 16
    assert graph.batch[product] == 32


def test_a_checkpoint_is_computed_again_in_the_backward():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2))

        def forward(self, x):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    graph = capture(Blocks(), torch.zeros(4, 8), total)
    again = [row[:3] for row in rows(graph) if row[3] == "backward" and row[1] in ("addmm", "relu")]
    assert again == [
        ("blocks.1.0/bwd/addmm_0", "addmm", "blocks.1.0@0"),
        ("blocks.1.1/bwd/relu_0", "relu", "blocks.1.1@0"),
        ("blocks.0.0/bwd/addmm_0", "addmm", "blocks.0.0@0"),
        ("blocks.0.1/bwd/relu_0", "relu", "blocks.0.1@0"),
    ]
    assert "constant" not in "".join(graph.op_names)
    assert {"blocks.1.0/addmm_0", "blocks.1.0/bwd/addmm_0"} <= set(readers(graph, "blocks.1.0.weight"))


class Odd(nn.Module):
    """Holds a tensor in a plain attribute and does what it is told with the output of a layer."""

    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.plain = torch.ones(8)
        self.flag = torch.tensor(True)
        self.seen = None
        self.function = function

    def forward(self, x):
        return self.function(self, self.layer(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda self, y: y * self.plain,
        lambda self, y: y * self.plain.to("cuda"),
        lambda self, y: y.cuda() * self.plain,
        lambda self, y: y * torch.ones(8, device="cuda"),
        lambda self, y: y * self.plain.to("meta"),
        lambda self, y: y * torch.tensor([1.0] * 8),
        lambda self, y: y * 2 if self.flag else None,
        lambda self, y: y * torch.tensor(3.0).item(),
    ],
)
def test_constants_and_devices_in_a_model(function):
    graph = capture(Odd(function), torch.zeros(4, 8), total)
    kinds = [row[1] for row in rows(graph)]
    assert kinds.count("mul") == 2
    assert "_to_copy" not in kinds


def test_a_plain_tensor_is_one_constant():
    graph = capture(Odd(lambda self, y: y * self.plain + self.plain), torch.zeros(4, 8), total)
    constants = [i for i, name in enumerate(graph.op_names) if name.startswith("constant/")]
    assert graph.resident_bytes[constants, CONSTANT].tolist() == [32]


def test_dtypes_and_batch():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to(torch.bfloat16)
    graph = capture(model, torch.zeros(4, 3, 8, dtype=torch.bfloat16), total)
    assert {DTYPES[i] for i in graph.dtype} == {"bfloat16"}
    assert graph.parameter_bytes == 2 * 2 * (64 + 8)
    products = [i for i in range(graph.num_ops) if graph.flops[i]]
    assert {int(graph.batch[i]) for i in products} == {12}  # 4 x 3 rows, forward, backward and weight gradient
    with_autocast = Odd(lambda self, y: torch.autocast("cpu", torch.bfloat16)(F.linear)(y, self.layer.weight))
    graph = capture(with_autocast, torch.zeros(4, 8), total)
    assert DTYPES[graph.dtype[graph.op_names.index("./mm_0")]] == "bfloat16"


def test_the_same_model_gives_the_same_bytes_wherever_it_is():
    here = capture(Residual(), torch.zeros(4, 8), total)
    with torch.device("meta"):
        nowhere = capture(Residual(), torch.zeros(4, 8), total)
    assert here.sha256 == nowhere.sha256


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    def remember(self, y):
        self.seen = y
        self.plain = y
        if fails:
            raise ValueError("no")
        return self.norm(y)

    model = Odd(remember)
    model.norm = nn.BatchNorm1d(8).eval()
    model.train()
    model.norm.eval()
    generator = torch.get_rng_state()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = model.plain
    if fails:
        with pytest.raises(InputError, match="ValueError: no"):
            capture(model, torch.zeros(4, 8), total)
    else:
        capture(model, torch.zeros(4, 8), total)
        capture(model, torch.zeros(4, 8), training=False)
    assert (model.training, model.layer.training, model.norm.training) == (True, True, False)
    assert model.seen is None
    assert model.plain is plain
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_grad_enabled()
    total(model.layer(torch.ones(4, 8))).backward()
    assert model.layer.weight.grad is not None


class Moded(nn.Sequential):
    """Modules whose ops tell their mode, at two depths."""

    def __init__(self):
        inner = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(8))
        super().__init__(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), inner)


def modules_in_training(graph):
    """Those that draw random numbers or count a batch."""
    made = {row[2].split("@")[0] for row in rows(graph) if row[1] in ("bernoulli_", "add_", "native_dropout")}
    return made - {""}


@pytest.mark.parametrize("in_evaluation", [[], ["1"], ["2"], ["3"], ["1", "3"], ["3.0"], ["3.1", "2"]])
@pytest.mark.parametrize("as_a_whole", [True, False])
def test_each_module_keeps_its_mode(in_evaluation, as_a_whole):
    model = Moded()
    model.training = as_a_whole
    for path in in_evaluation:
        model.get_submodule(path).eval()
    modes = [module.training for module in model.modules()]
    graph = capture(model, torch.zeros(4, 8), total)
    expected = {path for path in ("1", "2", "3.0", "3.1") if model.get_submodule(path).training}
    assert modules_in_training(graph) == expected
    assert modules_in_training(capture(model, torch.zeros(4, 8), training=False)) == set()
    assert [module.training for module in model.modules()] == modes


def test_a_model_in_evaluation_mode_as_a_whole_is_trained_in_training_mode():
    assert modules_in_training(capture(Moded().eval(), torch.zeros(4, 8), total)) == {"1", "2", "3.0", "3.1"}


def test_a_frozen_batch_norm_computes_from_its_own_statistics():
    frozen, free = Moded(), Moded()
    frozen[1].eval()
    statistics = {}
    for key, model in (("frozen", frozen), ("free", free)):
        graph = capture(model, torch.zeros(4, 8), total)
        statistics[key] = graph.colocation[graph.op_names.index("1.running_mean")]
    assert statistics["frozen"] == -1 < statistics["free"]


def test_gradients_switched_off_around_the_capture_do_not_matter():
    with torch.no_grad():
        graph = capture(Residual(), torch.zeros(4, 8), total)
    with torch.inference_mode():
        assert capture(Residual(), torch.zeros(4, 8), total).sha256 == graph.sha256


class PackedLinear(nn.Module):
    """As PyTorch's own quantization leaves a layer: its weights are no parameter and no buffer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()
        self.inner._packed_params = object()

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("model", "batch", "loss", "message"),
    [
        (Odd(lambda s, y: y * y.sum().item()), torch.zeros(4, 8), total, "looks at a tensor's value (.item(), bool()"),
        (Odd(lambda s, y: y if y.sum() > 0 else -y), torch.zeros(4, 8), total, "looks at a tensor's value"),
        (Odd(lambda s, y: y[y > 0]), torch.zeros(4, 8), total, "depends on values (a boolean mask"),
        (Odd(lambda s, y: y @ y), torch.zeros(4, 8), total, "cannot be traced: RuntimeError:"),
        (nn.Linear(8, 8), torch.zeros(4, 8), lambda out: out, "must be a tensor of one number, not [4, 8]"),
        (nn.Linear(8, 8), torch.zeros(4, 8), None, "no loss was given and the model's output is not one"),
        (nn.Linear(8, 8), torch.zeros(4, 8), lambda out: torch.zeros(()), "does not depend on any parameter"),
        (nn.Bilinear(8, 8, 8), (BATCH[0], BATCH[0]), total, "with inputs a tuple for several arguments"),
        (nn.Linear(8, 8), (), total, "the example batch is an empty tuple"),
        (nn.ReLU(), torch.zeros(4, 8), total, "no parameter of model 'ReLU' requires a gradient"),
        (nn.LazyLinear(8), torch.zeros(4, 8), total, "has not initialised 'weight' yet"),
        (Odd(lambda s, y: y.to_sparse()), torch.zeros(4, 8), total, "how many entries the sparse result of _to_sparse"),
        (Odd(lambda s, y: checkpoint(s.layer, y, use_reentrant=True)), torch.zeros(4, 8), total, "use_reentrant=False"),
        (Odd(lambda s, y: y * y.detach().numpy().max()), torch.zeros(4, 8), total, "only shapes are known"),
        (PackedLinear(), torch.zeros(4, 8), total, "keeps the weights of 'inner' packed by a quantization backend"),
        (total, torch.zeros(4, 8), total, "the model must be a torch.nn.Module, not function"),
    ],
)
def test_what_cannot_be_captured_is_refused_in_one_sentence(model, batch, loss, message):
    with pytest.raises(InputError) as error:
        capture(model, batch, loss)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_optimizer():
    with pytest.raises(InputError, match=r"unknown optimizer 'adm' \(did you mean 'adam'\?\)"):
        capture(nn.Linear(8, 8), torch.zeros(4, 8), total, optimizer="adm")
