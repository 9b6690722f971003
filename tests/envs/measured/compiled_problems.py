"""Small models whose steps are compiled in the tests: with random numbers, buffers, writes in place and recurrence."""

import torch
from torch import nn
from torch.nn import functional as F


class Mixed(nn.Module):
    """Norms with buffers, dropout, attention, and writes in place into new memory."""

    seen: torch.Tensor

    def __init__(self, drop: float = 0.25) -> None:
        super().__init__()
        self.inner, self.batch, self.layer = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.LayerNorm(16)
        self.query, self.out, self.drop = nn.Linear(16, 16), nn.Linear(16, 4), nn.Dropout(drop)
        self.register_buffer("seen", torch.zeros(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.drop(F.gelu(self.batch(self.inner(x))))
        with torch.no_grad():
            self.seen.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
        weights = torch.softmax(self.query(y) @ y.t() / 4, dim=-1)
        z = self.layer(y + weights @ y)
        marked = torch.zeros_like(z)
        marked[:, :8] = z[:, 8:]
        marked[:, 8:] += torch.tanh(z[:, :8])
        return self.out(self.drop(marked).relu_())


class Recurrent(nn.Module):
    """A cell that is unrolled, so that slices and transposes are everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.out = nn.Embedding(11, 8), nn.LSTMCell(8, 8), nn.Linear(8, 11)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        words = self.embed(tokens)
        state: tuple[torch.Tensor, torch.Tensor] | None = None
        found = []
        for position in range(tokens.shape[1]):
            state = self.cell(words[:, position], state)
            found.append(self.out(state[0]))
        return torch.stack(found, dim=1).flatten(0, 1)


class Convolutions(nn.Module):
    """Convolutions with batch norms, of which some memory is laid out with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)
        self.out = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm(self.first(x.contiguous(memory_format=torch.channels_last))), inplace=True)
        y = torch.cat([self.left(y), F.avg_pool2d(self.right(y), 3, 1, 1)], dim=1)
        return self.out(F.max_pool2d(y, 2).mean((2, 3)))


class Small(nn.Module):
    """One layer, a buffer that is written in place, and a slice."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.layer(x))
        with torch.no_grad():
            self.seen.mul_(0.9).add_(y.detach().mean(0))
        return y[:, :4] * torch.sigmoid(y[:, 4:]) + self.seen[:4]


def problem(name: str) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A model, and a batch with targets for a cross entropy."""
    torch.manual_seed(0)
    if name == "small":
        return Small(), (torch.randn(6, 8), torch.randint(4, (6,)))
    if name == "mixed":
        return Mixed(), (torch.randn(6, 8), torch.randint(4, (6,)))
    if name == "recurrent":
        return Recurrent(), (torch.randint(11, (3, 4)), torch.randint(11, (12,)))
    return Convolutions(), (torch.randn(2, 3, 8, 8), torch.randint(4, (2,)))


def make() -> dict[str, object]:
    """For ``python:tests.envs.measured.compiled_problems:make``."""
    model, batch = problem("mixed")
    return {"model": model, "example_batch": batch, "loss": F.cross_entropy, "optimizer": "sgd"}
