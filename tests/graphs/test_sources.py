"""One text names a graph: the zoo, a file, a function; and what is said of a text that names none."""

import subprocess
import sys
from pathlib import Path

import pytest

from graphs.errors import InputError
from graphs.files import save_graph_file
from graphs.sources import load_graph
from graphs.synthetic import random_graph

MODELS = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

BATCH = torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64)
NOT_A_FUNCTION = 3

def make():
    return model(), BATCH, nn.CrossEntropyLoss()

def make_dict():
    return {"model": model(), "example_batch": BATCH[0], "training": False, "name": "mine"}

def make_sgd():
    return {"model": model(), "example_batch": BATCH, "loss": nn.CrossEntropyLoss(), "optimizer": "sgd"}

def make_clipped():
    return make_sgd() | {"clip_grad_norm": 1}

def with_late_import():
    import beside
    return make()

def one(): return model()
def four(): return 1, 2, 3, 4
def no_model(): return 1, 2
def no_batch(): return {"model": model()}
def misspelt(): return {"model": model(), "example_batch": BATCH, "los": None}
def no_loss(): return model(), BATCH, 3
def bad_training(): return {"model": model(), "example_batch": BATCH, "training": "yes"}
def bad_optimizer(): return {"model": model(), "example_batch": BATCH, "optimizer": "adamm"}
def bad_clip(): return make_sgd() | {"clip_grad_norm": "1"}
def negative_clip(): return make_sgd() | {"clip_grad_norm": -1}
def raises(): raise RuntimeError("the data is\\nnot here")
def leaves(): raise SystemExit(1)
def untraceable():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)
        def forward(self, x):
            return self.layer(x).sum() if x.sum() > 0 else self.layer(x).mean()
    return Looks(), BATCH[0]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_models.py").write_text(MODELS)
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "broken.py").write_text("def make(:\n")
    (tmp_path / "needs.py").write_text("import a_package_that_is_missing\n")
    (tmp_path / "fails.py").write_text("x = 1\n1 / 0\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "inner.py").write_text("from user_models import make\n")
    for name in ("user_models", "beside", "broken", "needs", "fails", "package", "package.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_file_is_read(tmp_path: Path) -> None:
    graph = random_graph(20)
    save_graph_file(graph, tmp_path / "a.b.graph.json.gz")
    assert load_graph(str(tmp_path / "a.b.graph.json.gz")).sha256 == graph.sha256


def test_a_workload_of_the_zoo_is_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphs.zoo.cache.user_cache_path", lambda app: tmp_path / app)
    graph = load_graph("rnnlm:steps=2,hidden=8,vocabulary=20,batch=3")
    assert {"rnnlm", "steps=2"} <= set(graph.name.replace(":", ",").split(","))
    assert {"cells.0", "cells.1", "softmax"} <= set(graph.module_names)


def test_a_function_returns_a_model(here: Path) -> None:
    graph = load_graph("python:user_models:make")
    assert graph.name == "python:user_models:make"
    assert graph.total_flops == 2 * 5 * (4 * 3 * 2 + 3 * 2 * 3)
    assert {"adam_update"} == {t for t in graph.type_names if "update" in t}
    assert load_graph("python:package.inner:make").sha256 == graph.sha256
    by_file = [
        load_graph(path) for path in ("user_models.py:make", "./user_models.py:make", f"{here}/user_models.py:make")
    ]
    assert {(each.name, each.sha256) for each in by_file} == {(graph.name, graph.sha256)}
    assert load_graph("package/inner.py:make").name == "python:package.inner:make"
    assert load_graph("python:user_models:with_late_import").sha256 == graph.sha256
    assert "sgd_update" in load_graph("python:user_models:make_sgd").type_names
    assert "linalg_vector_norm" in load_graph("python:user_models:make_clipped").type_names
    forward = load_graph("python:user_models:make_dict")
    assert forward.name == "mine"
    assert forward.total_flops == 2 * 5 * (4 * 3 + 3 * 2)
    assert str(here) not in sys.path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("python:user_models", "does not name a function; write python:package.module:function"),
        ("python:user_models:", "does not name a function"),
        ("python::make", "does not name a function"),
        ("python:../user_models:make", "does not name a function"),
        ("user_models.py", "does not say which function returns the model; write user_models.py:function"),
        ("user_models.py:", "does not name a function"),
        ("user_modelz.py:make", "there is no module 'user_modelz' in "),
        ("../user_models.py:make", "is outside the working directory"),
        ("python:user_modelz:make", "there is no module 'user_modelz' in "),
        ("python:package.outer:make", "there is no module 'package.outer' in "),
        ("python:user_models:mak", "unknown function of module 'user_models' 'mak' (did you mean 'make'?); known: "),
        ("python:user_models:NOT_A_FUNCTION", "'NOT_A_FUNCTION' is of type int, not a function"),
        ("python:broken:make", "module 'broken' raised SyntaxError: "),
        ("python:needs:make", "module 'needs' imports 'a_package_that_is_missing', which is not installed"),
        ("python:fails:make", "module 'fails' raised ZeroDivisionError: division by zero ("),
        (
            "python:user_models:one",
            "returned a value of type Sequential; it must return (model, example_batch, loss) or a dict",
        ),
        ("python:user_models:four", "returned a tuple of 4; it must return"),
        ("python:user_models:no_model", "the model that 'no_model' returned is of type int, not a torch.nn.Module"),
        ("python:user_models:no_batch", "the dict that 'no_batch' returned has no 'example_batch'; add it"),
        ("python:user_models:misspelt", "unknown key of the returned dict 'los' (did you mean 'loss'?)"),
        ("python:user_models:no_loss", "the loss that 'no_loss' returned is of type int, not a function"),
        ("python:user_models:bad_training", "training that 'bad_training' returned is of type str, not bool"),
        ("python:user_models:bad_optimizer", "unknown optimizer 'adamm' (did you mean 'adam'?)"),
        ("python:user_models:bad_clip", "clip_grad_norm that 'bad_clip' returned is of type str, not a number"),
        ("python:user_models:negative_clip", "clip_grad_norm is -1; give the largest norm"),
        ("python:user_models:raises", "function 'raises' raised RuntimeError: the data is not here ("),
        ("python:user_models:leaves", "function 'leaves' raised SystemExit: 1 ("),
        ("python:user_models:untraceable", "cannot be traced"),
        ("rnnlmm", "unknown graph 'rnnlmm' (did you mean 'rnnlm'?); known: "),
        ("rnnlm:stepz=3", "'stepz' (did you mean 'steps'?)"),
        ("model.h5", "is of no kind that can be read; give a workload of the zoo ("),
        ("folder/model", "is of no kind that can be read"),
        ("package", "is of no kind that can be read"),
        ("", "is of no kind that can be read"),
        ("none.graph.json", "graph file 'none.graph.json' does not exist"),
    ],
)
def test_what_is_said_of_a_bad_source(here: Path, source: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_graph(source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(here) not in sys.path


def test_where_user_code_raised_is_named(here: Path) -> None:
    with pytest.raises(InputError, match=r"user_models\.py, line \d+\)"):
        load_graph("python:user_models:raises")
    with pytest.raises(InputError, match=r"fails\.py, line 2\)"):
        load_graph("python:fails:make")
    with pytest.raises(InputError, match=r"broken\.py, line 1\)"):
        load_graph("python:broken:make")


def test_an_interrupt_is_passed_on(here: Path) -> None:
    (here / "stops.py").write_text("def make():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_graph("python:stops:make")


def test_importing_and_reading_files_loads_no_torch(tmp_path: Path) -> None:
    save_graph_file(random_graph(5), tmp_path / "g.graph.json")
    code = (
        "import sys, graphs, graphs.sources, graphs.colocation.rules\n"
        f"graphs.sources.load_graph({str(tmp_path / 'g.graph.json')!r})\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
