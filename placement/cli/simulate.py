"""The verb ``simulate``: one step under a placement."""

from __future__ import annotations

from pathlib import Path

from envs.problem import PlacementProblem
from graphs.errors import InputError
from graphs.files import write_atomically
from placement import api
from placement.arguments import check_can_plot, check_can_write, check_positive
from placement.cli import verbs
from placement.cli.report import simulated_report
from placement.cli.shared import chosen_cluster, load, make_console, status
from placement.results.comparison import check_seed
from placement.results.simulated import encode_simulated
from placement.runs.directory import run_of


def simulate(verb: verbs.Simulate) -> int:
    """Simulate one step, show it, and write what was asked for.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: The placement does not fit.
    """
    check_positive("--time-limit-s", verb.time_limit_s)
    check_can_write(verb.json, verb.trace, verb.plot)
    check_can_plot("--plot", verb.plot)
    check_seed(verb.seed)
    out = make_console()
    placement = api.load_placement(verb.placement)  # before the graph: a typing error should not wait for a capture
    problem = _problem(verb)
    with status(make_console(stderr=True), "placing and simulating"):
        simulated = api.simulate(
            problem,
            placement,
            time_limit_s=verb.time_limit_s,
            seed=verb.seed,
            granularity=verb.granularity,
            start=verb.start,
        )
    out.print(simulated_report(simulated))
    if verb.json is not None:
        write_atomically(verb.json, encode_simulated(simulated))
    if verb.trace is not None:
        from envs.simulator.trace_file import write_chrome_trace

        write_chrome_trace(verb.trace, simulated.trace, problem.graph, problem.cluster)
    if verb.plot is not None:
        from placement.results.trace_plot import write_trace_png

        write_trace_png(verb.plot, simulated.trace, problem.graph, problem.cluster)
    simulated.check_feasible()
    return 0


def _problem(verb: verbs.Simulate) -> PlacementProblem:
    """What is simulated: the graph that is given, or that of the run that the placement is from, with its cluster.

    Raises:
        InputError: Neither is given.
    """
    is_of_run = verb.cluster is None and verb.topology is None and run_of(Path(verb.placement)) is not None
    if verb.graph is not None:
        if is_of_run:
            raise InputError(f"missing --cluster; or leave out GRAPH, too: the run of {verb.placement} knows both")
        return load(verb.graph, chosen_cluster(verb.cluster, verb.topology), verb.schedule, verb.groups)
    if is_of_run:
        with status(make_console(stderr=True), f"reading the run of {verb.placement}"):
            problem = api.load_problem(verb.placement)
        return problem if verb.schedule == verbs.DEFAULT_SCHEDULE else problem.with_schedule(verb.schedule)
    raise InputError("missing GRAPH; see: placement simulate --help")
