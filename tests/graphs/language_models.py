"""Configurations of language models, as tests write them down."""

from __future__ import annotations

from dataclasses import replace

from envs.clusters.cluster import Cluster, Device, Link
from envs.clusters.device_specs import DEVICE_SPECS

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}
LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
}


def source_of(settings: str, kind: str = "llama", **sizes: int) -> str:
    """What names a small model: ``hf:llama:hidden_size=256,...``."""
    text = ",".join(f"{key}={value}" for key, value in (SMALL | sizes).items())
    return f"hf:{kind}:{text},{settings}"


def two_cards_and_a_cpu(share: float, of_cpu: float) -> Cluster:
    """An RTX 4090, an RTX 3060 and a desktop's CPU, with shares of their memory."""
    specs = [DEVICE_SPECS[name] for name in ("ryzen_9_7950x", "rtx_4090", "rtx_3060")]
    shares = (of_cpu, share, share)
    scaled = [replace(s, memory_bytes=int(s.memory_bytes * part)) for s, part in zip(specs, shares, strict=True)]
    devices = tuple(Device(name, spec) for name, spec in zip(("cpu:0", "gpu:0", "gpu:1"), scaled, strict=True))
    return Cluster("two_cards", devices, tuple(Link("cpu:0", f"gpu:{i}", 12.5e9, 1e-5) for i in range(2)))
