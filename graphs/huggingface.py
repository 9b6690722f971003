"""A language model by its configuration alone: ``hf:PATH``, the prefill or a decoding step with its cache.

A folder with a ``config.json`` of the `transformers` library, or the name of one of its architectures with sizes, is
enough: the model is built on the meta device, so no weights are read and none need memory. Nothing in the folder is
run, and no other file of it is read.

The step has a static cache of keys and values, two buffers an attention layer, which are among what must fit on a
device. Matrices may be counted as they are stored in 8 or 4 bits; they are multiplied by PyTorch's own products of
packed weights, in the dtype of the activations.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from graphs.capture import capture
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError, unknown_name
from graphs.extras import check_extra
from graphs.reading import read_file

OWN_SETTINGS = {
    "phase": "prefill reads all of the context, decode makes one more token for each sequence",
    "context": "tokens of a sequence, and so the length of the cache",
    "batch": "sequences",
    "weights": "int8 or int4: what matrices are stored in; by default what the configuration says",
    "dtype": "bfloat16, float16 or float32: what is computed in, and what is not quantized is stored in",
}
"""Settings behind the name that are not the configuration's, and what they mean."""

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_GROUP = 64
"""Weights of 4 bits that share a scale and a zero, both of 16 bits."""
_PREFIX = "hf:"
_MOST_BYTES = 2**20
_MOST = 2**31


@dataclass(frozen=True)
class Settings:
    """What a source says behind its name; see `OWN_SETTINGS`.

    Attributes:
        phase: ``"prefill"`` or ``"decode"``.
        context: Length of the cache; 0 for 2,048, or as many as the model has positions.
        batch: Sequences.
        weights: ``""`` for the dtype.
        dtype: ``""`` for the configuration's.
        fields: Numbers of the configuration that are set.
    """

    phase: Literal["prefill", "decode"] = "decode"
    context: int = 0
    batch: int = 1
    weights: str = ""
    dtype: str = ""
    fields: Mapping[str, int] | None = None


def load_huggingface(source: str) -> ComputationGraph:
    """Capture a step of a causal language model from its configuration.

    Args:
        source: ``hf:FOLDER``, ``hf:FOLDER/config.json`` or ``hf:ARCHITECTURE``, for example ``hf:llama``; after a colon
            `OWN_SETTINGS` and numbers of the configuration: ``hf:llama:num_hidden_layers=4,phase=decode,batch=8``.

    Returns:
        The graph; `ComputationGraph.tokens` is how many tokens a step reads (prefill) or makes (decode).

    Raises:
        InputError: The configuration is not there, not valid, or of a model that has no such step.
        NotServedError: `transformers` is not installed.
    """
    config, settings = _read_settings(source)
    limit = getattr(config, "max_position_embeddings", None)
    limit = limit if isinstance(limit, int) and limit > 0 else _MOST
    settings = replace(settings, context=settings.context or min(2048, limit))
    if limit < settings.context:
        raise InputError(
            f"graph '{source}': a context of {settings.context} is more than the {limit} positions of the model; give "
            f"context={limit} or less, or set max_position_embeddings"
        )
    step, length = _step(source, config, settings)
    tokens = torch.zeros(settings.batch, length, dtype=torch.int64, device="meta")
    positions = torch.zeros(1, length, dtype=torch.int64, device="meta")
    graph = capture(step, {"input_ids": tokens, "position_ids": positions}, training=False, name=source)
    return replace(graph, tokens=settings.batch * length)


def load_huggingface_model(source: str) -> nn.Module:
    """The model of such a source on the meta device, its matrices as they are stored, without a cache.

    Args:
        source: As for `load_huggingface`.

    Raises:
        InputError: As `load_huggingface`.
        NotServedError: As `load_huggingface`.
    """
    config, settings = _read_settings(source)
    return _model(source, config, settings)


