"""The rows of a comparison as jobs for workers: one placer, one problem, one budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from envs.problem import PlacementProblem
from placement.placers import PlacerInfo
from placement.placers.base import Budget, SearchOptions
from placement.results.comparison import Row, RowSource, rows_of_placer
from placement.runs.problem_content import encode_problem
from placement.workers import Job, Workers

PATIENCE, LEAST_PATIENCE_S = 5.0, 60.0
"""A placer that has not answered after so many times its time limit, and a minute more, is taken to hang."""


def row_source(workers: Workers) -> RowSource:
    """Rows that workers make, several at the same time, for `compare_placers`.

    With as many jobs at the same time as cores, each placer has one core, whether it would use more or not: rows of one
    comparison have had the same, but not what they have where they are run one after the other.
    """

    def rows(
        problem: PlacementProblem, placers: Sequence[PlacerInfo], budget: Budget, seed: int, options: SearchOptions
    ) -> Iterator[tuple[PlacerInfo, list[Row]]]:
        by_name = {info.name: info for info in placers}
        compiles = "compile_ahead" if any(info.learns for info in placers) else "compile_heuristics"
        workers.load_first(f"placement.runs.compile_ahead:{compiles}", problem.schedule)
        shared = workers.share(encode_problem(problem), "placement.runs.problem_content:decode_problem")
        limit_s = None if budget.time_limit_s is None else PATIENCE * budget.time_limit_s + LEAST_PATIENCE_S
        arguments = {"budget": replace(budget, on_progress=None), "seed": seed, "options": options}
        jobs = [
            Job(name, "placement.runs.row_jobs:make_rows", {"info": info, **arguments}, shared, limit_s)
            for name, info in by_name.items()
        ]
        for done in workers.run(jobs):
            yield by_name[done.key], done.result()

    return rows


def make_rows(
    problem: PlacementProblem, *, info: PlacerInfo, budget: Budget, seed: int, options: SearchOptions
) -> list[Row]:
    """A placer's rows; what a worker runs. What the placer needs compiled is compiled before its time begins."""
    if info.learns:
        from placement.runs.compile_ahead import compile_ahead

        compile_ahead(problem.schedule)
    problem.evaluate(problem.allowed.argmax(axis=1)[None])
    return list(rows_of_placer(problem, info, budget, seed, options))
