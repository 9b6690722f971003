"""The reasons in sentences: for the end of a training, for `placement explain`, and for the report.

Letters: ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

import numpy as np

from placement.results.reasons.explanation import Explanation
from placement.results.simulated import describe_short
from placement.text import seconds, short, size

TELLING = 0.01
"""Share of a step from which a difference is worth a sentence of its own."""

_SAME = 5e-4
"""Share of a step below which two step times are called the same."""


def say(found: Explanation) -> list[str]:
    """All sentences, the most telling first: the parts, what holds the step back, what would help, what is left."""
    said = [_does_not_fit(found), _parts(found), _holds(found), _helps(found), _single_moves(found), _difference(found)]
    return [sentence for sentence in said if sentence]


def percent(share: float) -> str:
    """A share of a step: one digit behind the point below ten per cent."""
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def why(found: Explanation, group: int) -> str:
    """Why a group is where it is, in one sentence that begins with where that is."""
    problem, moves = found.problem, found.moves
    names, step_s = problem.cluster.device_names, found.step_time_s
    home = int(moves.home[group])
    if home < 0:
        count = len(np.unique(found.op_placement[problem.groups.group_of_op == group]))
        where = f"its ops are on {count} devices"
    else:
        where = f"on {names[home]}"
    allowed = np.flatnonzero(problem.allowed[group])
    if home >= 0 and len(allowed) == 1 and allowed[0] == home:
        return f"{where}: it may be nowhere else"
    elsewhere = moves.elsewhere()[group]
    if not elsewhere.any():
        return f"{where}: no other device was tried"
    fitting = np.flatnonzero(elsewhere & moves.feasible[group])
    if not found.feasible:
        best = int(np.where(elsewhere, moves.short_bytes[group], np.iinfo(np.int64).max).argmin())
        if not fitting.size:
            return f"{where}: on {names[best]} {size(moves.short_bytes[group, best])} in all would still be missing"
        best = int(fitting[moves.step_time_s[group, fitting].argmin()])
        return f"{where}: on {names[best]} the whole would fit, in {seconds(float(moves.step_time_s[group, best]))}"
    if not fitting.size:
        least = int(np.where(elsewhere, moves.short_bytes[group], np.iinfo(np.int64).max).argmin())
        return f"{where}: it fits nowhere else (on {names[least]} {size(moves.short_bytes[group, least])} are missing)"
    best = int(fitting[moves.step_time_s[group, fitting].argmin()])
    change = float(moves.step_time_s[group, best]) / step_s - 1 if step_s > 0 else 0.0
    if abs(change) < _SAME:
        return f"{where}: on {names[best]} the step would take as long"
    if change < 0:
        return f"{where}, though on {names[best]} the step would take {percent(-change)} less"
    return f"{where}: the next best, {names[best]}, would cost {percent(change)}"


def _does_not_fit(found: Explanation) -> str:
    if found.feasible:
        return ""
    short = describe_short(found.problem, found.trace.peak_memory_bytes)
    return f"The placement cannot run: it {short}. Were it to run, it would be as follows."


def _parts(found: Explanation) -> str:
    step_s, parts = found.step_time_s, found.path.seconds
    if step_s <= 0:
        return ""
    moving, queue, busy = parts["transfer"], parts["link"], parts["device"]
    said = [f"computes for {seconds(parts['computing'])} ({percent(parts['computing'] / step_s)})"]
    for waited_s, reason in ((moving, "transfers"), (queue, "links in use"), (busy, "busy devices")):
        if percent(waited_s / step_s) != "0.0%":
            waits = "" if len(said) > 1 else "waits "
            said.append(f"{waits}{seconds(waited_s)} for {reason} ({percent(waited_s / step_s)})")
    text = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
    return f"Of the {seconds(step_s, digits=4)} of a step, the chain of ops that decides it {text}."


def _holds(found: Explanation) -> str:
    if not found.limits:
        return ""
    tight = found.limits[0]
    if tight.kind == "device":
        text = f"the work of {tight.name}, which computes for {percent(tight.share)} of the step"
    elif tight.kind == "path":
        text = (
            f"the longest path of ops, which takes {percent(tight.share)} of the step on the fastest devices and "
            "without transfers"
        )
    else:
        text = f"the link {tight.name}, which is in use for {percent(tight.share)} of the step"
    text = f"What holds the step back most is {text}"
    bound_s = found.lower_bound_s
    if bound_s and not found.feasible:
        text += f"; no placement that fits takes less than {seconds(bound_s)}"
    elif bound_s:
        text += f"; no placement takes less than {seconds(bound_s)}, {percent(bound_s / found.step_time_s)} of it"
    memory = next((limit for limit in found.limits if limit.kind == "memory" and limit.share >= TELLING), None)
    if memory is not None:
        text += f"; memory costs {percent(memory.share)}: {short(memory.name, 60)} would be faster but does not fit"
    return f"{text}."


def _helps(found: Explanation) -> str:
    if len(found.remedies) < 2:
        return ""
    base_s = min(found.remedies[0].step_time_s, found.step_time_s if found.feasible else np.inf)
    best, *others = found.remedies[1:]
    if not np.isfinite(base_s):
        if np.isfinite(best.step_time_s):
            return f"With {best.what} a placement fits: {seconds(best.step_time_s)}."
        better = ", ".join(remedy.what for remedy in found.remedies[1:])
        return f"{best.evaluations:,} placements like it were tried, and none fits, nor with any of these: {better}."

    def gain(step_time_s: float) -> float:
        return 1 - step_time_s / base_s

    if gain(best.step_time_s) < TELLING:
        tried = [remedy.what for remedy in found.remedies[1:]]
        if len(tried) == 1:
            return f"{tried[0][0].upper()}{tried[0][1:]} would save less than 1% of the step."
        return f"None of these would save 1% of the step: {', '.join(tried)}."
    text = f"{best.what} would help most: {percent(gain(best.step_time_s))} less, {seconds(best.step_time_s)}"
    if others and gain(others[0].step_time_s) >= TELLING:
        text += f"; next {others[0].what}, {percent(gain(others[0].step_time_s))} less"
    return f"{text[0].upper()}{text[1:]}."


def _single_moves(found: Explanation) -> str:
    moves, problem = found.moves, found.problem
    fits = moves.elsewhere() & moves.feasible
    if not fits.any():
        return ""
    times_s = np.where(fits, moves.step_time_s, np.inf)
    group, device = (int(i) for i in np.unravel_index(int(times_s.argmin()), times_s.shape))
    change = float(times_s[group, device]) / found.step_time_s - 1
    where = f"{short(problem.groups.names[group], 60)} to {problem.cluster.device_names[device]}"
    if not found.feasible:
        return f"Moving {where} makes it fit, in {seconds(float(times_s[group, device]))}."
    if change < -_SAME:
        return f"Moving {where} would save {percent(-change)}; a longer search may find it."
    tried = int(fits.sum())
    nearest = "leaves the step as it is" if abs(change) <= _SAME else f"costs {percent(change)}"
    return f"None of {tried:,} moves of one group to another device would be faster; the nearest, {where}, {nearest}."


def _difference(found: Explanation) -> str:
    difference = found.difference
    if difference is None:
        return ""
    if not len(difference.groups):
        return "Both placements are the same."
    change = difference.after_s / difference.before_s - 1 if difference.before_s > 0 else 0.0
    word = "less" if change < 0 else "more"
    text = (
        f"{len(difference.groups):,} groups ({difference.ops_moved:,} ops) are elsewhere than in the other placement; "
        f"a step takes {percent(abs(change))} {word} ({seconds(difference.before_s)} to {seconds(difference.after_s)})"
    )
    worth_s = difference.back_s - difference.after_s
    if np.isfinite(worth_s).any():
        i = int(np.nanargmax(worth_s))
        if worth_s[i] > _SAME * difference.after_s:
            name = short(found.problem.groups.names[difference.groups[i]], 60)
            text += f"; the most by itself is worth {name}: put back, it would cost {seconds(float(worth_s[i]))}"
    return f"{text}."
