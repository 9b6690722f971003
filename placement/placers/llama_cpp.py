"""Whole layers by free memory, as llama.cpp splits a model over GPUs and the host.

llama.cpp, ``llama_model::load_tensors`` in ``src/llama-model.cpp`` (https://github.com/ggml-org/llama.cpp, MIT), with
``--split-mode layer``, its default: of the layers and the output, which counts as one more layer, the last
``-ngl`` go to the GPUs, in the order of the GPUs and in shares that are by default those of their free memory (or
``-ts``); the layers before them, and always the token embeddings, stay on the CPU. A layer's cache of keys and values
is with it. Of all ``-ngl`` the largest is taken whose memory suffices, as its users do.

Here a GPU's free memory is all of its usable memory. A tensor that the embeddings and the output share (tied weights)
exists once, with the output; llama.cpp keeps a copy on the CPU.

Letters: ``N`` ops.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.errors import NotServedError
from graphs.layers import Layers, find_layers
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, SearchOptions
from placement.placers.best import as_groups
from placement.placers.op_placement import within_constraints


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Offload as many layers as fit.

    Raises:
        NotServedError: The step is not one of a language model with layers in a row, the cluster has no accelerator, or
            the target keeps groups whole.
    """
    began = time.perf_counter()
    gpus = [i for i, device in enumerate(problem.cluster.devices) if device.spec.kind != "cpu"]
    layers = find_layers(problem.graph) if problem.graph.tokens and problem.can_part_groups else None
    if layers is None or not gpus:
        raise NotServedError(
            "placer 'llama_cpp' splits the layers of a language model's step, such as hf:FOLDER:phase=decode, over "
            "accelerators",
            reason="for language models' steps on accelerators",
        )
    memory = problem.cluster.memory_bytes[gpus]
    tried = [split(layers, count, memory) for count in range(layers.count + 1, -1, -1)]
    tried = tried[: budget.evaluations]
    placements = np.stack([_devices(problem, of_layer, layers, gpus) for of_layer in tried])
    evaluation = problem.evaluate_ops(placements)
    fits = np.flatnonzero(evaluation.feasible)
    short = problem.cluster.memories.lacking(evaluation.peak_memory_bytes).sum(axis=1)
    chosen = int(fits[0]) if fits.size else int(short.argmin())
    shares = ",".join(f"{size / 1e9:.4g}" for size in memory.tolist())
    note = f"-ngl {layers.count + 1 - chosen}" + (f" -ts {shares}" if len(gpus) > 1 else "")
    if not fits.size:
        note += "; no -ngl fits"
    return Placed(as_groups(problem, placements[chosen]), len(tried), time.perf_counter() - began, {}, note)


def split(layers: Layers, offloaded: int, free_bytes: NDArray[np.integer]) -> NDArray[np.int64]:
    """``int64[count + 1]``: the number of the GPU of each layer and, last, of the output; -1 for the CPU.

    Args:
        layers: The row of layers.
        offloaded: ``-ngl``: how many of the layers and the output are on GPUs.
        free_bytes: ``int[GPUs]``.
    """
    # The first GPU whose cumulated share is more than the layer's place among those that are offloaded.
    ends = np.cumsum(free_bytes.astype(np.float32)) / np.float32(free_bytes.sum())
    first = layers.count + 1 - offloaded
    place = (np.arange(layers.count + 1) - first).astype(np.float32) / np.float32(max(offloaded, 1))
    gpu = np.minimum(np.searchsorted(ends, place, side="right"), len(free_bytes) - 1)
    return np.where(np.arange(layers.count + 1) >= first, gpu, -1)


def _devices(
    problem: PlacementProblem, of_layer: NDArray[np.int64], layers: Layers, gpus: list[int]
) -> NDArray[np.int32]:
    """``int32[N]``: what a split says of each op, within the problem's constraints."""
    cpus = [i for i, device in enumerate(problem.cluster.devices) if device.spec.kind == "cpu"]
    devices = np.array([*gpus, cpus[0] if cpus else gpus[0]])  # the last one is number -1
    number = np.concatenate([of_layer, [-1]])[layers.of_op]
    return within_constraints(problem, devices[number])
