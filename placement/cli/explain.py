"""The verb ``explain``: why a placement is what it is."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from graphs.files import write_atomically
from placement import api
from placement.arguments import check_at_least_one, check_can_write
from placement.cli import verbs
from placement.cli.report import problem_heading
from placement.cli.shared import cluster_of_placement, make_console, status
from placement.results.page.content import PageContent
from placement.results.page.html import check_can_draw, make_page
from placement.results.placement_file import read_placement
from placement.results.reasons.encode import encode_explanation
from placement.results.reasons.explanation import Explanation
from placement.results.reasons.sentences import percent, why
from placement.results.reasons.step_parts import DEVICE_KINDS
from placement.runs import directory
from placement.runs.report import write_report
from placement.text import seconds, short, size, table

_NAME = 40
"""Columns of a group's name."""


def explain(verb: verbs.Explain) -> int:
    """Explain, show it, and write what was asked for.

    Raises:
        InputError: Bad input; one sentence.
    """
    check_at_least_one("--groups", verb.groups)
    check_can_write(verb.json, verb.html)
    if verb.html is not None:
        check_can_draw()
    out, err = make_console(), make_console(stderr=True)
    cluster = cluster_of_placement(verb.placement, verb.graph, verb.cluster, verb.topology)
    with status(err, f"reading {verb.graph or verb.placement}"):
        problem, result = api.placed(verb.placement, graph=verb.graph, cluster=cluster, verb="explain")
        against = None if verb.against is None else read_placement(verb.against)
    with status(err, "evaluating every group on every device, and better clusters"):
        found = api.explain(problem, result, against=against, tries=max(verb.tries, 0))
    out.print(explanation_report(found, groups=verb.groups))
    if verb.json is not None:
        write_atomically(verb.json, encode_explanation(found))
        out.print(f"\nfigures  {verb.json}", soft_wrap=True)
    if verb.html is not None:
        run_dir = directory.run_of(Path(verb.placement)) if verb.graph is None else None
        if run_dir is not None:
            write_report(run_dir, found, out=verb.html)
        else:
            words = ["placement", "explain", verb.placement, verb.graph or ""]
            for option, value in (("--cluster", verb.cluster), ("--topology", verb.topology)):
                words += [] if value is None else [option, value]
            write_atomically(verb.html, make_page(PageContent(found, commands=(shlex.join(words),))))
        out.print(f"report   {verb.html}", soft_wrap=True)
    return 0


def explanation_report(found: Explanation, *, groups: int) -> RenderableType:
    """The sentences, then what devices do, why groups are where they are, and what would help."""
    parts: list[RenderableType] = [problem_heading(found.problem), ""]
    parts += [Text(sentence) for sentence in found.sentences]
    parts += ["", _devices(found), "", _groups(found, groups)]
    if found.remedies:
        parts += ["", _remedies(found)]
    return Group(*parts)


def _devices(found: Explanation) -> RenderableType:
    step_s = found.step_time_s
    heads = ("computes", "waits for transfers", "for other devices", "has nothing left")
    assert len(heads) == len(DEVICE_KINDS)
    made = table("device", *heads, "peak memory", right=(*heads, "peak memory"))
    for d, name in enumerate(found.problem.cluster.device_names):
        cells = [f"{seconds(float(s))} {percent(float(s) / step_s if step_s else 0.0):>5}" for s in found.device_s[d]]
        made.add_row(name, *cells, size(int(found.trace.peak_memory_bytes[d])))
    return made


def _groups(found: Explanation, most: int) -> RenderableType:
    on_path_s = found.group_s.sum(axis=1)
    made = table("group", "on the path", "why it is there", right=("on the path",))
    for group in np.argsort(-on_path_s, kind="stable")[:most].tolist():
        name = short(found.problem.groups.names[group], _NAME)
        made.add_row(name, seconds(float(on_path_s[group])), why(found, group))
    return made


def _remedies(found: Explanation) -> RenderableType:
    made = table("cluster", "as placed", "after tries", right=("as placed", "after tries"))
    for remedy in found.remedies:
        made.add_row(remedy.what, seconds(remedy.unmoved_s, digits=4), seconds(remedy.step_time_s, digits=4))
    return made
