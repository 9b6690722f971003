"""The verb ``compare``: several placers on one problem."""

from __future__ import annotations

from envs.simulator.workspace import available_cores
from graphs.files import write_atomically
from placement import api
from placement.arguments import check_can_plot, check_can_write, check_positive
from placement.cli import verbs
from placement.cli.progress import ComparisonDisplay
from placement.cli.report import comparison_report, problem_heading
from placement.cli.shared import chosen_cluster, load, make_console
from placement.registry import PLACERS, choose_placers
from placement.results.comparison import Comparison, check_seed
from placement.results.comparison_file import encode_comparison, encode_comparison_csv
from placement.text import clock
from placement.workers import parse_workers


def compare(verb: verbs.Compare) -> int:
    """Compare placers, show their rows, and write them where asked to.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: No placer found a placement that fits.
    """
    placers = choose_placers(verb.placers)
    check_seed(verb.seed)
    check_positive("--time-limit-s", verb.time_limit_s)
    check_can_write(verb.json, verb.csv, verb.plot)
    check_can_plot("--plot", verb.plot)
    if verb.workers is not None:
        parse_workers(verb.workers)
    out, err = make_console(), make_console(stderr=True)
    problem = load(
        verb.graph,
        chosen_cluster(verb.cluster, verb.topology),
        verb.schedule,
        verb.groups,
        pin=verb.pin,
        forbid=verb.forbid,
        reserve=verb.reserve,
    )
    out.print(problem_heading(problem))
    out.print(_plan(placers, verb.time_limit_s, verb.workers), style="dim")
    with ComparisonDisplay(err, placers, time_limit_s=verb.time_limit_s) as display:

        def show(comparison: Comparison) -> None:
            if not display.placer:
                taken = f"finished rows taken from {verb.json}: {len(comparison.rows)}"
                err.print(f"{taken}; --restart runs them again", style="yellow", soft_wrap=True)
            display.row(comparison)

        try:
            comparison = api.compare(
                problem,
                placers,
                time_limit_s=verb.time_limit_s,
                seed=verb.seed,
                granularity=verb.granularity,
                start=verb.start,
                json=verb.json,
                restart=verb.restart,
                workers=verb.workers,
                on_start=display.start,
                on_row=show,
            )
        except KeyboardInterrupt:
            if display.comparison is None:
                raise
            comparison = display.comparison
            err.print(f"stopped during {display.placer}; these are the rows before it", style="yellow")
    out.print()
    out.print(comparison_report(comparison, width=out.width))
    out.print()
    if verb.json is not None:
        write_atomically(verb.json, encode_comparison(comparison))
        out.print(f"rows     {verb.json}", soft_wrap=True)
    if verb.csv is not None:
        write_atomically(verb.csv, encode_comparison_csv(comparison))
        out.print(f"table    {verb.csv}", soft_wrap=True)
    if verb.plot is not None:
        from placement.cli.comparison_plot import comparison_png  # matplotlib is slow to load

        write_atomically(verb.plot, comparison_png(comparison))
        out.print(f"picture  {verb.plot}", soft_wrap=True)
    comparison.check_feasible()
    return 0


def _plan(placers: list[str], time_limit_s: float, workers: str | None) -> str:
    """What a comparison is about to do, and how long its searches will take."""
    searching = sum(PLACERS[name].searches for name in placers)
    said = f"placers: {len(placers)}"
    if searching and workers is not None:
        said += f"; searches: {searching} x {time_limit_s:g} s on workers '{workers}', each on a share of their cores"
    elif searching:
        said += (
            f"; searches: {searching} x {time_limit_s:g} s on the same {available_cores()} cores, "
            f"{clock(searching * time_limit_s)} in all"
        )
    return said