def _read_settings(source: str) -> tuple[Any, Settings]:
    """The configuration, and the settings with what it says that weights are stored in."""
    place, settings = _parse(source)
    check_extra(f"graph '{source}'", module="transformers", package="Transformers", extra="hf")
    config, stored = _config(source, place, settings)
    return config, replace(settings, weights=settings.weights or stored)


def _parse(source: str) -> tuple[str, Settings]:
    """The folder or architecture, and the settings behind it."""
    place, settings = source.removeprefix(_PREFIX), Settings()
    head, colon, text = place.rpartition(":")
    if not colon or "=" not in text:
        if not place:
            raise InputError(f"graph '{source}' names no configuration; write hf:FOLDER or hf:llama:phase=decode")
        return place, settings
    given: dict[str, Any] = {}
    fields: dict[str, int] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key.isidentifier() or key in given or key in fields:
            raise InputError(f"graph '{source}': '{part}' is no setting; write each once, as in batch=4,phase=decode")
        choices = {"phase": ("prefill", "decode"), "weights": ("int8", "int4"), "dtype": tuple(_DTYPES)}.get(key)
        if choices is not None:
            if value not in choices:
                raise unknown_name(f"{key} in graph '{source}':", value, choices)
            given[key] = value
            continue
        if not re.fullmatch("[0-9]{1,10}", value) or not 1 <= int(value) < _MOST:
            raise InputError(f"graph '{source}': {key} is '{value}'; it must be a whole number from 1")
        (given if key in OWN_SETTINGS else fields)[key] = int(value)
    return head, replace(settings, **given, fields=fields)


def _config(source: str, place: str, settings: Settings) -> tuple[Any, str]:
    """The configuration, and what it says that matrices are stored in: ``"int8"``, ``"int4"`` or ``""``."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    path = Path(place)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        content = _read(source, path)
        kind = content.get("model_type")
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            raise InputError(
                f"graph '{source}': model_type in {path} is {kind!r}, which is no architecture of the installed "
                "Transformers; code beside a configuration is never run, so upgrade Transformers, or give the model as "
                "python:module:function"
            )
    elif place in CONFIG_MAPPING:
        kind, content = place, {}
    else:
        if "/" in place or "\\" in place or path.exists():
            missing = path / "config.json"
            raise InputError(f"graph '{source}': there is no {missing}; nothing is downloaded, so give a folder")
        raise unknown_name(f"folder or architecture in graph '{source}':", place, CONFIG_MAPPING)
    # What begins with an underscore, and the choice of kernels, may name code that would be fetched and run.
    left_out = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config", "model_type")
    fields = {key: value for key, value in content.items() if not key.startswith("_") and key not in left_out}
    config = _made(source, place, CONFIG_MAPPING[kind], fields)
    text = config.get_text_config()
    known = [name for name, old in text.to_dict().items() if isinstance(old, int) and not isinstance(old, bool)]
    for key in settings.fields or {}:
        if key not in (*known, *text.attribute_map):
            raise unknown_name(f"setting in graph '{source}':", key, [*OWN_SETTINGS, *known])
    if settings.fields and text is config:  # made anew, since some numbers follow from others where they are not given
        text = _made(source, place, CONFIG_MAPPING[kind], fields | dict(settings.fields))
    else:
        for key, value in (settings.fields or {}).items():
            setattr(text, key, value)
    return text, _stored(source, content.get("quantization_config"))


def _made(source: str, place: str, kind: Any, fields: dict[str, Any]) -> Any:
    try:
        return kind(**fields)
    except Exception as error:
        raise InputError(
            f"graph '{source}': {place} is no configuration of {kind.model_type} ({_short(error)}); correct it"
        ) from error


def _read(source: str, path: Path) -> dict[str, Any]:
    data = read_file(path, f"graph '{source}': configuration", most_bytes=_MOST_BYTES)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"graph '{source}': {path} is not JSON ({_short(error)}); correct it") from None
    if not isinstance(content, dict):
        raise InputError(f"graph '{source}': {path} is no JSON object; give a config.json of the Transformers library")
    return content


def _stored(source: str, quantization: Any) -> str:
    """What a configuration's own quantization comes to, in bits a weight."""
    if not isinstance(quantization, Mapping):
        return ""
    bits = quantization.get("bits")
    if quantization.get("load_in_4bit"):
        bits = 4
    elif quantization.get("load_in_8bit") or quantization.get("quant_method") in ("fp8", "fbgemm_fp8"):
        bits = 8
    elif quantization.get("quant_method") == "mxfp4":
        bits = 4
    if bits not in (4, 8):
        raise InputError(
            f"graph '{source}': its quantization_config does not say 4 or 8 bits in a known way; add weights=int4 or "
            "weights=int8"
        )
    return f"int{bits}"


