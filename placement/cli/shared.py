"""What several verbs of the command need: consoles, and a problem that is loaded while a status says so."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from graphs.errors import InputError, InputWarning, printable
from placement.runs.observer import RunObserver

if TYPE_CHECKING:
    from envs.clusters.cluster import Cluster
    from envs.problem import PlacementProblem

_PLAIN_WIDTH = 100
"""Columns of a table that does not go to a terminal."""


class _Console(Console):
    """A console that obeys no name, and leaves it to `placement.cli.main` what happens where nobody reads any more."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What rich renders, with an escape in place of what a terminal would obey: names come from files."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment("\n".join(printable(line) for line in segment.text.split("\n")), segment.style)

    def on_broken_pipe(self) -> None:
        """Raise the error that rich is handling; by itself it ends the program with exit code 1."""
        raise


def make_console(*, stderr: bool = False) -> Console:
    """A console that shows names as they are: brackets and colons in them are no markup."""
    console = _Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PLAIN_WIDTH
    return console


@contextlib.contextmanager
def status(err: Console, text: str) -> Iterator[None]:
    """Say what takes a while, as long as the context lasts; what is warned of meanwhile is shown as a line each."""
    with warnings.catch_warnings(record=True) as caught, err.status(Text(printable(text))):
        warnings.simplefilter("always", InputWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, InputWarning):
            err.print(Text(printable(str(warning.message))), style="yellow", soft_wrap=True)
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


def chosen_cluster(cluster: str | None, topology: str | None) -> str | Cluster:
    """What --cluster and --topology mean: a cluster, another machine's outputs, or this machine, which a line says.

    Raises:
        InputError: Both are given, or what is given cannot be read.
    """
    if cluster is not None and topology is not None:
        raise InputError("--cluster and --topology both say where to; leave one of them out")
    if cluster is not None:
        return cluster
    from placement import api

    err = make_console(stderr=True)
    measured_now = False
    with contextlib.ExitStack() as measuring:

        def on_measure() -> None:
            nonlocal measured_now
            measured_now = True
            measuring.enter_context(status(err, "measuring this machine, once: less than a minute"))

        made = api.machine(topology=topology, on_measure=on_measure)
    if topology is None:
        when = f", as measured on {made.measured.when}" if made.measured is not None else ""
        said = f"no --cluster is given: this machine{when} ({made.cluster.summary}); see: placement machine"
        err.print(Text(printable(said)), style="dim", soft_wrap=True)
    for note in made.notes if topology is not None or measured_now else ():
        err.print(Text(printable(note)), style="yellow", soft_wrap=True)
    return made.cluster


def cluster_of_placement(
    placement: str, graph: str | None, cluster: str | None, topology: str | None
) -> str | Cluster | None:
    """Where a placement file's graph is placed to; None for a run, which knows it.

    Without --cluster and --topology that is the cluster that the placement names or, where it names none that is known,
    this machine; a line says which.

    Raises:
        InputError: Both are given, or what is given cannot be read.
    """
    if graph is None and topology is None:
        return cluster
    if cluster is None and topology is None and os.path.isfile(placement):
        from placement.results.placement_file import named_cluster, read_placement

        result = read_placement(placement)
        named = named_cluster(result)
        if named is not None:
            same = named.sha256 == result.cluster.sha256
            text = f"no --cluster is given: {named.name}, which the placement names"
            text += "" if same else "; its figures are others than those that the placement was made for"
            make_console(stderr=True).print(Text(printable(text)), style="dim", soft_wrap=True)
            return named
    return chosen_cluster(cluster, topology)


def load(
    graph: str,
    cluster: str | Cluster,
    schedule: str,
    groups: int,
    *,
    pin: Sequence[str] = (),
    forbid: Sequence[str] = (),
    reserve: Sequence[str] = (),
) -> PlacementProblem:
    """The problem of a graph and a cluster; a status says that it is being read.

    Raises:
        InputError: Something of it does not exist or is not valid.
    """
    with status(make_console(stderr=True), f"reading {graph}"):
        from placement import api

        return api.make_problem(
            graph, cluster, schedule=schedule, groups=groups, pin=pin, forbid=forbid, reserve=reserve
        )


class HeadingDisplay(RunObserver):
    """Shows what a run is about: a status for what takes a while, and the problem.

    Args:
        out: Where results go.
        err: Where progress goes.
    """

    def __init__(self, out: Console, err: Console) -> None:
        self.out = out
        self.err = err

    def stage(self, text: str) -> AbstractContextManager[object]:
        """Show a status."""
        return status(self.err, text)

    def on_problem(self, problem: PlacementProblem) -> None:
        """Print what is placed."""
        from placement.cli.report import problem_heading

        self.out.print(problem_heading(problem))
