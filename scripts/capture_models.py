"""Capture models of the `transformers` library, and check each capture against PyTorch itself.

For each model, in training and in inference: FLOPs next to PyTorch's own counter over the same module, parameters and
optimizer state in bytes next to the module's, ops that belong to no module, views that are left, and what the capture
took. Nothing is downloaded: models are built from their configurations, at full size, on the meta device.

    python scripts/capture_models.py                      # all, at full size, each in a process of its own
    python scripts/capture_models.py bert gpt2 --small    # some, tiny
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from graphs.capture import capture
from graphs.computation_graph import PARAMETER, PHASES, RESIDENT_PARTS, ComputationGraph

Batch = dict[str, Tensor]

ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, out_shape, **__: sdpa_flop_count(
        q, k, v
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, out_shape, **__: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""PyTorch's formulas of fused attention, which it has registered for GPUs only."""

VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "select", "slice"} | {
    "split",
    "split_with_sizes",
    "unsafe_split",
    "chunk",
    "unbind",
    "detach",
    "alias",
    "as_strided",
    "diagonal",
    "empty",
    "empty_like",
}
"""Ops that compute nothing and have no place in a graph."""

OPTIMIZER_STATES = {"sgd": 0, "momentum": 1, "rmsprop": 1, "adam": 2}


def _tokens(batch: int, length: int) -> Tensor:
    return torch.zeros(batch, length, dtype=torch.int64)


def _text(batch: int, length: int) -> Batch:
    return {"input_ids": _tokens(batch, length), "labels": _tokens(batch, length)}


def _bert(small: bool) -> tuple[nn.Module, Batch]:
    from transformers import BertConfig, BertForMaskedLM

    tiny: dict[str, Any] = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    tiny |= {"vocab_size": 100}
    model = BertForMaskedLM(BertConfig(**(tiny if small else {})))
    batch = _text(2, 16) if small else _text(8, 128)
    return model, batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


def _gpt2(small: bool) -> tuple[nn.Module, Batch]:
    from transformers import GPT2Config, GPT2LMHeadModel

    tiny: dict[str, Any] = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 100}
    model = GPT2LMHeadModel(GPT2Config(use_cache=False, **(tiny if small else {})))
    return model, _text(2, 16) if small else _text(8, 128)


def _llama(small: bool) -> tuple[nn.Module, Batch]:
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    tiny |= {"num_key_value_heads": 2, "vocab_size": 100}
    model = LlamaForCausalLM(LlamaConfig(use_cache=False, **(tiny if small else {})))
    return model, _text(2, 16) if small else _text(1, 512)


def _t5(small: bool) -> tuple[nn.Module, Batch]:
    from transformers import T5Config, T5ForConditionalGeneration

    tiny: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
    config = T5Config(use_cache=False, **({"decoder_start_token_id": 0} | (tiny if small else {})))
    return T5ForConditionalGeneration(config), _text(2, 16) if small else _text(8, 128)


def _mixtral(small: bool) -> tuple[nn.Module, Batch]:
    from transformers import MixtralConfig, MixtralForCausalLM

    tiny: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    tiny |= {"num_key_value_heads": 2, "vocab_size": 100, "num_local_experts": 4}
    config = MixtralConfig(use_cache=False, **(tiny if small else {}))
    # The other ways to run the experts look at how many tokens each got, which depends on values.
    config._experts_implementation = "batched_mm"
    return MixtralForCausalLM(config), _text(2, 16) if small else _text(1, 128)


def _vit(small: bool) -> tuple[nn.Module, Batch]:
    from transformers import ViTConfig, ViTForImageClassification

    tiny: dict[str, Any] = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    tiny |= {"image_size": 32, "patch_size": 8}
    model = ViTForImageClassification(ViTConfig(**({"num_labels": 1000} | (tiny if small else {}))))
    return model, _images(2, 32) if small else _images(8, 224)


def _resnet50(small: bool) -> tuple[nn.Module, Batch]:
    from transformers import ResNetConfig, ResNetForImageClassification

    tiny: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2]}
    model = ResNetForImageClassification(ResNetConfig(**({"num_labels": 1000} | (tiny if small else {}))))
    return model, _images(2, 32) if small else _images(8, 224)


def _images(batch: int, size: int) -> Batch:
    return {"pixel_values": torch.zeros(batch, 3, size, size), "labels": torch.zeros(batch, dtype=torch.int64)}


MODELS: dict[str, Callable[[bool], tuple[nn.Module, Batch]]] = {
    "bert": _bert,
    "gpt2": _gpt2,
    "llama": _llama,
    "t5": _t5,
    "mixtral": _mixtral,
    "vit": _vit,
    "resnet50": _resnet50,
}
"""By name: makes the model and a batch, tiny or of full size."""


