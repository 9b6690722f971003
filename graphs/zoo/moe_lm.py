"""A language model whose feed-forward layers are sparsely gated experts, each a module that can be placed by itself.

Shazeer et al.: "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer" (2017),
https://arxiv.org/abs/1701.06538, in every block of a transformer. Which tokens meet which expert is decided by the
experts: each takes the tokens that score best with it, always as many (Zhou et al.: "Mixture-of-Experts with Expert
Choice Routing" (2022), https://arxiv.org/abs/2202.09368, section 3.2). So shapes do not depend on values, and no expert
waits for a fuller one. (An expert then sees later tokens before it chooses; a model that generates text would route by
token.) Letters: ``N`` tokens of all sequences, ``E`` experts, ``C`` tokens an expert takes, ``H`` hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphs.errors import InputError
from graphs.zoo.transformer_lm import Block, FeedForward, TransformerLM, check_heads, make_batch


class Router(nn.Module):
    """Chooses the tokens of each expert."""

    def __init__(self, hidden: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, experts, bias=False)

    def forward(self, tokens: Tensor, each: int) -> tuple[Tensor, Tensor]:
        """``[N, H]`` -> numbers of the chosen tokens ``[E * C]`` and their weights ``[E * C, 1]``, expert by expert."""
        scores = F.softmax(self.gate(tokens), dim=1)  # [N, E]
        weights, chosen = scores.t().topk(each, dim=1)  # [E, C]
        return chosen.flatten(), weights.flatten().unsqueeze(1)


class Experts(nn.Module):
    """Sends each expert its tokens, and adds what they make of them at the tokens' places."""

    def __init__(self, hidden: int, experts: int, experts_a_token: int) -> None:
        super().__init__()
        self.experts_a_token = experts_a_token
        self.router = Router(hidden, experts)
        self.experts = nn.ModuleList(FeedForward(hidden) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H]`` -> ``[B, T, H]``."""
        tokens = x.flatten(0, 1)  # [N, H]
        each = len(tokens) * self.experts_a_token // len(self.experts)
        chosen, weights = self.router(tokens, each)
        # One gather and slices of it, not a gather an expert: so only an expert's own tokens travel to its device.
        parts = tokens.index_select(0, chosen).chunk(len(self.experts))  # E of [C, H]
        made = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])  # [E * C, H]
        return torch.zeros_like(tokens).index_add(0, chosen, made * weights).view_as(x)


def make(sizes: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model and an example batch; without targets when not training."""
    hidden, heads, experts, met = sizes["hidden"], sizes["heads"], sizes["experts"], sizes["experts_a_token"]
    check_heads("moe_lm", hidden, heads)
    tokens = sizes["batch"] * sizes["length"]
    if met > experts or tokens * met < experts:
        raise InputError(
            f"workload 'moe_lm': experts_a_token={met} with experts={experts} and {tokens} tokens leaves "
            f"{'more tokens than there are' if met > experts else 'no token'} for an expert"
        )
    blocks = [Block(hidden, heads, Experts(hidden, experts, met)) for _ in range(sizes["layers"])]
    return TransformerLM(sizes["vocabulary"], sizes["length"], hidden, blocks), make_batch(sizes)
