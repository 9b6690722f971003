"""One process of a pipeline, started by torchrun: trains models in stages and compares with one process.

Arguments: the cases, ``model/order/micro-batches/stage,stage,...`` where a stage is ``rank:module+module``.
"""

from __future__ import annotations

import os
import sys
from typing import cast

import torch
from torch import nn

import placement
from envs.pipelines.orders import Action, Order
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


def make(name: str) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
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


def check(case: str) -> None:
    plain, batch = make(case.split("/")[0])
    expected = loss(plain(batch[0]), batch[1])
    expected.backward()
    model, _ = make(case.split("/")[0])
    if case.startswith("tied") and int(os.environ["RANK"]) == 1:
        nn.init.zeros_(cast(torch.Tensor, model.embed.weight))  # type: ignore[union-attr]
    forward = [module.__dict__.get("forward") for module in model.modules()]
    pipe = placement.pipeline(model, stages_of(case), batch, loss, timeout_s=60)
    assert forward == [module.__dict__.get("forward") for module in model.modules()]
    if case.startswith("tied") and pipe.rank:
        for parameter in pipe.parameters():  # what another process holds as well is taken from there
            if parameter is model.embed.weight:  # type: ignore[union-attr]
                torch.testing.assert_close(parameter, plain.embed.weight)  # type: ignore[union-attr]
    mine = {id(parameter) for parameter in pipe.parameters()}
    for steps in (1, 2):  # gradients are added up
        got = pipe.step(batch)
        if got is not None:
            torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1e-5)
        compared = 0
        for (name, parameter), reference in zip(model.named_parameters(), plain.parameters(), strict=True):
            if id(parameter) in mine:
                assert parameter.grad is not None, name
                assert reference.grad is not None
                torch.testing.assert_close(parameter.grad, steps * reference.grad, rtol=0, atol=steps * 1e-5, msg=name)
                compared += 1
            else:
                assert parameter.grad is None, name
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