@dataclass(frozen=True)
class Check:
    """A capture next to what PyTorch says of the same module.

    Attributes:
        graph: The capture.
        flops: PyTorch's count.
        parameter_bytes: Of the module's parameters, tied ones counted once.
        optimizer_bytes: What the optimizer keeps for those that require a gradient.
        strays: Names of ops whose module is none of the model's, nor the loss, and of backward ops whose module call
            has no op in the forward pass (the sums of a tied weight's gradients are with the parameter).
        views: Types of views among the ops.
        capture_s: Seconds that the capture took.
    """

    graph: ComputationGraph
    flops: int
    parameter_bytes: int
    optimizer_bytes: int
    strays: list[str]
    views: list[str]
    capture_s: float

    def failures(self) -> list[str]:
        """What is not as it should be, in words."""
        found = []
        kept = self.graph.resident_bytes[:, RESIDENT_PARTS.index("optimizer")].sum()
        if abs(self.graph.total_flops - self.flops) > 0.02 * self.flops:
            found.append(f"FLOPs {self.graph.total_flops:,} beside {self.flops:,}")
        if self.graph.parameter_bytes != self.parameter_bytes:
            found.append(f"parameters of {self.graph.parameter_bytes:,} bytes beside {self.parameter_bytes:,}")
        if kept != self.optimizer_bytes:
            found.append(f"optimizer state of {kept:,} bytes beside {self.optimizer_bytes:,}")
        if self.strays:
            found.append(f"ops of no module: {self.strays[:5]}")
        if self.views:
            found.append(f"views: {self.views}")
        return found


def check(
    name: str, *, small: bool, training: bool, optimizer: str = "adam", dtype: torch.dtype = torch.float32
) -> Check:
    """Capture one model and compare."""
    with torch.device("meta"):
        model, batch = MODELS[name](small)
        model = model.to(dtype)
        batch = {key: t.to(dtype) if t.is_floating_point() else t for key, t in batch.items()}
    if not training:
        del batch["labels"]
        if name == "t5":
            batch["decoder_input_ids"] = batch["input_ids"]
    begin = time.perf_counter()
    graph = capture(model, batch, training=training, optimizer=optimizer, name=name)
    took = time.perf_counter() - begin
    parameters = {id(p): p for p in model.parameters()}.values()
    paths = {path for path, _ in model.named_modules()} | {"loss"}
    return Check(
        graph,
        flops_of(model, batch, training=training),
        sum(p.nbytes for p in parameters),
        OPTIMIZER_STATES[optimizer] * sum(p.nbytes for p in parameters if p.requires_grad) if training else 0,
        _strays(graph, paths),
        sorted(VIEWS & set(graph.type_names)),
        took,
    )


def _strays(graph: ComputationGraph, paths: set[str]) -> list[str]:
    calls = list(zip(graph.module.tolist(), graph.module_call.tolist(), strict=True))
    forward = {calls[i] for i in np.flatnonzero(graph.phase == PHASES.index("forward"))}
    return [
        graph.op_names[i]
        for i, call in enumerate(calls)
        if graph.module_names[call[0]] not in paths
        or (graph.phase[i] == PHASES.index("backward") and call not in forward)
    ]


def flops_of(model: nn.Module, batch: Mapping[str, Any], *, training: bool) -> int:
    """PyTorch's own count over a forward and a backward pass of the module, without a capture."""
    model.train(training)
    enabled = torch.backends.mkldnn.enabled
    with FakeTensorMode() as mode, torch.set_grad_enabled(training):
        fakes = {key: torch.empty(t.shape, dtype=t.dtype) for key, t in batch.items()}
        state = {
            key: torch.empty(t.shape, dtype=t.dtype).requires_grad_(t.requires_grad)
            for key, t in [*model.named_parameters(), *model.named_buffers()]
        }
        del mode
        torch._C._set_mkldnn_enabled(False)  # its fused kernels have no formula
        try:
            with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
                output = torch.func.functional_call(model, state, (), fakes)
                if training:
                    output.loss.backward()
        finally:
            torch._C._set_mkldnn_enabled(bool(enabled))
    return counter.get_total_flops()


def _print_row(name: str, training: bool, small: bool) -> int:
    result = check(name, small=small, training=training)
    graph = result.graph
    failures = result.failures()
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    in_modules = np.mean([bool(graph.module_names[m]) for m in graph.module])
    parameters = sum(graph.type_names[t] == PARAMETER for t in graph.op_type)
    print(
        f"{name:9} {'training' if training else 'inference':9} {graph.num_ops:6,} ops ({parameters:,} parameters) "
        f"{in_modules:6.1%} below the model itself  {graph.total_flops / 1e9:9,.1f} GFLOP "
        f"({graph.total_flops / result.flops - 1:+.2%})  {graph.parameter_bytes / 1e6:9,.1f} MB of parameters  "
        f"{result.capture_s:5.1f} s  {peak_gb:.2f} GB  {'; '.join(failures) or 'as PyTorch'}",
        flush=True,
    )
    return int(bool(failures))


def main() -> int:
    """Check the models that the command line names, each in a process of its own so that its memory is its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--small", action="store_true", help="tiny models")
    parser.add_argument("--only", choices=("training", "inference"), help="that alone, in this process")
    args = parser.parse_args()
    unknown = set(args.models) - set(MODELS)
    if unknown:
        parser.error(f"unknown model {sorted(unknown)[0]}; known: {', '.join(MODELS)}")
    if args.only:
        return max(_print_row(name, args.only == "training", args.small) for name in args.models or MODELS)
    status = 0
    for name in args.models or MODELS:
        for phase in ("training", "inference"):
            command = [sys.executable, __file__, name, "--only", phase, *(["--small"] if args.small else [])]
            status |= subprocess.run(command, check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
