"""The pretrained policy in torch, where it learns; with the same weights `placement.pretrained.decode` answers.

A sequence-to-sequence policy: an encoder reads the groups of a problem with attention between all of them, a decoder
gives each in turn a device. It attends to the groups before it, by where these stand, and scores each device by what
the partial placement means there. No feature knows a device by its name or number, so the same weights serve any number
of devices, and devices that are alike may change names.

References:
    Mirhoseini et al., ICML 2017, arXiv 1706.04972: sequence to sequence with attention, REINFORCE.
    Zhou et al., "GDP", 2019, arXiv 1910.01578: one policy for many graphs.

Letters: ``B`` placements, ``G`` groups, ``D`` devices, ``F`` features of a device, ``A`` heads of attention.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from placement.pretrained.decode import Decoded
from placement.pretrained.features import Known
from placement.pretrained.network import Encoded, Weights, encode, shapes

MASKED = -1e9
"""Logit of a device where the group may not be: finite, so that entropies stay finite."""


class PretrainedPolicy(torch.nn.Module):
    """The weights as parameters.

    Args:
        weights: By name, as of `placement.pretrained.network.initial` or `load`.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        # A name with a dot would be a module's.
        self._parameters_by_name = torch.nn.ParameterDict(
            {name.replace(".", "_"): torch.nn.Parameter(torch.from_numpy(weights[name].copy())) for name in shapes()}
        )

    @property
    def by_name(self) -> Mapping[str, Tensor]:
        """The parameters by the weights' names."""
        return {name: self._parameters_by_name[name.replace(".", "_")] for name in shapes()}

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the weights as they are now."""
        return {name: tensor.detach().numpy().copy() for name, tensor in self.by_name.items()}

    def encode(self, known: Known) -> Encoded:
        """Read a problem, with gradient."""
        return encode(self.by_name, torch.from_numpy(known.groups), torch.from_numpy(known.pairs), library=torch)

    def score(self, encoded: Encoded, decoded: Decoded) -> Tensor:
        """Log-probabilities of every device at every step, ``float32[B, G, D]``, given the devices chosen before.

        Args:
            encoded: From `encode`, with the weights that decoded, or later ones.
            decoded: With what was seen.
        """
        weights = self.by_name
        x = torch.from_numpy(decoded.x)  # [B, G, D, F]
        mask = torch.from_numpy(decoded.mask)
        stands = torch.nn.functional.one_hot(torch.from_numpy(decoded.placements), x.shape[2]).float()  # [B, G, D]
        attended = torch.einsum("agj,bjd->bgda", encoded.attention.float(), stands)  # [B, G, D, A]
        hidden = x @ weights["into"] + attended @ weights["into_attention"] + encoded.base[None, :, None]
        hidden = torch.relu(torch.relu(hidden) @ weights["middle"] + weights["middle_bias"])
        logits = hidden @ weights["out"] + x @ weights["skip"] + attended @ weights["skip_attention"]
        return torch.log_softmax(logits.masked_fill(~mask, MASKED), dim=-1)


def chosen(log_probabilities: Tensor, placements: NDArray[np.integer]) -> Tensor:
    """``float32[B, G]``: the log-probabilities, ``float32[B, G, D]``, of the devices ``int64[B, G]``."""
    index = torch.from_numpy(np.asarray(placements, dtype=np.int64))[:, :, None]
    return log_probabilities.gather(2, index)[:, :, 0]


def entropy(log_probabilities: Tensor) -> Tensor:
    """``float32[B, G]``: nats; devices where a group may not be add nothing."""
    return -(log_probabilities.exp() * log_probabilities).sum(dim=2)
