"""The verb ``place``: an answer at once, from the quick heuristics and the pretrained policy."""

from __future__ import annotations

import math

from rich.text import Text

from graphs.errors import InputError
from graphs.files import write_atomically
from placement import api
from placement.arguments import check_can_write
from placement.cli import verbs
from placement.cli.report import simulated_report
from placement.cli.shared import chosen_cluster, load, make_console, status
from placement.results.comparison import check_seed
from placement.text import seconds


def place(verb: verbs.Place) -> int:
    """Place a graph, show the step, and write what was asked for.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: Nothing that was tried fits.
    """
    from placement.pretrained.network import load as load_weights
    from placement.runs.placing import Answer, encode_answer

    check_can_write(verb.out, verb.json)
    check_seed(verb.seed)
    if verb.samples < 0:
        raise InputError(f"--samples is {verb.samples}; it must not be negative")
    load_weights(verb.weights)  # before the graph: a wrong file should not wait for a capture
    problem = load(
        verb.graph,
        chosen_cluster(verb.cluster, verb.topology),
        verb.schedule,
        verb.groups,
        pin=verb.pin,
        forbid=verb.forbid,
        reserve=verb.reserve,
    )
    with status(make_console(stderr=True), "placing"):
        answer: Answer = api.place(
            problem, seed=verb.seed, samples=verb.samples, weights=verb.weights, out=verb.out
        )  # fmt: skip
    out = make_console()
    out.print(simulated_report(answer))
    out.print(_compared(answer.best_heuristic, answer.best_heuristic_s, answer.policy_s))
    if verb.json is not None:
        write_atomically(verb.json, encode_answer(answer))
    return 0


def _compared(heuristic: str, heuristic_s: float, policy_s: float) -> Text:
    """A line: what the heuristics and the policy came to."""
    parts = [
        f"{name} {seconds(time_s, digits=4) if math.isfinite(time_s) else 'does not fit'}"
        for name, time_s in ((f"best heuristic ({heuristic})", heuristic_s), ("pretrained policy", policy_s))
    ]
    return Text(", ".join(parts), style="dim")
