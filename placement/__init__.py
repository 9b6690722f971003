"""Placers, learned and not; training, results, comparison, and the command `placement`.

Every verb of the command is a function here: `train`, `train_measured`, `train_pipeline`, `place`, `pretrain`,
`compare`, `what_if`, `simulate`, `explain`, `run`, `run_pipeline`, `profile`, `machine`, `import_graph`, `export` and
`export_stages`. `make_problem` makes what most of them take, `load_problem` takes it from a run, and
`heuristic_placements` are the votes that environments take; and there are `read_placement`, `write_placement`,
`check_placement`, `make_result`, `apply`, which runs a model by its placement, and `pipeline`, which runs one in stages
on several processes. They are imported when they are first asked for; only training and running load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.make_problem import make_problem
    from placement.api import (
        compare,
        explain,
        export,
        import_graph,
        load_problem,
        machine,
        place,
        pretrain,
        profile,
        run,
        simulate,
        train,
        train_measured,
    )
    from placement.apply_placement import apply
    from placement.exports.stage_files import export_stages
    from placement.learning.warm_start import heuristic_placements
    from placement.pipelines.on_hosts import run_pipeline
    from placement.pipelines.run import pipeline
    from placement.results.placement_file import check_placement, make_result, read_placement, write_placement
    from placement.runs.pipeline import train_pipeline
    from placement.scenarios import what_if

__version__ = "0.1.0"  # the only place: pyproject.toml reads it from here

_HOME = {
    "apply": "placement.apply_placement",
    "check_placement": "placement.results.placement_file",
    "compare": "placement.api",
    "explain": "placement.api",
    "export": "placement.api",
    "export_stages": "placement.exports.stage_files",
    "heuristic_placements": "placement.learning.warm_start",
    "import_graph": "placement.api",
    "load_problem": "placement.api",
    "machine": "placement.api",
    "make_problem": "envs.make_problem",
    "make_result": "placement.results.placement_file",
    "pipeline": "placement.pipelines.run",
    "place": "placement.api",
    "pretrain": "placement.api",
    "profile": "placement.api",
    "read_placement": "placement.results.placement_file",
    "run": "placement.api",
    "run_pipeline": "placement.pipelines.on_hosts",
    "simulate": "placement.api",
    "train": "placement.api",
    "train_measured": "placement.api",
    "train_pipeline": "placement.runs.pipeline",
    "what_if": "placement.scenarios",
    "write_placement": "placement.results.placement_file",
}

__all__ = [
    "__version__",
    "apply",
    "check_placement",
    "compare",
    "explain",
    "export",
    "export_stages",
    "heuristic_placements",
    "import_graph",
    "load_problem",
    "machine",
    "make_problem",
    "make_result",
    "pipeline",
    "place",
    "pretrain",
    "profile",
    "read_placement",
    "run",
    "run_pipeline",
    "simulate",
    "train",
    "train_measured",
    "train_pipeline",
    "what_if",
    "write_placement",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'placement' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
