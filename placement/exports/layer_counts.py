"""The stages of a pipeline as other trainers and servers ask for them: by decoder layers.

These tools know a model as an embedding, a row of decoder layers and a head, and are told only where the row is cut:

- torchtitan's ``module_fqns_per_model_part``: for each stage the names of its modules
  (``torchtitan/distributed/pipeline_parallel.py``).
- Megatron-LM's ``--pipeline-model-parallel-layout``: a letter a layer, ``E`` embedding, ``t`` decoder layer, ``L``
  loss; ``|`` between stages (``docs``: "Custom Pipeline Model Parallel Layout").
- vLLM's ``VLLM_PP_LAYER_PARTITION``: layers a rank, for example ``24,40``; the first has the embedding too and
  the last the head.
- llama.cpp's ``--tensor-split``: shares of layers a GPU; the head counts as one more layer, on the last.
- llama.cpp's ``--override-tensor``: patterns of the names of weights, each with a device; any stages on any devices.

What they cannot say is refused, naming the stage and the module.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from graphs.errors import InputError, unknown_name
from placement.exports.stages import Stages

_LAYER = re.compile(r"(.+)\.(\d+)")


def encode_for(tool: str, stages: Stages) -> bytes:
    """The stages in the form of one of `TOOLS`, a line of text.

    Raises:
        InputError: The tool is unknown, or cannot run such stages; the message names the stage.
    """
    if tool not in TOOLS:
        raise unknown_name("tool", tool, TOOLS)
    return TOOLS[tool](stages).encode() + b"\n"


def torchtitan_parts(stages: Stages) -> str:
    """The names of the modules of each stage, as JSON: the value of ``module_fqns_per_model_part``."""
    _check_chain("torchtitan", stages)
    return msgspec.json.encode([list(stage.modules) for stage in stages.stages]).decode()


def megatron_layout(stages: Stages) -> str:
    """The value of ``--pipeline-model-parallel-layout``, for example ``Ettt|ttttL``."""
    _check_chain("Megatron-LM", stages)
    counts = _layers("Megatron-LM", stages)
    parts = ["t" * count for count in counts]
    parts[0], parts[-1] = "E" + parts[0], parts[-1] + "L"
    return "|".join(parts)


def vllm_partition(stages: Stages) -> str:
    """The value of the environment variable ``VLLM_PP_LAYER_PARTITION``, for example ``24,40``."""
    _check_one_a_rank("vLLM", stages)
    return ",".join(map(str, _layers("vLLM", stages)))


def llama_cpp_split(stages: Stages) -> str:
    """The value of llama.cpp's ``--tensor-split``, to be used with ``--n-gpu-layers`` of all layers and the head."""
    _check_one_a_rank("llama.cpp", stages)
    for rank, device in enumerate(stages.ranks):
        if device != f"gpu:{rank}":
            raise InputError(f"rank {rank} is on '{device}', but llama.cpp splits over gpu:0, gpu:1, ... in this order")
    *before, last = _layers("llama.cpp", stages)
    return ",".join(map(str, [*before, last + 1]))


def llama_cpp_overrides(stages: Stages) -> str:
    r"""The value of llama.cpp's ``--override-tensor``, for example ``^blk\.(0|1)\.=CUDA0,^blk\.2\.=CPU,...``.

    Layer ``i`` is ``blk.i``; the embedding is ``token_embd``, and the norm and head behind the layers ``output``. It is
    to be used with ``--n-gpu-layers`` of all layers and the head, so that what stays on a GPU is computed there.
    """
    buffers = []
    for rank, device in enumerate(stages.ranks):
        number = re.fullmatch(r"gpu:(\d+)", device)
        if number is None and not re.fullmatch(r"cpu:\d+", device):
            raise InputError(f"rank {rank} is on '{device}', but llama.cpp knows gpu:0, gpu:1, ... and the CPU")
        buffers.append(f"CUDA{number[1]}" if number else "CPU")
    layer, patterns = 0, [f"^token_embd={buffers[stages.stages[0].rank]}"]
    for stage, count in zip(stages.stages, _layers("llama.cpp", stages), strict=True):
        if count:
            numbers = "|".join(map(str, range(layer, layer + count)))
            patterns.append(f"^blk\\.({numbers})\\.={buffers[stage.rank]}")
        layer += count
    patterns.append(f"^output={buffers[stages.stages[-1].rank]}")
    return ",".join(patterns)


TOOLS: dict[str, Callable[[Stages], str]] = {
    "torchtitan": torchtitan_parts,
    "megatron": megatron_layout,
    "vllm": vllm_partition,
    "llama.cpp": llama_cpp_split,
    "llama.cpp-ot": llama_cpp_overrides,
}
"""What `encode_for` writes, by the tool that reads it."""


def _check_chain(tool: str, stages: Stages) -> None:
    """Raise where stage ``i`` is not on rank ``i`` modulo the ranks, as these tools have it."""
    for number, stage in enumerate(stages.stages):
        if stage.rank != number % len(stages.ranks):
            raise InputError(
                f"stage {number} is on rank {stage.rank}, but {tool} has stage i on rank i % {len(stages.ranks)}; take "
                "another order, or export to stages.json"
            )
    if len(stages.stages) % len(stages.ranks):
        raise InputError(f"{tool} wants equally many stages a rank; there are {len(stages.stages)}")


def _check_one_a_rank(tool: str, stages: Stages) -> None:
    _check_chain(tool, stages)
    if len(stages.stages) != len(stages.ranks):
        raise InputError(f"{tool} has one stage a rank; there are {len(stages.stages)} on {len(stages.ranks)} ranks")


def _layers(tool: str, stages: Stages) -> list[int]:
    """How many decoder layers each stage has: whole ones of one list of modules, in order.

    What comes before the first layer must be in the first stage and what comes after the last one in the last stage.
    """
    modules = [(number, path) for number, stage in enumerate(stages.stages) for path in stage.modules]
    lists = [match[1] for _, path in modules if (match := _LAYER.fullmatch(path))]
    if not lists:
        raise InputError(f"no stage has a decoder layer, such as 'layers.0', which is all that {tool} can divide")
    main = max(dict.fromkeys(lists), key=lists.count)
    counts = [0] * len(stages.stages)
    for at, (number, path) in enumerate(modules):
        if _LAYER.fullmatch(path) or path.startswith(f"{main}."):
            if path != f"{main}.{sum(counts)}":
                raise InputError(
                    f"stage {number} has '{path}' where {tool} knows only whole layers of '{main}', one after another"
                )
            counts[number] += 1
            continue
        leads = number == 0 and not sum(counts)
        trails = number == len(counts) - 1 and not any(_LAYER.fullmatch(later) for _, later in modules[at:])
        if not leads and not trails:
            raise InputError(
                f"stage {number} has '{path}', but {tool} keeps what is no decoder layer in the first or last stage"
            )
    return counts
