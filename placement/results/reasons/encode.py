"""An explanation as JSON."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from placement.results.reasons.explanation import Explanation
from placement.results.reasons.sentences import why
from placement.results.reasons.step_parts import DEVICE_KINDS, PATH_KINDS


def explanation_content(found: Explanation) -> dict[str, Any]:
    """All figures, by the names of groups and devices; what was not evaluated is null."""
    problem = found.problem
    devices, groups = problem.cluster.device_names, problem.groups.names
    moves = found.moves

    def number(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    content: dict[str, Any] = {
        "format": "device-placement-explanation",
        "version": 1,
        "graph": problem.graph.name,
        "cluster": problem.cluster.name,
        "schedule": problem.schedule,
        "step_time_s": found.step_time_s,
        "feasible": found.feasible,
        "lower_bound_s": found.lower_bound_s,
        "sentences": list(found.sentences),
        "path_s": found.path.seconds,
        "device_s": {
            name: dict(zip(DEVICE_KINDS, row, strict=True))
            for name, row in zip(devices, found.device_s.tolist(), strict=True)
        },
        "limits": [{"kind": x.kind, "name": x.name, "seconds": x.seconds, "share": x.share} for x in found.limits],
        "remedies": [
            {
                "name": x.name,
                "what": x.what,
                "unmoved_s": number(x.unmoved_s),
                "step_time_s": number(x.step_time_s),
                "evaluations": x.evaluations,
            }
            for x in found.remedies
        ],
        "groups": [
            {
                "group": groups[g],
                "device": devices[moves.home[g]] if moves.home[g] >= 0 else None,
                "why": why(found, g),
                "path_s": dict(zip(PATH_KINDS, found.group_s[g].tolist(), strict=True)),
                "step_time_s": {
                    devices[d]: float(moves.step_time_s[g, d]) for d in np.flatnonzero(~np.isnan(moves.step_time_s[g]))
                },
                "short_bytes": {
                    devices[d]: int(moves.short_bytes[g, d]) for d in np.flatnonzero(moves.short_bytes[g] > 0)
                },
            }
            for g in range(problem.num_groups)
        ],
    }
    if found.difference is not None:
        it = found.difference
        content["difference"] = {
            "before_s": it.before_s,
            "after_s": it.after_s,
            "path_before_s": it.path_before_s,
            "path_after_s": it.path_after_s,
            "ops_moved": it.ops_moved,
            "groups": [
                {"group": groups[g], "alone_s": number(alone), "back_s": number(back)}
                for g, alone, back in zip(it.groups.tolist(), it.alone_s.tolist(), it.back_s.tolist(), strict=True)
            ],
        }
    return content


def encode_explanation(found: Explanation) -> bytes:
    """The bytes of an explanation's file."""
    return msgspec.json.format(msgspec.json.encode(explanation_content(found), order="sorted"), indent=2) + b"\n"
