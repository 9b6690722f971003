"""One process of a pipeline, started by torchrun: trains models in stages and compares with one process.

Arguments: the cases, ``model/order/micro-batches/stage,stage,...`` where a stage is ``rank:module+module``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

import placement
from envs.pipelines.orders import Action, Order
from graphs.errors import InputError
from placement.exports.stages import Stage, Stages

BATCH = 8


class Block(nn.Module):
    def __init__(self, width: int, *, causal: bool, norm_first: bool) -> None:
        super().__init__()
        self.causal, self.norm_first = causal, norm_first
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        made = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(made.transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.norm_first:
            x = x + self.attend(self.norm(x))
            return x + self.mlp(self.norm2(x))
        x = self.norm(x + self.attend(x))
        return self.norm2(x + self.mlp(x))


class Words(nn.Module):
    def __init__(self, *, causal: bool, tied: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.embed, self.places = nn.Embedding(40, 16), nn.Embedding(6, 16)
        self.blocks = nn.ModuleList(Block(16, causal=causal, norm_first=causal) for _ in range(4))
        self.head = nn.Linear(16, 40 if causal else 3)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.places(torch.arange(6, device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(x) if self.causal else self.head(x[:, 0])


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


class Masked(nn.Module):
    """What every layer reads is made once: a mask of an input, angles of a buffer. It returns a dict."""

    rates: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rates", torch.linspace(0.1, 1, 16), persistent=False)
        self.embed, self.head = nn.Embedding(40, 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(Block(16, causal=False, norm_first=True) for _ in range(4))

    def forward(self, mask: torch.Tensor, ids: torch.Tensor, *, scale: float = 1.0) -> dict[str, torch.Tensor]:
        kept = mask[..., None] * scale
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * self.rates
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x * kept + angles.cos())
        return {"hidden": x, "scores": self.head(x.mean(1))}


class Normed(nn.Module):
    """Statistics of micro-batches, in buffers that are written."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        return self.head(x.mean((2, 3)))


def masked_loss(output: dict[str, torch.Tensor], target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    each = nn.functional.cross_entropy(output["scores"], target, reduction="none")
    return (each * weight).mean() + output["hidden"].square().mean() / 100


def make(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    if name == "masked":
        inputs = {"ids": torch.randint(0, 40, (BATCH, 6)), "mask": torch.rand(BATCH, 6), "scale": 0.5}
        return Masked(), (inputs, torch.randint(0, 3, (BATCH,)), torch.rand(BATCH))
    if name == "normed":
        return Normed(), (torch.randn(BATCH, 3, 8, 8), torch.randint(0, 3, (BATCH,)))
    if name == "conv":
        return Pictures(), (torch.randn(BATCH, 3, 8, 8), torch.randint(0, 3, (BATCH,)))
    ids = torch.randint(0, 40, (BATCH, 6))
    gpt = name in ("gpt", "tied")
    return Words(causal=gpt, tied=name == "tied"), (ids, ids.roll(-1, 1) if gpt else torch.randint(0, 3, (BATCH,)))


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())


def stages_of(case: str) -> Stages:
    name, order, micro_batches, rows = case.split("/")
    stages = [Stage(int(rank), tuple(paths.split("+"))) for rank, paths in (row.split(":") for row in rows.split(","))]
    ranks = max(stage.rank for stage in stages) + 1
    count, actions = int(micro_batches), None
    if order == "list":  # all forward passes by micro-batch, then the backward passes of the last stage first
        lists: list[list[str]] = [[] for _ in range(ranks)]
        for m in range(count):
            for s, stage in enumerate(stages):
                lists[stage.rank].append(str(Action(s, 0, m)))
        for m in range(count):
            for s in reversed(range(len(stages))):
                lists[stages[s].rank] += [str(Action(s, kind, m)) for kind in ((2, 3) if s else (1,))]
        actions = tuple(map(tuple, lists))
    return Stages(
        graph=name, cluster="cpus", ranks=tuple(f"cpu:{i}" for i in range(ranks)), stages=tuple(stages),
        order=cast(Order, order), batch=BATCH, micro_batches=count, actions=actions,
    )  # fmt: skip


def in_one_process(model: nn.Module, batch: Any, loss_of: Callable[..., torch.Tensor], parts: int) -> torch.Tensor:
    """The mean loss of all micro-batches, whose gradients are added to those of the model."""
    total = torch.zeros(())
    for part in range(parts):

        def own(tensor: torch.Tensor, part: int = part) -> torch.Tensor:
            return tensor.chunk(parts)[part]

        inputs, *targets = tree_map_only(torch.Tensor, own, batch)
        value = loss_of(model(**inputs) if isinstance(inputs, dict) else model(inputs), *targets) / parts
        value.backward()
        total += value.detach()
    return total


def check(case: str) -> None:
    name, _, parts, _ = case.split("/")
    plain, batch = make(name)
    loss_of = masked_loss if name == "masked" else loss
    expected = in_one_process(plain, batch, loss_of, int(parts))
    model, _ = make(name)
    if case.startswith("tied") and int(os.environ["RANK"]) == 1:
        nn.init.zeros_(cast(torch.Tensor, model.embed.weight))  # type: ignore[union-attr]
    forward = [module.__dict__.get("forward") for module in model.modules()]
    pipe = placement.pipeline(model, stages_of(case), batch, loss_of, timeout_s=60)
    assert forward == [module.__dict__.get("forward") for module in model.modules()]
    if case.startswith("tied") and pipe.rank:
        for parameter in pipe.parameters():  # what another process holds as well is taken from there
            if parameter is model.embed.weight:  # type: ignore[union-attr]
                torch.testing.assert_close(parameter, plain.embed.weight)  # type: ignore[union-attr]
    mine = {id(parameter) for parameter in pipe.parameters()}
    for steps in (1, 2):  # gradients are added up
        got = pipe.step(batch)
        if got is not None:
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        compared = 0
        for (name, parameter), reference in zip(model.named_parameters(), plain.parameters(), strict=True):
            if id(parameter) in mine:
                assert parameter.grad is not None, name
                assert reference.grad is not None
                torch.testing.assert_close(parameter.grad, steps * reference.grad, rtol=0, atol=steps * 1e-5, msg=name)
                compared += 1
            else:
                assert parameter.grad is None, name
    if name == "masked":
        with (
            torch.autocast("cpu"),
            pytest.raises(InputError, match="autocast off, but step is called with it to"),
        ):
            pipe.step(batch)
    if name == "normed":  # each process has written the statistics of its stages, in the model's own buffers
        in_one_process(plain, batch, loss_of, int(parts))
        own = {module for stage in stages_of(case).stages if stage.rank == pipe.rank for module in stage.modules}
        for path, buffer in model.named_buffers():
            if path.rpartition(".")[0] in own:
                torch.testing.assert_close(buffer, plain.get_buffer(path), msg=path)
    print(f"rank {pipe.rank} agrees in {compared} parameters on {case}", flush=True)


def die_in_step() -> None:
    """End this process, without a word, when it first computes its stage."""
    from torch.distributed.pipelining import schedules  # slow to load

    schedules.Schedule1F1B.step = lambda *_, **__: os._exit(3)  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for given in sys.argv[1:]:
        if given == "--die":
            die_in_step()
        elif given != "--live":
            check(given)
    torch.distributed.destroy_process_group()
