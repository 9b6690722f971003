"""The zoo: workloads of the field, each an ordinary PyTorch module in a file of its own.

A workload's name may carry sizes: ``rnnlm``, ``nmt:layers=4,batch=128``, ``inception_v3:training=0``. Importing this
package loads no torch; `load` does.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError, unknown_name
from graphs.zoo.cache import cached


@dataclass(frozen=True)
class Knob:
    """A size or choice that a workload's name may set.

    Attributes:
        default: Its value where the name does not set it.
        about: One line for people.
        minimum: The smallest value of a number.
        choices: The allowed words; empty for a number.
    """

    default: int | str
    about: str
    minimum: int = 1
    choices: tuple[str, ...] = ()

    def parse(self, workload: str, key: str, text: str) -> int | str:
        """The value that a text means.

        Raises:
            InputError: The text is not a whole number that is large enough, or not among the choices.
        """
        if self.choices:
            if text not in self.choices:
                raise InputError(
                    f"workload '{workload}': {key} is '{text}', but must be one of {', '.join(self.choices)}"
                )
            return text
        if not text.isdecimal() or int(text) < self.minimum:
            raise InputError(
                f"workload '{workload}': {key} is '{text}', but must be a whole number of at least {self.minimum}"
            )
        return int(text)


TRAINING = Knob(1, "1: forward, backward and update; 0: the forward pass in evaluation mode", minimum=0)


@dataclass(frozen=True)
class Workload:
    """A model of the zoo, known by name before it is loaded.

    Attributes:
        name: As in `ZOO`, and the module ``graphs.zoo.<name>`` that has ``make(sizes) -> (model, example batch)``; the
            model returns its loss.
        about: One line for people, with the source.
        optimizer: What it is trained with.
        knobs: What its name may set, by key.
    """

    name: str
    about: str
    optimizer: str
    knobs: Mapping[str, Knob]


ZOO: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            "rnnlm",
            "language model of unrolled LSTM layers (Zaremba 2014, arXiv 1409.2329; sizes of Mirhoseini 2017)",
            "adam",
            {
                "layers": Knob(2, "LSTM layers"),
                "hidden": Knob(2048, "width of the embedding and of each layer"),
                "steps": Knob(40, "unrolled time steps"),
                "vocabulary": Knob(10_000, "words", minimum=2),
                "batch": Knob(64, "sequences a step"),
                "training": TRAINING,
            },
        ),
        Workload(
            "nmt",
            "LSTM encoder and decoder with attention (Bahdanau 2014, arXiv 1409.0473; sizes of Mirhoseini 2017)",
            "adam",
            {
                "layers": Knob(2, "LSTM layers of the encoder, and as many of the decoder"),
                "hidden": Knob(1024, "width of embeddings, layers and attention"),
                "steps": Knob(40, "unrolled time steps of the encoder, and as many of the decoder"),
                "vocabulary": Knob(32_000, "words of each language", minimum=2),
                "batch": Knob(64, "sentence pairs a step"),
                "attention": Knob(
                    "top", "the decoder layer whose last state asks: bottom or top", choices=("bottom", "top")
                ),
                "training": TRAINING,
            },
        ),
        Workload(
            "inception_v3",
            "image classifier of branching convolutions (Szegedy 2015, arXiv 1512.00567)",
            "rmsprop",
            {
                "batch": Knob(32, "images a step"),
                "image": Knob(299, "height and width of an image in pixels; 299 with the auxiliary head", minimum=75),
                "classes": Knob(1000, "classes", minimum=2),
                "aux": Knob(1, "1: with the auxiliary head, which only training uses; 0: without", minimum=0),
                "training": TRAINING,
            },
        ),
    )
}
"""All workloads by name."""


def load(spec: str) -> ComputationGraph:
    """The graph of a workload, by its name and optional sizes; from the cache where it has been captured before.

    Args:
        spec: For example ``"rnnlm"`` or ``"nmt:layers=4,batch=128"``.

    Raises:
        InputError: The name or a knob is unknown, or a value is not allowed.
    """
    workload, sizes = parse(spec)
    name = canonical_name(workload, sizes)
    return cached(name, lambda: _capture(workload, sizes, name))


def parse(spec: str) -> tuple[Workload, dict[str, int | str]]:
    """The workload that a text like ``"nmt:layers=4"`` names, and all its sizes.

    Raises:
        InputError: As `load`.
    """
    name, _, settings = spec.partition(":")
    if name not in ZOO:
        raise unknown_name("workload", name, ZOO)
    workload = ZOO[name]
    sizes: dict[str, int | str] = {key: knob.default for key, knob in workload.knobs.items()}
    seen: set[str] = set()
    for setting in settings.split(",") if settings else ():
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise InputError(f"workload '{spec}': write settings as key=value, not '{setting}'")
        if key not in workload.knobs:
            raise unknown_name(f"setting of workload '{name}'", key, workload.knobs)
        if key in seen:
            raise InputError(f"workload '{spec}': {key} is set twice")
        seen.add(key)
        sizes[key] = workload.knobs[key].parse(name, key, text)
    return workload, sizes


def canonical_name(workload: Workload, sizes: Mapping[str, int | str]) -> str:
    """The shortest name that means these sizes: only what differs from the defaults, in the order of the knobs."""
    changed = [f"{key}={sizes[key]}" for key, knob in workload.knobs.items() if sizes[key] != knob.default]
    return f"{workload.name}:{','.join(changed)}" if changed else workload.name


def _capture(workload: Workload, sizes: Mapping[str, int | str], name: str) -> ComputationGraph:
    """Build the model on the meta device, so that it takes no memory, and capture it."""
    import torch

    from graphs.capture import capture

    with torch.device("meta"):
        model, batch = importlib.import_module(f"graphs.zoo.{workload.name}").make(sizes)
    return capture(model, batch, training=bool(sizes["training"]), optimizer=workload.optimizer, name=name)
