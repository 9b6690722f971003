"""The weights of the pretrained policy: their names and shapes, the file, and the encoder that they make.

The encoder is written once for NumPy, which answers, and for torch, which learns: both have the functions that it
calls. Importing this loads no torch.

Letters: ``G`` groups, ``E`` numbers that the encoder keeps of a group, ``A`` heads of attention, ``U`` units.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from graphs.errors import InputError
from graphs.files import write_atomically
from graphs.reading import read_file
from placement.pretrained.features import GROUP_FEATURES, PAIR_FEATURES
from placement.pretrained.kernel import DEVICE_FEATURES, GAIN, IS_REFERENCE

Weights = Mapping[str, NDArray[np.float32]]
"""Arrays by name; `shapes` has them all."""

FILE = Path(__file__).parent / "weights" / "policy.safetensors"
"""The weights that are shipped; the README beside them says what they were trained on."""

FORMAT = "device-placement-policy"
VERSION = "1"
_MOST_BYTES = 10 * 2**20

EMBEDDING, LAYERS, HEADS, UNITS = 48, 2, 4, 48
"""Sizes: ``E``, layers of the encoder, ``A``, ``U``."""

_PRIOR_REFERENCE, _PRIOR_GAIN = 3.0, 6.0
"""What an untrained policy goes by: the best known placement, and what the outlook says that leaving it gains."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A problem after the encoder: what every decision of a placement looks up.

    Attributes:
        base: ``float32[G, U]``, what the encoder says of each group.
        attention: ``float32[A, G, G]``, how much each group attends to each group before it; rows sum to 1 but for the
            first, which is 0.
    """

    base: Any
    attention: Any


@cache
def shapes() -> dict[str, tuple[int, ...]]:
    """The shape of each weight, by name."""
    size, head = EMBEDDING, EMBEDDING // HEADS
    made: dict[str, tuple[int, ...]] = {"read": (GROUP_FEATURES, size), "read_bias": (size,)}
    for layer in range(LAYERS):
        made |= {
            f"layer{layer}.scale": (size,),
            f"layer{layer}.query": (size, size),
            f"layer{layer}.key": (size, size),
            f"layer{layer}.value": (size, size),
            f"layer{layer}.pairs": (HEADS, PAIR_FEATURES),
            f"layer{layer}.joined": (size, size),
            f"layer{layer}.inner_scale": (size,),
            f"layer{layer}.inner": (size, 2 * size),
            f"layer{layer}.inner_bias": (2 * size,),
            f"layer{layer}.outer": (2 * size, size),
        }
    return made | {
        "last_scale": (size,),
        "base": (size, UNITS),
        "base_bias": (UNITS,),
        "decoder.query": (size, HEADS * head),
        "decoder.key": (size, HEADS * head),
        "decoder.pairs": (HEADS, PAIR_FEATURES),
        "into": (DEVICE_FEATURES, UNITS),
        "into_attention": (HEADS, UNITS),
        "middle": (UNITS, UNITS),
        "middle_bias": (UNITS,),
        "out": (UNITS,),
        "skip": (DEVICE_FEATURES,),
        "skip_attention": (HEADS,),
    }


def initial(seed: int) -> dict[str, NDArray[np.float32]]:
    """Weights of a policy that has learned nothing: it stays near the best known placement, and leaves it for gain."""
    rng = np.random.default_rng(seed)
    made: dict[str, NDArray[np.float32]] = {}
    for name, shape in shapes().items():
        if name.endswith("scale"):
            made[name] = np.ones(shape, dtype=np.float32)
        elif name.endswith("bias") or name.startswith("skip"):
            made[name] = np.zeros(shape, dtype=np.float32)
        else:
            spread = 0.1 if name == "out" else 1.0
            made[name] = (spread * rng.standard_normal(shape) / math.sqrt(shape[0])).astype(np.float32)
    made["skip"][IS_REFERENCE], made["skip"][GAIN] = _PRIOR_REFERENCE, _PRIOR_GAIN
    return made


def encode(weights: Mapping[str, Any], groups: Any, pairs: Any, *, library: Any = np) -> Encoded:
    """Read the groups of a problem: layers of attention between all of them, biased by what binds each two.

    Args:
        weights: By name; arrays, or tensors where the library is torch.
        groups: ``float32[G, GROUP_FEATURES]`` of `placement.pretrained.features.Known`, in program order.
        pairs: ``float32[PAIR_FEATURES, G, G]``, likewise.
        library: `numpy`, or `torch` for gradients.

    References:
        Vaswani et al., "Attention is all you need", NeurIPS 2017, arXiv 1706.03762; biases for pairs as in Shaw et al.,
        2018, arXiv 1803.02155, and Ying et al., "Graphormer", 2021, arXiv 2106.05234; layers are scaled as in Zhang
        and Sennrich, "Root mean square layer normalization", 2019, arXiv 1910.07467.
    """
    count = groups.shape[0]
    flat = pairs.reshape(PAIR_FEATURES, count * count)
    state = library.tanh(groups @ weights["read"] + weights["read_bias"])  # [G, E]
    for layer in range(LAYERS):
        own = {name: weights[f"layer{layer}.{name}"] for name in _LAYER}
        scaled = _scaled(state, own["scale"], library)
        bias = (own["pairs"] @ flat).reshape(HEADS, count, count)
        weight = _softmax(_scores(scaled @ own["query"], scaled @ own["key"]) + bias, library)  # [A, G, G]
        seen = weight @ _heads(scaled @ own["value"])  # [A, G, E/A]
        state = state + seen.swapaxes(0, 1).reshape(count, EMBEDDING) @ own["joined"]
        inner = _positive(_scaled(state, own["inner_scale"], library) @ own["inner"] + own["inner_bias"])
        state = state + inner @ own["outer"]
    state = _scaled(state, weights["last_scale"], library)
    bias = (weights["decoder.pairs"] @ flat).reshape(HEADS, count, count)
    scores = _scores(state @ weights["decoder.query"], state @ weights["decoder.key"]) + bias
    before = library.tril(library.ones((count, count)), -1)
    scores = library.where(before[None] > 0, scores, -1e9 * library.ones((1,), dtype=library.float32))
    attention = _softmax(scores, library) * (before[None] > 0)
    return Encoded(state @ weights["base"] + weights["base_bias"], attention)


_LAYER = ("scale", "query", "key", "value", "pairs", "joined", "inner_scale", "inner", "inner_bias", "outer")


def _scaled(state: Any, scale: Any, library: Any) -> Any:
    """Rows of ``[G, E]`` to a mean square of 1, times a learned scale."""
    return state / library.sqrt((state * state).mean(-1)[:, None] + 1e-6) * scale


def _heads(rows: Any) -> Any:
    """``[A, G, E / A]`` of ``[G, E]``."""
    return rows.reshape(rows.shape[0], HEADS, rows.shape[1] // HEADS).swapaxes(0, 1)


def _scores(queries: Any, keys: Any) -> Any:
    """``[A, G, G]``: products of queries and keys, ``[G, E]`` each."""
    width = queries.shape[1] // HEADS
    return (_heads(queries) @ _heads(keys).swapaxes(1, 2)) * (1.0 / math.sqrt(width))


def _softmax(scores: Any, library: Any) -> Any:
    risen = library.exp(scores - library.amax(scores, -1)[..., None])
    return risen / risen.sum(-1)[..., None]


def _positive(value: Any) -> Any:
    return value * (value > 0)


def load(path: str | Path | None = None) -> Weights:
    """Read a file of weights, by default those that are shipped.

    Raises:
        InputError: It is missing, damaged, or not of this policy; the message says which.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as decode

    file = FILE if path is None else Path(path)
    data = read_file(file, "file of weights", most_bytes=_MOST_BYTES)
    try:
        arrays = decode(data)
        header = msgspec.json.decode(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, msgspec.DecodeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"{file}: it is not a safetensors file, or it is damaged; give one from placement pretrain"
        ) from error
    about = header.get("__metadata__", {})
    if about.get("format") != FORMAT or about.get("version") != VERSION:
        raise InputError(
            f"{file}: these weights are not of version {VERSION} of this policy; give a file from placement pretrain"
        )
    check(arrays, str(file))
    return {name: np.ascontiguousarray(arrays[name]) for name in shapes()}


