"""The sequence-to-sequence policy: it reads the groups in program order and writes a device for each.

A bidirectional LSTM reads the groups; a decoder LSTM with content-based attention over the encoder is told the device
of the previous group (and, with the full features, of two more earlier groups) and scores every device by the product
of its output with the device's key. Keys and embeddings are made from the devices' features, so that one set of weights
serves any number of devices; the paper's learned embedding, one row a device of one cluster, is the other choice.

References:
    Mirhoseini et al., "Device Placement Optimization with Reinforcement Learning", ICML 2017, section 3,
    arXiv 1706.04972. Attention is Luong et al.'s (2015, arXiv 1508.04025, without input feeding) where the paper
    follows Bahdanau et al. (2015): with no attention fed back, the scores of all steps are one product of matrices.
    Vinyals et al., "Pointer Networks", 2015, arXiv 1506.03134, for logits as products with keys.

Letters: ``B`` placements in a batch, ``G`` groups, ``D`` devices, ``H`` hidden units, ``K`` context slots, ``F``
features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from placement.learning.attention import attend
from placement.learning.config import PolicyConfig
from placement.learning.features import FAMILY_BUCKETS, TYPE_BUCKETS, ProblemFeatures

MASKED = -1e9
"""Logit of a device that is not allowed: finite, so that entropies stay finite."""


@dataclass(frozen=True, eq=False)
class FeatureTensors:
    """`ProblemFeatures` as tensors, with what the decoder looks up at every step."""

    group: Tensor  # [G, F]
    type_share: Tensor  # [G, Y]
    family: Tensor  # [G]
    neighbours: Tensor  # [2, G, G], rows sum to 1 or 0: reads, read_by
    log_time_ratio: Tensor  # [G, D]
    devices: Tensor  # [D, F]
    mask: Tensor  # [G, D], 0 where allowed, MASKED elsewhere
    context: Tensor  # [K, G]


@dataclass(frozen=True, eq=False)
class Encoded:
    """One problem after the encoder: all that decoding needs, the same for every placement of a batch."""

    inputs: Tensor  # [G, H], the decoder's input but for the devices chosen so far
    chosen: Tensor  # [K, D + 1, H], what each slot adds to it for each device; row D where there is none yet
    hidden: Tensor  # [H], the decoder's first state
    cell: Tensor  # [H]
    attention_keys: Tensor  # [H, G], the decoder's state times this scores the groups
    attention_values: Tensor  # [G, H], what attending to a group adds to the decoder's output
    device_keys: Tensor  # [H, D]
    bias: Tensor  # [G, D], the mask and what a group's time on a device says
    context: Tensor  # [K, G]


class Seq2SeqPolicy(nn.Module):
    """Probabilities of placements, one device after the other.

    Args:
        features: Of the problem that it is made for; only their widths are kept.
        config: Sizes, and which features it reads; `PolicyConfig.hidden_size` is ``H``.
        generator: Source of the initial weights, uniform within ``+-1/sqrt(fan in)``.
    """

    def __init__(
        self,
        features: ProblemFeatures,
        *,
        config: PolicyConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        paper, hidden_size, embedding_size = config.paper, config.hidden_size, config.embedding_size
        self.paper = paper
        self.hidden_size = hidden_size
        num_slots = 1 if paper else len(features.context)
        width = embedding_size + _tensors(features, paper).group.shape[1] + (0 if paper else 3 * embedding_size)
        device_width = features.num_devices if paper else features.devices.shape[1]
        # On "meta" nothing is drawn from torch's global generator; `_initialise` draws from ours.
        with torch.device("meta"):
            self.type_embedding = nn.Linear(TYPE_BUCKETS, embedding_size, bias=False)
            # Given, it is not drawn: that would load torch's compiler, which takes seconds.
            self.family_embedding = nn.Embedding.from_pretrained(
                torch.empty(FAMILY_BUCKETS, embedding_size), freeze=False
            )
            self.reader = nn.Linear(width, hidden_size)
            self.encoder = nn.LSTM(hidden_size, hidden_size, bidirectional=True, batch_first=True)
            self.decoder = nn.LSTM(hidden_size, hidden_size, batch_first=True)
            self.decoder_input = nn.Linear(2 * hidden_size + hidden_size, hidden_size)
            self.first_hidden = nn.Linear(2 * hidden_size, hidden_size)
            self.first_cell = nn.Linear(2 * hidden_size, hidden_size)
            self.attention_key = nn.Linear(2 * hidden_size, hidden_size, bias=False)
            self.attention_value = nn.Linear(2 * hidden_size, hidden_size, bias=False)
            self.output = nn.Linear(hidden_size, hidden_size)
            self.device_reader = nn.Linear(device_width, hidden_size)
            self.device_key = nn.Linear(hidden_size, hidden_size, bias=False)
            self.device_chosen = nn.Linear(hidden_size, num_slots * hidden_size, bias=False)
            self.none_chosen = nn.Parameter(torch.empty(num_slots, hidden_size))
            self.time_weight = nn.Parameter(torch.empty(1))
        self.to_empty(device="cpu")
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name == "time_weight":
                    parameter.zero_()
                elif name == "type_embedding.weight":
                    # Rows are averaged by shares that sum to 1: unit variance keeps types in sight of other features.
                    parameter.normal_(generator=generator)
                else:
                    fan_in = parameter.shape[-1] if parameter.dim() > 1 else self.hidden_size
                    bound = 1.0 / math.sqrt(fan_in)
                    parameter.uniform_(-bound, bound, generator=generator)

    def tensors(self, features: ProblemFeatures) -> FeatureTensors:
        """The features as this policy reads them."""
        return _tensors(features, self.paper)

    def encode(self, x: FeatureTensors) -> Encoded:
        """Read a problem; the result serves any number of placements until the weights change."""
        columns = [self.type_embedding(x.type_share), x.group]
        if not self.paper:
            # What the neighbours are, in place of the paper's one-hot rows, whose width is the graph's.
            types = columns[0]
            columns += [self.family_embedding(x.family), x.neighbours[0] @ types, x.neighbours[1] @ types]
        read = torch.tanh(self.reader(torch.cat(columns, dim=1)))  # [G, H]
        states, (last_hidden, last_cell) = self.encoder(read[None])  # [1, G, 2H], [2, 1, H]
        states = states[0]  # [G, 2H]
        devices = torch.tanh(self.device_reader(x.devices))  # [D, H]
        slots = self.none_chosen.shape[0]
        chosen = self.device_chosen(devices).view(-1, slots, self.hidden_size).transpose(0, 1)  # [K, D, H]
        return Encoded(
            inputs=self.decoder_input(torch.cat([states, read], dim=1)),
            chosen=torch.cat([chosen, self.none_chosen[:, None]], dim=1),
            hidden=torch.tanh(self.first_hidden(last_hidden.reshape(-1))),
            cell=self.first_cell(last_cell.reshape(-1)),
            attention_keys=self.attention_key(states).T / math.sqrt(self.hidden_size),
            attention_values=self.attention_value(states),
            device_keys=self.device_key(devices).T,
            bias=x.mask - self.time_weight * x.log_time_ratio,
            context=x.context,
        )

    def score(self, encoded: Encoded, placements: Tensor) -> Tensor:
        """Log-probabilities of every device at every step, given the placement's own devices before it.

        All steps at once (teacher forcing): the decoder's inputs are known, so it is one call of `torch.nn.LSTM` and
        one batched attention instead of ``G`` of each.

        Args:
            encoded: From `encode`.
            placements: ``int64[B, G]``.

        Returns:
            ``float32[B, G, D]``.
        """
        batch, groups = placements.shape
        devices = encoded.device_keys.shape[1]
        padded = torch.cat([placements, placements.new_full((batch, 1), devices)], dim=1)  # [B, G + 1]
        # What each slot adds, as a product with rows of zeros and ones: its gradient is a product, too. Index -1, "no
        # such group", finds the column that says "no device yet".
        slots = len(encoded.context)
        tokens = padded[:, encoded.context].permute(0, 2, 1) + torch.arange(slots) * (devices + 1)  # [B, G, K]
        ones = encoded.inputs.new_zeros(batch, groups, slots * (devices + 1)).scatter_(2, tokens, 1.0)
        inputs = encoded.inputs + ones @ encoded.chosen.reshape(slots * (devices + 1), -1)  # [B, G, H]
        first = (encoded.hidden.expand(1, batch, -1).contiguous(), encoded.cell.expand(1, batch, -1).contiguous())
        hidden, _ = self.decoder(inputs, first)  # [B, G, H]
        attended = attend(hidden, encoded.attention_keys, encoded.attention_values)  # [B, G, H]
        output = torch.tanh(self.output(hidden) + attended)  # [B, G, H]
        return torch.log_softmax(output @ encoded.device_keys + encoded.bias, dim=-1)

    @torch.no_grad()
    def sample(self, encoded: Encoded, gumbel: Tensor) -> Tensor:
        """Write placements device by device, without gradient: the argmax of logits plus Gumbel noise is a sample.

        Args:
            encoded: From `encode`.
            gumbel: ``float32[B, G, D]`` noise, see `gumbel_noise`; zeros in a row decode it greedily.

        Returns:
            ``int64[B, G]``.
        """
        batch, groups, devices = gumbel.shape
        slots = len(encoded.context)
        weight_ih, weight_hh, bias_ih, bias_hh = self.decoder.all_weights[0]  # [4H, H] and [4H], twice each
        # Input projections, folded ahead of the loop: gates of a step = rows of a table, summed, + the state's product.
        width = self.hidden_size
        # tanh(x) = 2 sigmoid(2x) - 1, and torch's sigmoid takes a fraction of its tanh's time: where a tanh follows,
        # weights are doubled here, and the results are kept as sigmoid(2x) - 1/2, half of what they stand for.
        double = torch.ones(4 * width)
        double[2 * width : 3 * width] = 2.0  # the candidate's gate
        gates_of_group = torch.addmm(bias_ih + bias_hh, encoded.inputs, weight_ih.T) * double  # [G, 4H]
        gates_of_chosen = (encoded.chosen @ weight_ih.T).reshape(slots * (devices + 1), -1) * double
        rows = torch.cat([gates_of_chosen, gates_of_group])  # [K * (D + 1) + G, 4H]
        # One product a step gives the attention's scores, the state's part of the output and of the next gates.
        folded = 2.0 * torch.cat([encoded.attention_keys, 2.0 * self.output.weight.T, weight_hh.T * double], dim=1)
        # Attention's weights sum to 1, so the output's bias may be part of every value.
        values = 2.0 * (encoded.attention_values + self.output.bias)
        device_keys = 2.0 * encoded.device_keys
        noisy_bias = (encoded.bias + gumbel - encoded.device_keys.sum(dim=0)).transpose(0, 1).contiguous()  # [G, B, D]
        placements = torch.full((groups + 1, batch), devices, dtype=torch.int64)  # the last row: no device yet
        rows_of_slots = torch.arange(slots)[:, None] * (devices + 1)
        # All of a step's results lie in the same place, and so do the views of them.
        gates, output = torch.empty(batch, 4 * width), torch.empty(batch, width)
        into, kept, candidate, shown = gates.chunk(4, dim=1)
        product = torch.empty(batch, folded.shape[1])
        scores, shown_state, recurrent = product.split([groups, width, 4 * width], dim=1)
        recurrent[:] = encoded.hidden @ weight_hh.T * double
        cell = 2.0 * encoded.cell.repeat(batch, 1)  # kept doubled
        half = torch.empty(batch, width)
        tokens = torch.empty(batch, slots + 1, dtype=torch.int64)
        tokens_of_slots, token_of_group = tokens.T[:slots], tokens.T[slots]
        for group, earlier in enumerate(encoded.context.T % (groups + 1)):
            torch.add(placements.index_select(0, earlier), rows_of_slots, out=tokens_of_slots)
            token_of_group.fill_(slots * (devices + 1) + group)
            torch.add(nn.functional.embedding_bag(tokens, rows, mode="sum"), recurrent, out=gates).sigmoid_()
            # 2c = f 2c + 4i (s - 1/2), and h / 2 = o (sigmoid(2c) - 1/2)
            cell.mul_(kept).addcmul_(into, candidate.sub_(0.5), value=4.0)
            torch.sigmoid(cell, out=half).sub_(0.5).mul_(shown)
            torch.mm(half, folded, out=product)
            torch.addmm(shown_state, torch.softmax(scores, dim=1), values, out=output).sigmoid_()
            logits = torch.addmm(noisy_bias[group], output, device_keys)  # [B, D]
            torch.argmax(logits, dim=1, out=placements[group])
        return placements[:groups].T.contiguous()


def gumbel_noise(batch: int, groups: int, devices: int, generator: torch.Generator) -> Tensor:
    """``float32[B, G, D]`` of standard Gumbel noise, drawn once for a whole decoding."""
    uniform = torch.rand(batch, groups, devices, generator=generator)
    return -torch.log(-torch.log(uniform.clamp(1e-20, 1.0 - 1e-7)))


def chosen_log_probability(log_probabilities: Tensor, placements: Tensor) -> Tensor:
    """``float32[B, G]``: the entries of ``float32[B, G, D]`` at the chosen devices, ``int64[B, G]``."""
    return log_probabilities.gather(2, placements[:, :, None])[:, :, 0]


def entropy(log_probabilities: Tensor) -> Tensor:
    """``float32[B, G]``: entropy in nats of each step's distribution; devices that are not allowed add nothing."""
    return -(log_probabilities.exp() * log_probabilities).sum(dim=2)


def _tensors(features: ProblemFeatures, paper: bool) -> FeatureTensors:
    if paper:
        group = np.concatenate([features.shapes, features.reads, features.read_by], axis=1)
        devices = np.eye(features.num_devices, dtype=np.float32)
        context = features.context[:1]
        log_time_ratio = np.zeros_like(features.log_time_ratio)
    else:
        group = np.concatenate([features.shapes / 4.0, features.costs], axis=1)
        devices, context, log_time_ratio = features.devices, features.context, features.log_time_ratio
    neighbours = np.stack([_row_shares(features.reads), _row_shares(features.read_by)])
    return FeatureTensors(
        group=torch.from_numpy(np.ascontiguousarray(group, dtype=np.float32)),
        type_share=torch.from_numpy(features.type_share),
        family=torch.from_numpy(features.family),
        neighbours=torch.from_numpy(neighbours),
        log_time_ratio=torch.from_numpy(log_time_ratio),
        devices=torch.from_numpy(devices),
        mask=torch.from_numpy(np.where(features.allowed, 0.0, MASKED).astype(np.float32)),
        context=torch.from_numpy(context),
    )


def _row_shares(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1.0)
