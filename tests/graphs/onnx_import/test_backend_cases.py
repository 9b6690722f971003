"""The models with which the onnx package tests backends: each imported, or refused in a sentence."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import onnx
import pytest

from graphs.errors import InputError
from graphs.onnx_import.importer import load_onnx_file

DATA = Path(os.path.dirname(onnx.__file__)) / "backend/test/data"


def taken(path: Path) -> bool:
    try:
        load_onnx_file(path)
    except InputError as error:
        said = str(error)
    else:
        return True
    assert said.startswith("ONNX file")
    assert said.isprintable()
    assert len(said) < 5000
    return False


def test_those_that_lie_in_the_package() -> None:
    paths = sorted(path for kind in ("simple", "pytorch-*") for path in DATA.glob(f"{kind}/*/model.onnx"))
    assert len(paths) >= 100
    refused = [path.parent.name for path in paths if not taken(path)]
    assert len(refused) <= 0.1 * len(paths), refused


@pytest.mark.slow
def test_all_of_the_operators(tmp_path: Path) -> None:
    from onnx.backend.test.case.node import collect_testcases

    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [case for case in collect_testcases(None) if case.model is not None]
    refused = []
    for case in cases:
        assert case.model is not None
        onnx.save(case.model, path)
        if not taken(path):
            refused.append(case.name)
    # What is left are graphs that compute nothing, sequences as inputs, and sizes that are inputs.
    assert len(refused) <= 0.1 * len(cases), refused
