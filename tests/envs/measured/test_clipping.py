"""Gradients that are clipped by their norm: the numbers are those of ``torch.nn.utils.clip_grad_norm_``."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from envs.clusters.catalog import load_cluster
from envs.measured.plain import make_plain_step
from envs.pipelines.cuts import find_segments
from envs.problem import PlacementProblem
from graphs.capture import capture, capture_program
from graphs.colocation.rules import colocate
from graphs.computation_graph import PARAMETER, PHASES, ComputationGraph
from graphs.errors import InputError
from graphs.microbatch import microbatch
from graphs.replicate import replicate
from tests.envs.measured import measured_problems as steps
from tests.envs.measured.measured_problems import run_placed, two_cores

STEPS = 3
UPDATE = PHASES.index("update")


class Words(nn.Module):
    """Tied weights, a frozen layer, one that is never called, and a parameter that is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(12, 6), nn.Linear(6, 6), nn.Linear(6, 12)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.frozen, self.unused = nn.Linear(6, 6).requires_grad_(False), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.frozen(torch.tanh(self.body(self.embed(x)))) * self.scale
        return self.head(hidden).flatten(0, 1)


class Pictures(nn.Module):
    """Convolutions and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean((2, 3))


class Twice(nn.Module):
    """Two parameters whose gradient is the same tensor, and one in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.ones(5)), nn.Parameter(torch.zeros(5))
        self.low = nn.Parameter(torch.ones(5, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((self.one + self.two) * x).sum(1) * (self.low * self.low).float().sum()


def words() -> tuple[nn.Module, Any, Callable[..., torch.Tensor]]:
    return Words(), (torch.arange(8).view(2, 4) % 12, torch.arange(8) % 5), F.cross_entropy


def pictures() -> tuple[nn.Module, Any, Callable[..., torch.Tensor]]:
    return Pictures(), (torch.randn(4, 2, 8, 8), torch.tensor([0, 1, 2, 0])), F.cross_entropy


def twice() -> tuple[nn.Module, Any, Callable[..., torch.Tensor]]:
    return Twice(), (torch.randn(3, 5), torch.ones(3)), F.mse_loss


MADE = (words, pictures, twice)


def eager(made: tuple[nn.Module, Any, Any], optimizer: str, clip: float | None) -> tuple[list[float], nn.Module]:
    """Losses and the model after some steps, by PyTorch itself, without fused kernels."""
    model, (x, target), loss = made
    kinds = {"sgd": torch.optim.SGD, "momentum": torch.optim.SGD, "adam": torch.optim.Adam}
    more = {"momentum": 0.9, "lr": 1e-3} if optimizer == "momentum" else {}
    updating = kinds[optimizer](model.parameters(), **more)
    losses = []
    for _ in range(STEPS):
        updating.zero_grad()
        found = loss(model(x), target)
        found.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        updating.step()
        losses.append(float(found.detach()))
    return losses, model


def copies(make: Callable[[], tuple[nn.Module, Any, Any]], count: int) -> list[tuple[nn.Module, Any, Any]]:
    torch.manual_seed(0)
    model, batch, loss = make()
    return [(steps.copied(model), batch, loss) for _ in range(count)]


@two_cores
@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize(("optimizer", "clip"), [("momentum", 0.1), ("adam", 1e-6), ("sgd", 1e6)])
def test_numbers_are_those_of_torch(make: Callable[[], Any], optimizer: str, clip: float) -> None:
    one, many, plain, other, unclipped = copies(make, 5)
    losses, wanted = eager(other, optimizer, clip)
    program = capture_program(*one, optimizer=optimizer, clip_grad_norm=clip)
    placements = steps.random_placements(program, STEPS + 1, seed=len(optimizer))
    for (model, batch, loss), chosen in ((one, placements[:1] * STEPS), (many, placements[1:])):
        found = run_placed(model, batch, chosen, loss=loss, optimizer=optimizer, clip_grad_norm=clip)
        assert [float(step.loss) for step in found if step.loss is not None] == pytest.approx(losses, rel=1e-5)
        steps.assert_same_tensors(model, wanted, tolerance=1e-6)
    step = make_plain_step(*plain, optimizer=optimizer, clip_grad_norm=clip)
    assert [float(step().detach()) for _ in range(STEPS)] == pytest.approx(losses, rel=1e-5)
    steps.assert_same_tensors(plain[0], wanted, tolerance=1e-6)
    _, free = eager(unclipped, optimizer, None)
    apart = max(
        float((a - b).abs().max().detach()) for a, b in zip(free.parameters(), wanted.parameters(), strict=True)
    )
    assert (apart > 1e-5) is (clip < 1)  # so that the clipping is what is compared


def _types(graph: ComputationGraph, chosen: np.ndarray) -> list[str]:
    return sorted(graph.type_names[graph.op_type[op]] for op in np.flatnonzero(chosen))


@pytest.mark.parametrize("make", MADE)
def test_the_graph_has_a_norm_and_a_product_for_each_parameter(make: Callable[[], Any]) -> None:
    model, batch, loss = make()
    plain, clipped = (capture(model, batch, loss, clip_grad_norm=clip) for clip in (None, 1.0))
    updates = (plain.phase == UPDATE).sum()
    added = _types(clipped, (clipped.phase == UPDATE) & ~clipped.is_type("adam_update"))
    assert added.count("mul") == updates + 1
    assert added.count("linalg_vector_norm") == updates + 1
    assert len(added) == clipped.num_ops - plain.num_ops == 2 * updates + 6
    assert clipped.total_flops == plain.total_flops
    # What is done with a gradient is with its parameter; the rest is small and adds no group.
    of = {int(clipped.colocation[op]): op for op in np.flatnonzero(clipped.is_type(PARAMETER))}
    heavy = np.flatnonzero((clipped.phase == UPDATE) & (clipped.bytes_accessed > 64))
    assert all(int(clipped.colocation[op]) in of for op in heavy)
    more = 6 if make is twice else 0  # in which every op is a notable share of all the work
    assert colocate(clipped).num_groups == colocate(plain).num_groups + more
    peaks = []
    for graph in (plain, clipped):
        problem = PlacementProblem(graph, colocate(graph), load_cluster("cpu_cores:1"))
        peaks.append(problem.evaluate_ops(np.zeros((1, graph.num_ops), dtype=np.int64)).peak_memory_bytes[0, 0])
    largest = max(p.numel() * p.itemsize for p in model.parameters())
    assert peaks[0] <= peaks[1] <= peaks[0] + largest + sum(p.itemsize for p in model.parameters()) + 64


@pytest.mark.parametrize("make", [words, pictures])
def test_micro_batches_are_clipped_once_after_their_sums(make: Callable[[], Any]) -> None:
    model, batch, loss = make()
    graph = capture(model, batch, loss, clip_grad_norm=1.0)
    micro = microbatch(graph, 2)
    after = micro.graph.phase == UPDATE
    whole = graph.phase == UPDATE
    assert _types(micro.graph, after) == _types(graph, whole)
    assert (micro.micro_batch[after] == -1).all()
    assert sorted(micro.graph.bytes_accessed[after]) == sorted(graph.bytes_accessed[whole])
    norms = after & micro.graph.is_type("linalg_vector_norm")
    reads = norms[micro.graph.consumers]
    made_by = {micro.graph.op_names[op] for op in micro.graph.edge_producer[reads]}
    gradients = {name for name in made_by if "stack" not in name}
    assert gradients
    # Of a tied weight the sum over both uses is what is clipped, and that reads the sums over micro-batches.
    assert all("/accumulate" in name or "bwd/add_" in name for name in gradients)


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(10, 4, mode="sum", sparse=True), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x))


def test_what_cannot_be_clipped_is_refused() -> None:
    x, target = torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(InputError, match=r"gradient of 'table\.weight' is sparse, .* leave clip_grad_norm out"):
        capture(Sparse(), (x, target), F.cross_entropy, clip_grad_norm=1.0)
    model, batch, loss = words()
    for wrong in (0, -1.0, float("nan"), float("inf"), True, "1"):
        with pytest.raises(InputError, match="give the largest norm that gradients keep"):
            capture(model, batch, loss, clip_grad_norm=wrong)  # type: ignore[arg-type]
    graph = capture(model, batch, loss, clip_grad_norm=1.0)
    with pytest.raises(InputError, match=r"\(clip_grad_norm\), so it cannot be replicated"):
        replicate(graph, 2)
    with pytest.raises(InputError, match=r"\(clip_grad_norm\), so it cannot be cut into stages by .* torch_pipeline"):
        find_segments(microbatch(graph, 2), load_cluster("k80x2"))
