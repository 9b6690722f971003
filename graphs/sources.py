"""Where a computation graph comes from: one text names it, and `load_graph` gets it.

Importing this loads no torch; naming a model of the zoo or a function does.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError, unknown_name
from graphs.files import SUFFIXES, load_graph_file
from graphs.microbatch import MicroBatches, microbatch, repeat
from graphs.onnx_import.importer import SUFFIX as ONNX_SUFFIX
from graphs.onnx_import.importer import load_onnx_file
from graphs.zoo import ZOO, build, canonical_name, parse
from graphs.zoo import load as load_zoo

PYTHON_PREFIX = "python:"
"""How a source begins that runs a function of the user's; no other source runs anything."""

HF_PREFIX = "hf:"
"""How a source begins that is a configuration of the Transformers library; see `graphs.huggingface`."""

_PYTHON_SUFFIX = ".py"

_SIZE = re.compile(r"(.+?)=(-?[0-9]{1,18}|[0-9]{1,18}(?:x[0-9]{1,18})+)(?:,|$)")
"""A size behind the name of an ONNX file: of one dimension, or of all dimensions of a tensor."""

CAPTURE_OPTIONS = ("loss", "training", "optimizer", "clip_grad_norm", "step", "name")
"""What a dict that such a function returns may hold besides ``model`` and ``example_batch``."""

_READABLE = (
    f"a workload of the zoo ({', '.join(sorted(ZOO))}; sizes may follow, as in nmt:layers=4), a file that ends in "
    f"{', '.join(SUFFIXES)} or {ONNX_SUFFIX}, {HF_PREFIX}FOLDER, or a function that returns a model, as "
    f"FILE.py:function or {PYTHON_PREFIX}package.module:function"
)


def python_source(source: str) -> str:
    """The source ``python:package.module:function`` that a path of a file means, ``package/module.py:function``.

    Every other source comes back as it is.

    Raises:
        InputError: The file is not in the working directory or a folder of it, where modules are looked for.
    """
    path, colon, function = source.rpartition(f"{_PYTHON_SUFFIX}:")
    if not colon or source.startswith((PYTHON_PREFIX, HF_PREFIX)):
        return source
    inside = os.path.relpath(path)
    if inside.startswith(os.pardir):
        raise InputError(
            f"graph '{source}' is outside the working directory {os.getcwd()}; run from the folder that holds it"
        )
    return f"{PYTHON_PREFIX}{inside.replace(os.sep, '.')}:{function}"


def runs_code(source: str) -> bool:
    """Whether a source is a function of the user's, which is run."""
    return python_source(source).startswith(PYTHON_PREFIX)


def load_graph(source: str) -> ComputationGraph:
    """Get the graph that a text names.

    ============================  ====================================================================================
    source                        the graph
    ============================  ====================================================================================
    ``nmt``, ``nmt:layers=4``     a workload of the zoo, captured once and then cached; see `graphs.zoo.load`
    ``step.graph.json[.gz]``      a graph file; see `graphs.files.load_graph_file`
    ``model.onnx``                an ONNX model's inference step; see `graphs.onnx_import.importer.load_onnx_file`
    ``model.onnx:batch=8,x.1=4``  the same, with sizes for dimensions that the file leaves open
    ``hf:PATH:phase=decode``      a step of a language model from its ``config.json``; see `graphs.huggingface`
    ``python:pkg.mod:function``   the model that a function returns, captured; the only source that runs user code
    ``pkg/mod.py:function``       the same, by the path of its file
    ============================  ====================================================================================

    The function is looked up with the working directory on the path, and is called without arguments. It returns
    ``(model, example_batch)``, ``(model, example_batch, loss)``, or a dict of these and any of ``training``,
    ``optimizer``, ``clip_grad_norm``, ``step`` and ``name``: the arguments of `graphs.capture.capture`. Without a name
    the graph is called as its source.

    Args:
        source: What names the graph.

    Raises:
        InputError: The text names nothing that can be read, or what it names is not valid; the message is one sentence
            that says what and, for a function, what it raised and where.
    """
    source = python_source(source)
    if source.startswith(PYTHON_PREFIX):
        return _from_function(source)
    if source.startswith(HF_PREFIX):
        from graphs.huggingface import load_huggingface  # imports torch, so not before it is needed

        return load_huggingface(source)
    if source.endswith(SUFFIXES):
        return load_graph_file(source)
    onnx_path, onnx_sizes = _split_onnx(source)
    if onnx_path:
        return load_onnx_file(onnx_path, onnx_sizes)
    name = source.partition(":")[0]
    if name in ZOO:
        return load_zoo(source)
    if source.endswith(_PYTHON_SUFFIX):
        raise InputError(f"graph '{source}' does not say which function returns the model; write {source}:function")
    if not name or "." in name or "/" in name or os.sep in name or os.path.exists(source):
        raise InputError(f"graph '{source}' is of no kind that can be read; give {_READABLE}")
    known = unknown_name("graph", name, ZOO)
    raise InputError(
        f"{known}; or give a file that ends in {', '.join(SUFFIXES)} or {ONNX_SUFFIX}, or FILE.py:function"
    )


