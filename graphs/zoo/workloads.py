"""Which workloads the zoo has, and what the name of each may set. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphs.errors import InputError


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


@dataclass(frozen=True)
class Workload:
    """A model of the zoo, known by name before it is loaded.

    Attributes:
        name: As in `ZOO`, and the module ``graphs.zoo.<name>`` that has ``make(sizes) -> (model, example batch)``; the
            model returns its loss.
        about: One line for people, with the source.
        knobs: What its name may set, by key; among them always ``batch``, ``dtype``, ``optimizer`` and ``training``.
    """

    name: str
    about: str
    knobs: Mapping[str, Knob]

    @property
    def optimizer(self) -> str:
        """What it is trained with where its name does not say."""
        return str(self.knobs["optimizer"].default)


FLOATS = ("float32", "bfloat16", "float16")
"""What parameters, activations, gradients and the optimizer's state may be in; no float32 copy is kept beside them."""


def _knobs(
    batch: Knob,
    sizes: Mapping[str, Knob],
    optimizer: str,
    *,
    optimizers: tuple[str, ...] = ("sgd", "momentum", "rmsprop", "adam", "adamw"),
    int8: bool = False,
) -> dict[str, Knob]:
    """The knobs of a workload: its own, and those that all have."""
    dtypes = (*FLOATS, "int8") if int8 else FLOATS
    meaning = "of parameters, activations and gradients" + (
        "; int8: products of int8 in inference, the rest in bfloat16" if int8 else ""
    )
    return {
        **sizes,
        "batch": batch,
        "dtype": Knob("float32", meaning, choices=dtypes),
        "optimizer": Knob(optimizer, "what training updates the parameters with", choices=optimizers),
        "training": Knob(1, "1: forward, backward and update; 0: the forward pass in evaluation mode", minimum=0),
    }


_CLASSES = Knob(1000, "classes", minimum=2)

_WORKLOADS = (
    Workload(
        "rnnlm",
        "language model of unrolled LSTM layers (Zaremba 2014, arXiv 1409.2329; sizes of Mirhoseini 2017)",
        _knobs(
            Knob(64, "sequences a step"),
            {
                "layers": Knob(2, "LSTM layers"),
                "hidden": Knob(2048, "width of the embedding and of each layer"),
                "steps": Knob(40, "unrolled time steps"),
                "vocabulary": Knob(10_000, "words", minimum=2),
            },
            "adam",
        ),
    ),
    Workload(
        "nmt",
        "LSTM encoder and decoder with attention (Bahdanau 2014, arXiv 1409.0473; sizes of Mirhoseini 2017)",
        _knobs(
            Knob(64, "sentence pairs a step"),
            {
                "layers": Knob(2, "LSTM layers of the encoder, and as many of the decoder"),
                "hidden": Knob(1024, "width of embeddings, layers and attention"),
                "steps": Knob(40, "unrolled time steps of the encoder, and as many of the decoder"),
                "vocabulary": Knob(32_000, "words of each language", minimum=2),
                "attention": Knob(
                    "top", "the decoder layer whose last state asks: bottom or top", choices=("bottom", "top")
                ),
            },
            "adam",
        ),
    ),
    Workload(
        "inception_v3",
        "image classifier of branching convolutions (Szegedy 2015, arXiv 1512.00567)",
        _knobs(
            Knob(32, "images a step"),
            {
                "image": Knob(299, "height and width of an image in pixels; 299 with the auxiliary head", minimum=75),
                "classes": _CLASSES,
                "aux": Knob(1, "1: with the auxiliary head, which only training uses; 0: without", minimum=0),
            },
            "rmsprop",
        ),
    ),
    Workload(
        "resnet50",
        "image classifier of residual blocks (He 2015, arXiv 1512.03385)",
        _knobs(
            Knob(32, "images a step"),
            {
                "image": Knob(224, "height and width of an image in pixels", minimum=32),
                "classes": _CLASSES,
                "stride": Knob(
                    "3x3",
                    "the convolution of a block that shrinks the image: 3x3 as all code does, 1x1 as in the paper",
                    choices=("3x3", "1x1"),
                ),
            },
            "momentum",
        ),
    ),
    Workload(
        "nasnet",
        "NASNet-A large, an image classifier of irregular cells found by search (Zoph 2017, arXiv 1707.07012)",
        _knobs(
            Knob(8, "images a step"),
            {
                "image": Knob(331, "height and width of an image in pixels", minimum=32),
                "cells": Knob(6, "normal cells in each of the three stages", minimum=2),
                "filters": Knob(168, "channels of a branch in the first stage", minimum=8),
                "classes": _CLASSES,
            },
            "rmsprop",
        ),
    ),
    Workload(
        "transformer_lm",
        "decoder-only language model, GPT-2 small (Radford 2019; Vaswani 2017, arXiv 1706.03762)",
        _knobs(
            Knob(8, "sequences a step"),
            {
                "layers": Knob(12, "transformer blocks"),
                "hidden": Knob(768, "width"),
                "heads": Knob(12, "attention heads"),
                "length": Knob(1024, "tokens of a sequence"),
                "vocabulary": Knob(50_257, "tokens that there are", minimum=2),
            },
            "adam",
            int8=True,
        ),
    ),
    Workload(
        "bert",
        "bidirectional transformer in pre-training, BERT-base (Devlin 2018, arXiv 1810.04805)",
        _knobs(
            Knob(32, "sequences a step"),
            {
                "layers": Knob(12, "transformer layers"),
                "hidden": Knob(768, "width"),
                "heads": Knob(12, "attention heads"),
                "length": Knob(128, "tokens of a sequence", minimum=2),
                "masked": Knob(20, "tokens of a sequence that are to be guessed"),
                "vocabulary": Knob(30_522, "tokens that there are", minimum=2),
            },
            "adam",
            int8=True,
        ),
    ),
    Workload(
        "moe_lm",
        "language model of sparsely gated experts (Shazeer 2017, arXiv 1701.06538; routing of Zhou 2022, 2202.09368)",
        _knobs(
            Knob(8, "sequences a step"),
            {
                "experts": Knob(16, "experts in each block", minimum=2),
                "experts_a_token": Knob(2, "experts that a token meets, on average"),
                "layers": Knob(4, "transformer blocks"),
                "hidden": Knob(1024, "width"),
                "heads": Knob(16, "attention heads"),
                "length": Knob(512, "tokens of a sequence"),
                "vocabulary": Knob(32_000, "tokens that there are", minimum=2),
            },
            "adam",
            int8=True,
        ),
    ),
    Workload(
        "dlrm",
        "recommendation by 26 embedding tables larger than any GPU (Naumov 2019, arXiv 1906.00091; sizes of MLPerf)",
        _knobs(
            Knob(8192, "samples a step"),
            {
                "rows": Knob(80_000_000, "most rows of a table; MLPerf caps at 40,000,000"),
                "width": Knob(128, "width of a row"),
                "lookups": Knob(1, "rows that a sample looks up in each table, summed"),
            },
            "sgd",
            optimizers=("sgd", "adam"),
            int8=True,
        ),
    ),
)

ZOO: dict[str, Workload] = {workload.name: workload for workload in _WORKLOADS}
"""All workloads by name."""
