"""Captured graphs of the zoo, kept under the user's cache directory so that a second use needs no PyTorch.

A file's name holds a digest of all that determines the graph: the workload with its sizes, the version of PyTorch, and
the source code that captures, builds and writes it. A change of any of these makes a new file. ``XDG_CACHE_HOME`` (on
Linux) moves the directory.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

from platformdirs import user_cache_path

from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError
from graphs.files import load_graph_file, save_graph_file

_SOURCES = ("capture/*.py", "computation_graph.py", "files.py", "zoo/*.py")
"""Source files, from the folder of `graphs`, that a captured graph depends on."""


def cached(name: str, make: Callable[[], ComputationGraph]) -> ComputationGraph:
    """The graph called `name` from the cache; made and put there where it is missing or damaged.

    A cache that cannot be written costs time, no result: it is logged as a warning.
    """
    path = cache_file(name)
    if path.exists():
        try:
            return load_graph_file(path)
        except InputError as error:
            logging.getLogger(__name__).warning("capturing again: %s", error)
    graph = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_graph_file(graph, path)
    except (OSError, InputError) as error:
        logging.getLogger(__name__).warning("graph '%s' is not cached: %s", name, error)
    return graph


def cache_file(name: str) -> Path:
    """Where the graph of a workload called `name` is kept."""
    digest = hashlib.sha256(f"{name}\0{version('torch')}\0{_source_digest()}".encode()).hexdigest()
    return user_cache_path("device-placement") / "graphs" / f"{name.partition(':')[0]}-{digest[:24]}.graph.json.gz"


@cache
def _source_digest() -> str:
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for pattern in _SOURCES:
        for path in sorted(root.glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
