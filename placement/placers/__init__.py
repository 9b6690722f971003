"""The placers: one a file, all with the signature of `placement.placers.base.Placer`.

`HEURISTICS` names those that do not learn. A placer's module is imported only when its function is asked for, so that
importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from placement.placers.base import Placer


@dataclass(frozen=True)
class PlacerInfo:
    """What the command and the comparison need to know of a placer before they run it.

    Attributes:
        name: What users call it.
        target: ``"module:function"``, imported on first use.
        summary: One line for ``placement list placers``.
        learns: True where it learns from the placements that it evaluates.
        searches: True where it uses all of the time that it is given; others answer as soon as they are done.
        exact: True where it serves small problems only and, given the time, proves its answer optimal.
        only_for: What a problem must be to be answered, one of these: under this target (`envs.targets`), or of this
            kind (`placement.results.comparison.kinds_of`); empty for all.
    """

    name: str
    target: str
    summary: str
    learns: bool = False
    searches: bool = False
    exact: bool = False
    only_for: tuple[str, ...] = ()

    @property
    def function(self) -> Placer:
        """The placer itself; this imports its module."""
        module, _, function = self.target.partition(":")
        placer: Placer = getattr(importlib.import_module(module), function)
        return placer

    @property
    def moves(self) -> bool:
        """True for the searches that only move and evaluate: those that heed `placement.placers.base.SearchOptions`."""
        return self.searches and not self.learns and not self.exact


def _info(name: str, summary: str, *, searches: bool = False, exact: bool = False) -> PlacerInfo:
    return PlacerInfo(name, f"placement.placers.{name}:place", summary, searches=searches, exact=exact)


HEURISTICS: dict[str, PlacerInfo] = {
    info.name: info
    for info in (
        _info("single_device", "everything on one device; the best of all devices"),
        _info("cpu", "everything on the host's CPU"),
        _info("random", "the best of a fixed number of random placements"),
        _info("round_robin", "groups dealt out to the accelerators in turn"),
        _info("expert", "what a person would do, for the workloads that have such a rule"),
        _info("accelerate_auto", "devices filled in module order by memory, as Accelerate's device_map='auto'"),
        PlacerInfo(
            "accelerate_balanced",
            "placement.placers.accelerate_maps:place_balanced",
            "Accelerate's own device_map='auto' (and 'balanced'), for its target and hf: graphs",
            only_for=("accelerate", "hf:"),
        ),
        PlacerInfo(
            "accelerate_sequential",
            "placement.placers.accelerate_maps:place_sequential",
            "Accelerate's own device_map='sequential', for its target and hf: graphs",
            only_for=("accelerate", "hf:"),
        ),
        PlacerInfo(
            "llama_cpp",
            "placement.placers.llama_cpp:place",
            "whole layers by free memory, the most that fit, as llama.cpp's -ngl and -ts; for language models' steps",
            only_for=("tokens",),
        ),
        PlacerInfo(
            "tables_by_size",
            "placement.placers.tables:place_by_size",
            "embedding tables, largest first, where least bytes are (Zha et al., 2022)",
            only_for=("tables",),
        ),
        PlacerInfo(
            "tables_by_lookups",
            "placement.placers.tables:place_by_lookups",
            "embedding tables, most looked up first, where least is (Zha et al., 2022)",
            only_for=("tables",),
        ),
        PlacerInfo(
            "torchrec",
            "placement.placers.tables:place_as_torchrec",
            "embedding tables by estimated time, as torchrec's planner spreads them",
            only_for=("tables",),
        ),
        _info("contiguous", "an order of the groups cut into runs, by balance and then by simulation"),
        _info("mincut", "METIS over the accelerators: equal work, few bytes across (Karypis and Kumar, 1998)"),
        _info("scotch", "Scotch's mapping onto the weighted cluster, CPU included (Pellegrini and Roman, 1996)"),
        _info("heft", "list scheduling by upward rank and earliest finish (Topcuoglu et al., 2002)"),
        _info("peft", "list scheduling by an optimistic cost table (Arabnejad and Barbosa, 2014)"),
        _info("etf", "list scheduling by earliest start (Hwang et al., 1989)"),
        _info("m_topo", "topological order cut by memory (Baechi: Jeon et al., 2020)"),
        _info("m_etf", "earliest start within memory, transfers queueing (Baechi: Jeon et al., 2020)"),
        _info("m_sct", "earliest start, favourite children kept together (Baechi: Jeon et al., 2020)"),
        _info("local_search", "iterated first improvement over moves and swaps", searches=True),
        _info("annealing", "simulated annealing, coarse to fine (Kirkpatrick et al., 1983)", searches=True),
        _info("genetic", "a genetic search with biased random keys (Gonçalves and Resende, 2011)", searches=True),
        _info("cross_entropy", "a categorical distribution for each group (Rubinstein, 1999)", searches=True),
        _info("exact", "OR-tools' CP-SAT with a proof, for small problems", searches=True, exact=True),
        _info("brute_force", "every placement, where there are few", exact=True),
    )
}
"""Every placer that does not learn, by name; `placement.registry` has the learned one as well."""
