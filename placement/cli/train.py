"""The verb ``train``: learn a placement, show how it goes, and what came out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from envs.clusters.catalog import load_cluster
from envs.clusters.cluster import Cluster
from envs.constraints import reserve_memory
from graphs.errors import InputError
from graphs.extras import is_installed
from graphs.sources import load_graph
from placement import api
from placement.arguments import check_positive
from placement.cli import pipeline, verbs
from placement.cli.measured import resume_measured, train_measured
from placement.cli.progress import ComparisonDisplay, TrainingDisplay
from placement.cli.report import comparison_report, split_sentences, summary
from placement.cli.shared import HeadingDisplay, chosen_cluster, load, make_console
from placement.learning.stats import UpdateStats
from placement.results.comparison import Comparison, check_seed
from placement.results.placement_file import read_placement
from placement.runs import directory
from placement.runs.directory import RunConfig
from placement.runs.observer import TrainingPlan
from placement.runs.training import TrainedRun
from placement.workers import parse_workers

TELLING_SENTENCES = 3
"""Reasons that are said at the end of a training; `placement explain` says all."""

_DETAILED = 6
"""Rows, from the fastest, whose devices are shown after a training; `comparison.json` holds all."""


def train(verb: verbs.Train) -> int:
    """Train, or go on with a run.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: Nothing fits; one sentence.
    """
    check_positive("--time-limit-s", verb.time_limit_s)
    check_positive("--updates", verb.updates)
    check_positive("--chains", verb.chains)
    check_seed(verb.seed)
    if verb.workers is not None:
        parse_workers(verb.workers)
    out, err = make_console(), make_console(stderr=True)
    if verb.resume is not None:
        if verb.start is not None:
            raise InputError("--resume goes on from where the run stopped; leave out --start")
        if verb.out is not None:
            raise InputError("--resume goes on in the run's own directory; leave out --out")
        if verb.topology is not None:
            raise InputError(f"the run in '{verb.resume}' knows its cluster; leave out --topology")
        if verb.chains is not None:
            raise InputError(f"the run in '{verb.resume}' has the chains that it began with; leave out --chains")
        config = directory.read_config(verb.resume)
        _check_agrees(verb, verb.resume, config)
        if config.measured is not None:
            _check_not_measured(verb)
            return resume_measured(verb, out, err)
        if verb.measured:
            raise InputError(f"the run in '{verb.resume}' does not learn from measured time; leave out --measured")
    elif verb.measured or verb.screen or verb.compile_regions or verb.devices is not None or verb.profile is not None:
        if verb.pin or verb.forbid or verb.reserve or verb.start is not None:
            raise InputError(
                "--pin, --forbid, --reserve and --start go with simulated step times; leave out --measured"
            )
        _check_not_measured(verb)
        return train_measured(verb, out, err)
    start = None if verb.start is None else read_placement(verb.start)
    cluster: str | Cluster = ""
    if verb.resume is None:
        if verb.graph is None:
            raise InputError("train needs a GRAPH (or --resume DIR); see: placement train --help")
        cluster = chosen_cluster(verb.cluster, verb.topology)
    run_dir = verb.resume or _new_directory(verb, cluster)
    display = _TrainDisplay(out, err)
    try:
        if verb.resume is not None:
            trained = api.train(
                out=run_dir,
                resume=True,
                updates=verb.updates,
                time_limit_s=verb.time_limit_s,
                observer=display,
                workers=verb.workers,
            )
        else:
            assert verb.graph is not None
            trained = api.train(
                load(
                    verb.graph,
                    cluster,
                    verb.schedule,
                    verb.groups,
                    pin=verb.pin,
                    forbid=verb.forbid,
                    reserve=verb.reserve,
                ),
                out=run_dir,
                start=start,
                updates=verb.updates,
                time_limit_s=verb.time_limit_s,
                preset=verb.preset,
                seed=verb.seed,
                observer=display,
                workers=verb.workers,
                chains=verb.chains,
            )
    except KeyboardInterrupt:  # one that came after the training, or a second one during it
        if not display.learns or not (run_dir / directory.PLACEMENT).exists():
            raise
        out.print(f"Stopped; the best placement so far is in {run_dir / directory.PLACEMENT}", soft_wrap=True)
        return 0
    _show_trained(out, trained)
    return 0


def _check_not_measured(verb: verbs.Train) -> None:
    """Raise where what goes with simulated step times is asked for."""
    if verb.chains is not None:
        raise InputError("--chains goes with simulated step times; leave it out, or --measured")


def train_stages(verb: verbs.Train) -> int:
    """Find the stages of a pipeline; nothing is learned.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: Nothing fits; one sentence.
    """
    check_positive("--time-limit-s", verb.time_limit_s)
    check_seed(verb.seed)
    if verb.graph is None:
        raise InputError("train needs a GRAPH; see: placement train --help")
    cluster = chosen_cluster(verb.cluster, verb.topology)
    run_dir = _new_directory(verb, cluster)
    return pipeline.train(verb, cluster, run_dir, make_console(), make_console(stderr=True))


def _new_directory(verb: verbs.Train, cluster: str | Cluster) -> Path:
    """Where a new run goes.

    Raises:
        InputError: The cluster is unknown, or the directory cannot be made.
    """
    assert verb.graph is not None
    name = load_cluster(cluster).name if isinstance(cluster, str) else cluster.name
    run_dir = verb.out or directory.free_directory(Path("runs"), f"{_file_name(verb.graph)}-{_file_name(name)}")
    directory.check_free(run_dir)
    return run_dir


class _TrainDisplay(HeadingDisplay):
    """Shows a training: the other placers as they answer, then the updates.

    Attributes:
        learns: True from the first update on.
    """

    learns = False

    @contextlib.contextmanager
    def comparing(self) -> Iterator[None]:
        """Show the other placers."""
        with ComparisonDisplay(self.err) as self._comparison:
            yield

    def on_start(self, placer: str) -> None:
        """Show which of them runs."""
        self._comparison.start(placer)

    def on_row(self, comparison: Comparison) -> None:
        """Show what it came to."""
        self._comparison.row(comparison)

    @contextlib.contextmanager
    def training(self, plan: TrainingPlan) -> Iterator[None]:
        """Show the updates."""
        if plan.resumed:
            done = "nothing is left to do; more takes --time-limit-s or a larger --updates"
            said = done if plan.is_done else "going on"
            self.err.print(f"{plan.updates_done:,} updates are done: {said}", soft_wrap=True)
        self.learns = True
        with TrainingDisplay(
            self.err, plan.others, updates=plan.updates, time_limit_s=plan.time_limit_s, spent_s=plan.spent_s
        ) as self._updates:
            yield

    def on_update(self, stats: UpdateStats) -> None:
        """Show an update."""
        self._updates.update(stats)


def _show_trained(out: Console, trained: TrainedRun) -> None:
    out.print()
    learned = trained.comparison.rows[-1]
    out.print(comparison_report(trained.comparison, width=out.width, detailed=_DETAILED, always=learned))
    out.print()
    out.print(summary(trained.comparison, learned), style="bold")
    for sentence in split_sentences(trained.comparison.problem, learned):
        out.print(sentence)
    if trained.explanation is not None:
        for sentence in trained.explanation.sentences[:TELLING_SENTENCES]:
            out.print(sentence)
    if trained.interrupted:
        out.print("Stopped before the limit; the best placement so far is kept.", style="yellow")
    out.print(f"placement   {trained.run_dir}/placement.json", soft_wrap=True)
    out.print(f"why         placement explain {trained.run_dir}", soft_wrap=True)
    out.print(f"go on       placement train --resume {trained.run_dir} --time-limit-s 60", soft_wrap=True)
    if trained.run_dir is not None and (trained.run_dir / directory.REPORT).exists():
        out.print(f"report      {trained.run_dir / directory.REPORT}", soft_wrap=True)
    elif not is_installed("bokeh"):
        out.print("report      needs: pip install 'device-placement[report]'", soft_wrap=True)
    watch = f"watch       tensorboard --logdir {trained.run_dir}"
    if not is_installed("matplotlib"):
        watch += "  (without pictures of traces, which need: pip install 'device-placement[plots]')"
    out.print(watch, soft_wrap=True)


def _check_agrees(verb: verbs.Train, run_dir: Path, config: RunConfig) -> None:
    """Raise where a resumed run is asked to be another one.

    Raises:
        InputError: A setting is given that differs from the run's.
    """
    defaults = verbs.Train()
    for name in ("pin", "forbid", "reserve"):
        wanted, was = getattr(verb, name), getattr(config.constraints, name)
        if wanted not in ((), was):
            raise InputError(
                f"cannot resume '{run_dir}' with another --{name}: the run has {', '.join(was) or 'none'}; leave it "
                "out, or start a new run with --out"
            )
    for name in ("graph", "cluster", "schedule", "groups", "preset", "seed"):
        wanted, was = getattr(verb, name), getattr(config, name)
        if wanted not in (getattr(defaults, name), was) and not _is_same(name, wanted, config):
            raise InputError(
                f"cannot resume '{run_dir}' with {name} '{wanted}': the run has '{was}'; leave it out, or start a "
                "new run with --out"
            )


def _is_same(name: str, wanted: str, config: RunConfig) -> bool:
    """Whether a graph or cluster by another name is the run's own, which was not given by a name."""
    if name == "graph" and config.graph_file is not None and config.measured is None:
        return load_graph(wanted).sha256 == config.graph_sha256
    if name == "cluster" and config.cluster_file is not None:
        return reserve_memory(load_cluster(wanted), config.constraints).sha256 == config.cluster_sha256
    return False


def _file_name(name: str) -> str:
    """A name that is safe in a path: of a file its name without the endings, of others what is left of odd signs."""
    stem = Path(name).name if name.endswith((".json", ".gz", ".yaml", ".yml")) else name
    stem = re.sub(r"\.(graph\.json(\.gz)?|ya?ml)$", "", stem)
    return re.sub(r"[^A-Za-z0-9_.=,-]+", "-", stem).strip("-.") or "run"