def _step(source: str, config: Any, settings: Settings) -> tuple[nn.Module, int]:
    """The model as a step of one phase on the meta device, and how many tokens of each sequence it reads."""
    length = 1 if settings.phase == "decode" else settings.context
    return LanguageStep(source, _model(source, config, settings), settings, length), length


def _model(source: str, config: Any, settings: Settings) -> nn.Module:
    """The causal language model on the meta device."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    name = settings.dtype or str(getattr(config, "dtype", None) or "bfloat16").removeprefix("torch.")
    if name not in _DTYPES:
        raise InputError(f"graph '{source}': its dtype is {name}; add dtype=bfloat16, float16 or float32")
    config._experts_implementation = "batched_mm"
    for attention in ("sdpa", "eager"):  # the latter where the architecture has no other
        config._attn_implementation = attention
        try:
            with torch.device("meta"), no_init_weights():
                model = AutoModelForCausalLM.from_config(config, dtype=_DTYPES[name], trust_remote_code=False).eval()
            break
        except Exception as error:
            if attention == "sdpa" and "does not support an attention implementation" in str(error):
                continue
            raise InputError(
                f"graph '{source}': no causal language model can be made of a configuration of {config.model_type} "
                f"({_short(error)}); give the model as python:module:function"
            ) from error
    if settings.weights:
        _quantize(source, model, settings.weights)
    return model


class LanguageStep(nn.Module):
    """A causal language model that reads tokens with a cache that exists before the step, and scores the next ones.

    Args:
        source: For messages.
        model: A causal language model of the `transformers` library.
        settings: Sizes and phase.
        length: How many tokens of each sequence it reads; the last ones of the context.
    """

    model: Any

    def __init__(self, source: str, model: nn.Module, settings: Settings, length: int) -> None:
        super().__init__()
        self.model = model
        self._start = settings.context - length
        parameters = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._only_last = "logits_to_keep" in parameters
        self._dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        self._layers: list[tuple[nn.Module, str]] = []
        owners = {
            module.layer_idx: module
            for name, module in model.named_modules()
            if "attention" in type(module).__name__.lower() and isinstance(getattr(module, "layer_idx", None), int)
        }
        for number, (keys, values) in enumerate(self._shapes(source, settings.batch)):
            owner, prefix = (owners[number], "") if number in owners else (self, f"layer_{number}_")
            for what, (heads, width) in (("key", keys), ("value", values)):
                size = (settings.batch, heads, settings.context, width)
                cache = torch.empty(size, dtype=self._dtype, device="meta")
                owner.register_buffer(f"{prefix}{what}_cache", cache, persistent=False)
            self._layers.append((owner, prefix))

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Scores of the next token of each sequence, ``[B, 1, vocabulary]``."""
        buffers = [
            (getattr(owner, f"{prefix}key_cache"), getattr(owner, f"{prefix}value_cache"))
            for owner, prefix in self._layers
        ]
        return self._call(_made_cache(buffers, self._start), input_ids, position_ids)

    def _call(self, cache: Any, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        more = {"logits_to_keep": 1} if self._only_last else {}
        given = {"input_ids": input_ids, "position_ids": position_ids, self._cache_name: cache, "use_cache": True}
        return self.model(**given, **more).logits

    def _shapes(self, source: str, batch: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Heads and width of keys and of values in each layer, from a run of two tokens on the meta device."""
        seen: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}
        layers = self.model.config.num_hidden_layers
        tokens = torch.zeros(batch, 2, dtype=torch.int64, device="meta")
        try:
            with torch.no_grad():
                self._call(_probe(seen, layers), tokens, torch.zeros(1, 2, dtype=torch.int64, device="meta"))
        except Exception as error:
            raise InputError(
                f"graph '{source}': {type(self.model).__name__} has no step with a static cache of keys and values "
                f"({_short(error)}); give the model as python:module:function"
            ) from error
        if not seen:
            raise InputError(
                f"graph '{source}': {type(self.model).__name__} keeps no keys and values; give the model as "
                "python:module:function"
            )
        return [seen[number] for number in sorted(seen)]


def _made_cache(buffers: list[tuple[torch.Tensor, torch.Tensor]], start: int) -> Any:
    """A cache of the `transformers` library whose layers are tensors that exist, of which `start` tokens are known."""
    from transformers.cache_utils import Cache, StaticLayer

    class Layer(StaticLayer):
        def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
            super().__init__(keys.shape[2])
            self.keys, self.values, self.is_initialized = keys, values, True

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            keys, values, end = self.keys, self.values, start + key_states.shape[-2]
            assert keys is not None
            assert values is not None
            keys[:, :, start:end].copy_(key_states)
            values[:, :, start:end].copy_(value_states)
            return keys, values

        def get_seq_length(self) -> int:
            return start

    return Cache(layers=[Layer(*pair) for pair in buffers])


def _probe(seen: dict[int, tuple[tuple[int, int], tuple[int, int]]], layers: int) -> Any:
    """A cache that only notes the heads and widths that it is given."""
    from transformers.cache_utils import Cache, StaticLayer

    class Layer(StaticLayer):
        def __init__(self, number: int) -> None:
            super().__init__(2)
            self.number, self.is_initialized = number, True

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            seen[self.number] = tuple((t.shape[1], t.shape[3]) for t in (key_states, value_states))  # type: ignore[assignment]
            return key_states, value_states

        def get_seq_length(self) -> int:
            return 0

    return Cache(layers=[Layer(number) for number in range(layers)])


class StoredLinear(nn.Module):
    """A linear layer whose matrix is stored in 8 or 4 bits, and multiplied as such.

    8 bits: a byte a weight and a scale a row. 4 bits: half a byte, and a scale and a zero for each 64.
    """

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        dtype = linear.weight.dtype
        self.bits, self.group = bits, math.gcd(columns, _GROUP)
        packed = (rows, columns) if bits == 8 else (rows, columns // 2)
        scales = (rows,) if bits == 8 else (columns // self.group, rows, 2)
        self.weight = nn.Parameter(
            torch.empty(packed, dtype=torch.int8 if bits == 8 else torch.uint8, device="meta"), requires_grad=False
        )
        self.scales = nn.Parameter(torch.empty(scales, dtype=dtype, device="meta"), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As that of a linear layer."""
        flat = x.reshape(-1, x.shape[-1])
        if self.bits == 8:
            y = torch.ops.aten._weight_int8pack_mm(flat, self.weight, self.scales)
        else:
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.weight, self.group, self.scales)
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        return y if self.bias is None else y + self.bias


def _quantize(source: str, model: nn.Module, weights: str) -> None:
    """Store the matrices of all linear layers but the last in few bits; embeddings and vectors stay as they are."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child is not head:
                if child.in_features % 32 and weights == "int4":
                    raise InputError(
                        f"graph '{source}': '{name}' has {child.in_features} inputs, no multiple of 32; use "
                        "weights=int8"
                    )
                setattr(parent, name, StoredLinear(child, int(weights.removeprefix("int"))))
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | StoredLinear):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and min(parameter.shape) > 1:
                raise InputError(
                    f"graph '{source}': '{module_name}.{name}' is a matrix outside a linear layer, which weights="
                    f"{weights} cannot store in few bits; leave it out"
                )


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