def check(arrays: Mapping[str, Any], where: str) -> None:
    """Raise where arrays are not the policy's weights.

    Raises:
        InputError: One is missing, too much, of another shape or type, or not finite; the message names it.
    """
    wanted = shapes()
    for name in sorted(set(wanted) ^ set(arrays)):
        said = "lacks" if name in wanted else "has"
        raise InputError(
            f"{where}: it {said} a weight '{name[:80]}'; give a file from this release's placement pretrain"
        )
    for name, shape in wanted.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != np.float32:
            raise InputError(
                f"{where}: weight '{name}' is {array.dtype} of shape {list(array.shape)}, not float32 of shape "
                f"{list(shape)}; give a file from this release's placement pretrain"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{where}: weight '{name}' has numbers that are not finite; give another file")


def save(path: str | Path, weights: Weights, about: Mapping[str, str]) -> None:
    """Write a file of weights; a reader sees the old file or the new one, never a part.

    Args:
        path: The file.
        weights: By name.
        about: What they are: words for people, kept in the file.

    Raises:
        InputError: The file cannot be written.
    """
    from safetensors.numpy import save as encode_file

    arrays = {name: np.ascontiguousarray(weights[name], dtype=np.float32) for name in shapes()}
    write_atomically(path, _in_order(encode_file(arrays, {"format": FORMAT, "version": VERSION, **about})))


def _in_order(content: bytes) -> bytes:
    """A safetensors file whose header has its words in order: the library's own order is another each time."""
    size = int.from_bytes(content[:8], "little")
    header = msgspec.json.decode(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)  # what follows is aligned
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def digest(weights: Weights) -> str:
    """A short name for weights, by their content."""
    content = hashlib.sha256()
    for name in shapes():
        content.update(np.ascontiguousarray(weights[name]).tobytes())
    return content.hexdigest()[:12]
