"""The measuring process imports nothing from where it is started, unless its source is a function there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from envs.measured.machine import parse_devices
from envs.measured.process import MeasuringProcess, _import_path
from graphs.errors import InputError


def test_modules_of_the_working_directory_are_not_run_for_a_workload_of_the_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envs.measured.process.subprocess", subprocess)  # a process of its own, which imports
    for name in ("msgspec", "numpy", "torch", "envs", "graphs", "sitecustomize", "usercustomize", "triton", "random"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w'); raise ImportError('shadow')")
    monkeypatch.chdir(tmp_path)
    source = "rnnlm:layers=1,hidden=8,steps=2,vocabulary=20,batch=2"
    with (
        MeasuringProcess(source, "0" * 64, parse_devices("cpu:0"), np.zeros(0)) as process,
        pytest.raises(InputError, match="another graph"),  # so the model was built
    ):
        process.start()
    assert not (tmp_path / "RAN").exists()


def test_only_a_function_is_looked_up_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert os.getcwd() not in _import_path("nmt")
    assert os.getcwd() in _import_path("python:models:make")