def load_microbatches(source: str, count: int, *, batches: int = 1, made: int | None = None) -> MicroBatches:
    """Get the step that a text names, cut into micro-batches.

    Models are captured with the batch of one micro-batch, which is exact; a graph file and an ONNX model are scaled,
    see `graphs.microbatch`. Of a function's example batch those tensors are
    cut whose leading dimension is that of the first.

    Args:
        source: As for `load_graph`.
        count: How many micro-batches the batch is cut into.
        batches: How many such batches a step takes.
        made: Make the ops of so many micro-batches only, see `graphs.microbatch.repeat`.

    Raises:
        InputError: As `load_graph`; or the batch cannot be divided so.
    """
    if count < 1:
        raise InputError(f"graph '{source}': the number of micro-batches is {count}; it must be at least 1")
    source = python_source(source)
    if source.startswith(PYTHON_PREFIX):
        return repeat(_from_function(source, count), count * batches, made=made)
    name = source.partition(":")[0]
    if name not in ZOO or source.endswith(SUFFIXES):
        return microbatch(load_graph(source), count, batches=batches, made=made)
    workload, sizes = parse(source)
    batch = int(sizes["batch"])
    _check_divides(source, batch, count)
    part = load_zoo(canonical_name(workload, {**sizes, "batch": batch // count}))
    return repeat(part, count * batches, made=made)


def _check_divides(source: str, batch: int, count: int) -> None:
    if batch % count:
        raise InputError(
            f"graph '{source}' has a batch of {batch}, which {count} micro-batches do not divide; take a number that "
            "does, or another batch"
        )


def onnx_path(source: str) -> str | None:
    """The path of the ``.onnx`` file that a source names; None where it names something else."""
    if runs_code(source) or source.startswith(HF_PREFIX) or source.endswith(SUFFIXES):
        return None
    return _split_onnx(source)[0] or None


def _split_onnx(source: str) -> tuple[str, dict[str, int | tuple[int, ...]]]:
    """The path of an ONNX file and the sizes behind it; an empty path where the source is none."""
    if source.endswith(ONNX_SUFFIX):
        return source, {}
    path, colon, text = source.rpartition(f"{ONNX_SUFFIX}:")
    if not colon:
        return "", {}
    sizes: dict[str, int | tuple[int, ...]] = {}
    while text:
        # Names of tensors may hold commas and equals signs, so a setting ends where a size does.
        setting = _SIZE.match(text)
        if setting is None:
            wrong = text.partition(",")[0]
            raise InputError(
                f"graph '{source}': '{wrong}' does not give a dimension a size; write {path}{ONNX_SUFFIX}:batch=8"
            )
        key, value, text = setting[1].strip(), setting[2], text[setting.end() :]
        sizes[key] = tuple(int(n) for n in value.split("x")) if "x" in value else int(value)
    return path + ONNX_SUFFIX, sizes


def check_can_run(source: str) -> None:
    """Raise where a source has no model behind it.

    Raises:
        InputError: It is a file.
    """
    if source.startswith(HF_PREFIX):
        raise InputError(
            f"graph '{source}' is a configuration without weights, which describes a step but cannot be run; name a "
            f"workload of the zoo or {PYTHON_PREFIX}package.module:function"
        )
    if not runs_code(source) and (source.endswith(SUFFIXES) or _split_onnx(source)[0]):
        raise InputError(
            f"graph '{source}' is a file, which describes a step but cannot be run; name a workload of the zoo or "
            f"{PYTHON_PREFIX}package.module:function"
        )


def load_model(source: str) -> dict[str, Any]:
    """The model behind a source, with its weights, so that its step can be run.

    A workload of the zoo gets random weights and a random batch, the same ones each time.

    Args:
        source: A workload of the zoo, or ``python:package.module:function``.

    Returns:
        The arguments of `graphs.capture.capture_program`, among them ``model`` and ``example_batch``.

    Raises:
        InputError: The source is a file, which holds no code to run, or as `load_graph`.
    """
    check_can_run(source)
    source = python_source(source)
    if source.startswith(PYTHON_PREFIX):
        with _working_directory_on_path():
            return _call_function(source)
    workload, sizes = parse(source)
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, batch = build(workload, sizes)
        batch = {
            # 0 and 1 are a word, a class, a place and a row in every workload.
            key: torch.randint_like(t, 2) if t.dtype == torch.int64 else torch.rand(t.shape).to(t.dtype)
            for key, t in batch.items()
        }
    return {
        "model": model,
        "example_batch": batch,
        "training": bool(sizes["training"]),
        "optimizer": str(sizes["optimizer"]),
        "name": canonical_name(workload, sizes),
    }


def _from_function(source: str, parts: int = 1) -> ComputationGraph:
    """Import the user's module, call its function and capture what it returns, with one of `parts` of the batch."""
    with _working_directory_on_path():
        options = _call_function(source)
        from graphs.capture import capture  # imports torch, so not before it is needed

        batch = options.pop("example_batch")
        if parts > 1:
            from graphs.capture.batches import part_of_batch, size_of_batch

            _check_divides(source, size_of_batch(batch), parts)
            batch = part_of_batch(batch, parts)
        return capture(options.pop("model"), batch, **options)


def _call_function(source: str) -> dict[str, Any]:
    """Import the user's module and call its function: the arguments of `capture`."""
    module_name, colon, function_name = source.removeprefix(PYTHON_PREFIX).partition(":")
    if not colon or not function_name.isidentifier() or not all(p.isidentifier() for p in module_name.split(".")):
        raise InputError(
            f"graph '{source}' does not name a function; write {PYTHON_PREFIX}package.module:function, for example "
            f"{PYTHON_PREFIX}my_models:make_step for make_step in my_models.py"
        )
    function = _find_function(source, module_name, function_name)
    with _blame(source, f"function '{function_name}'"):
        returned = function()
    options = _options(source, function_name, returned)
    options.setdefault("name", source)
    return options


def _find_function(source: str, module_name: str, function_name: str) -> Callable[[], Any]:
    # A module that was written after the interpreter looked at its folder is found only after this.
    importlib.invalidate_caches()
    module = _import(source, module_name)
    function = getattr(module, function_name, None)
    if function is None:
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise InputError(
            f"graph '{source}': {unknown_name(f'function of module {module_name!r}', function_name, names)}"
        )
    if not callable(function):
        raise InputError(f"graph '{source}': '{function_name}' is of type {_type(function)}, not a function")
    return function


def _import(source: str, module_name: str) -> ModuleType:
    try:
        with _blame(source, f"module '{module_name}'", ModuleNotFoundError):
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if missing == module_name or module_name.startswith(f"{missing}."):
            raise InputError(
                f"graph '{source}': there is no module '{missing}' in {os.getcwd()} or among the installed packages; "
                "check the name, or run from the folder that holds it"
            ) from error
        raise InputError(
            f"graph '{source}': module '{module_name}' imports '{missing}', which is not installed; install it"
        ) from error


def _options(source: str, function_name: str, returned: Any) -> dict[str, Any]:
    """What the function returned, as arguments of `capture`."""
    if isinstance(returned, tuple) and len(returned) in (2, 3):
        options = dict(zip(("model", "example_batch", "loss"), returned, strict=False))
    elif isinstance(returned, Mapping):
        options = dict(returned)
    else:
        what = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else f"a value of type {_type(returned)}"
        raise InputError(
            f"graph '{source}': function '{function_name}' returned {what}; it must return "
            "(model, example_batch, loss) or a dict of these"
        )
    known = ("model", "example_batch", *CAPTURE_OPTIONS)
    for key in options:
        if key not in known:
            raise InputError(f"graph '{source}': {unknown_name('key of the returned dict', str(key), known)}")
    for key in ("model", "example_batch"):
        if key not in options:
            raise InputError(f"graph '{source}': the dict that '{function_name}' returned has no '{key}'; add it")
    from torch import nn

    if type(options["model"]).__name__ == "ExportedProgram":
        raise InputError(
            f"graph '{source}': '{function_name}' returned an ExportedProgram, which is no module; return its "
            ".module(), with a batch of the sizes that it was exported for"
        )
    if not isinstance(options["model"], nn.Module):
        raise InputError(
            f"graph '{source}': the model that '{function_name}' returned is of type {_type(options['model'])}, not "
            "a torch.nn.Module; return (model, example_batch, loss)"
        )
    for key, what in (("loss", "the model's output"), ("step", "the model, a batch and what updates")):
        if options.get(key) is not None and not callable(options[key]):
            raise InputError(
                f"graph '{source}': the {key} that '{function_name}' returned is of type {_type(options[key])}, not "
                f"a function of {what}"
            )
    if options.get("clip_grad_norm") is None:
        options.pop("clip_grad_norm", None)
    for key, kind, shown in (
        ("training", bool, "bool"),
        ("optimizer", str, "str"),
        ("clip_grad_norm", int | float, "a number"),
        ("name", str, "str"),
    ):
        if key in options and not isinstance(options[key], kind):
            raise InputError(
                f"graph '{source}': {key} that '{function_name}' returned is of type {_type(options[key])}, not {shown}"
            )
    return options


def _type(value: Any) -> str:
    return type(value).__name__


@contextmanager
def _blame(source: str, what: str, *passed_on: type[Exception]) -> Iterator[None]:
    """Turn whatever the user's code raises into one sentence that says what and where."""
    try:
        yield
    except passed_on:
        raise
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        text = f": {text[:300]}" if text else ""
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, SyntaxError):
            where = f"{error.filename}, line {error.lineno}"
        else:
            where = f"{frames[-1].filename}, line {frames[-1].lineno}"
        raise InputError(f"graph '{source}': {what} raised {type(error).__name__}{text} ({where})") from error


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """Let the user's modules be imported from where the command is run, as ``python -m`` does."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
