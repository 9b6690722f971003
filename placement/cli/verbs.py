"""The verbs of the command `placement`: one frozen dataclass each, from which arguments and help are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

# Arguments that several verbs have, with the help that stands for a docstring line of each.
_GRAPH = arg(
    metavar="GRAPH",
    help="What to place: a zoo name with sizes (nmt:layers=4), a graph or .onnx file, or FILE.py:function.",
)
_CLUSTER = arg(
    metavar="CLUSTER",
    help="Where to: a known cluster with optional overrides (k80x4:link_bytes_per_s=2.5e9), or a .yaml file.",
)
GraphArg = Annotated[Positional[str], _GRAPH]
OptionalGraphArg = Annotated[Positional[str | None], _GRAPH, arg(help_behavior_hint="(unless --resume)")]
_OR_HERE = "(this machine)"
_OF_PLACEMENT = "(a run's, the one that the placement names, or this machine)"
OptionalClusterArg = Annotated[str | None, _CLUSTER, arg(help_behavior_hint=_OR_HERE)]
TopologyArg = Annotated[
    str | None,
    arg(
        metavar="FILE[,FILE]",
        help="In place of --cluster: another machine's saved outputs of nvidia-smi topo -m, nvidia-smi -q -x, lstopo "
        "--of xml or rocm-smi --showtopo; what they do not say goes behind, as in topo.txt:gpu=rtx_3090.",
        help_behavior_hint="",
    ),
]
ScheduleArg = Annotated[
    Literal["priority", "fifo", "program_order", "sequential"],
    arg(help="Which ready op a device runs first; sequential is that of --target accelerate."),
]
EngineScheduleArg = Annotated[
    Literal["priority", "fifo", "program_order"], arg(help="Which ready op a device runs first.")
]
TargetArg = Annotated[
    Literal["engine", "accelerate"],
    arg(help="What will run the placement: our engine, op by op; or Hugging Face Accelerate, whole modules in turn."),
]
TrainTargetArg = Annotated[
    Literal["engine", "accelerate", "torch_pipeline"],
    arg(help="What will run it: our engine; Accelerate; or PyTorch's pipelines, stages found by annealing."),
]
OrderArg = Annotated[
    Literal["gpipe", "1f1b", "interleaved", "zb_h1", "list"] | None,
    arg(
        help="With --target torch_pipeline: in what order ranks run their actions; by default 1f1b.",
        help_behavior_hint="",
    ),
]
ObjectiveArg = Annotated[
    Literal["step", "throughput"] | None,
    arg(
        help="With --target torch_pipeline: the shortest step of the graph's batch, which is the default, or most "
        "samples a second with as many batches a step as pay.",
        help_behavior_hint="",
    ),
]
GranularityArg = Annotated[
    Literal["group", "op"],
    arg(help="What searches move: groups; or after them single ops, within the hard constraints."),
]
StartArg = Annotated[
    Literal["heuristics", "scratch"],
    arg(help="Where searches start: from the quick heuristics' best placement, or from a random one."),
]
DevicesArg = Annotated[
    str,
    arg(metavar="A,B,...", help="Devices of this machine: cpu:0 (a core), cpu:2-3 (cores as one device), cuda:0."),
]
PlainArg = Annotated[
    Literal["none", "eager", "compiled"],
    arg(help="Which plain PyTorch to run on the same cores, beside; compiled is both, and takes minutes."),
]
GroupsArg = Annotated[int, arg(metavar="N", help="Wanted number of co-location groups.")]
PinArg = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(
        metavar="PATTERN=DEVICE",
        help="Ops or modules that must be there, as in 'encoder.*=gpu:0'; may be repeated.",
        help_behavior_hint="",
    ),
]
ForbidArg = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(
        metavar="PATTERN=DEVICE",
        help="Ops or modules that must not be there, as in 'embed*=gpu:*'; may be repeated.",
        help_behavior_hint="",
    ),
]
ReserveArg = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(
        metavar="DEVICE=SIZE",
        help="Memory that is kept free there, as in gpu:0=2GB; may be repeated.",
        help_behavior_hint="",
    ),
]

ExportFormat = Literal[
    "json",
    "csv",
    "device-map",
    "onnxruntime",
    "onnx",
    "schedule",
    "torchtitan",
    "megatron",
    "vllm",
    "llama.cpp",
    "llama.cpp-ot",
]

WorkersArg = Annotated[str | None, arg(metavar="N|ray|ray://HOST:PORT", help_behavior_hint="")]

DEFAULT_SCHEDULE: Literal["priority"] = "priority"
DEFAULT_MICRO_BATCHES = 8
DEFAULT_ORDER = "1f1b"


@dataclass(frozen=True)
class Train:
    """Learn a placement, compare it with the other placers, and leave both in a run directory."""

    graph: OptionalGraphArg = None
    cluster: OptionalClusterArg = None
    topology: TopologyArg = None
    schedule: ScheduleArg = "priority"
    target: TrainTargetArg = "engine"
    micro_batches: Annotated[int | Literal["auto"] | None, arg(metavar="M|auto", help_behavior_hint="")] = None
    """With --target torch_pipeline: parts of the batch that go through the stages; by default 8."""
    order: OrderArg = None
    objective: ObjectiveArg = None
    time_limit_s: Annotated[float | None, arg(metavar="S", help_behavior_hint="")] = None
    """Seconds but for reading the graph and compiling; by default a minute without --updates. With --resume: more."""
    updates: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Updates in all, those before --resume included; the same seed then gives the same placement."""
    seed: Annotated[int, arg(metavar="K")] = 0
    """Seeds all random numbers."""
    preset: Literal["default", "pretrained", "paper", "uniform"] = "default"
    """How to learn: our best; the shipped policy alone, from its weights; as published in 2017; or our best with
    uniform moves and no learning, for ablations."""
    groups: GroupsArg = 256
    pin: PinArg = ()
    forbid: ForbidArg = ()
    reserve: ReserveArg = ()
    start: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """A placement of the same graph to start from, for this cluster or another: a file, or the directory of a run."""
    workers: WorkersArg = None
    """Walk the search's chains on a number of processes, or on Ray; with --measured: measure on their machines."""
    chains: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Chains of the search that walk to the end; by default two, or one a worker where these are more."""
    measured: Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")] = False
    """Learn from the measured time of real steps on --devices; --cluster then only guides, and may be left out."""
    screen: Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")] = False
    """With --measured: learn from the simulator, and measure what it finds best."""
    devices: Annotated[
        str | None, arg(metavar="A,B,...", help="With --measured: devices to run on.", help_behavior_hint="")
    ] = None
    profile: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """With --measured: a graph file from `placement profile`, for the simulator; its cluster file goes to --cluster."""
    plain: PlainArg = "eager"
    compile_regions: Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")] = False
    """With --measured: at the end, also run the best placements with their regions compiled (needs a C++ compiler)."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Run directory to make; by default runs/GRAPH-CLUSTER-1, or the next number that is free."""
    resume: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Run directory to go on with, whoever made it; GRAPH, --cluster and the settings are then read from it."""


@dataclass(frozen=True)
class Place:
    """Place a graph at once, by the quick heuristics and the pretrained policy: nothing is trained or searched."""

    graph: GraphArg
    cluster: OptionalClusterArg = None
    topology: TopologyArg = None
    schedule: ScheduleArg = "priority"
    target: TargetArg = "engine"
    seed: Annotated[int, arg(metavar="K")] = 0
    """Seeds the policy's samples."""
    samples: Annotated[int, arg(metavar="N")] = 64
    """Placements that the policy writes, fewer on large graphs; 0 asks the heuristics only."""
    groups: GroupsArg = 256
    pin: PinArg = ()
    forbid: ForbidArg = ()
    reserve: ReserveArg = ()
    weights: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(those of this release)")] = None
    """The policy's weights, as placement pretrain leaves them."""
    out: Annotated[Path | None, arg(metavar="FILE.json", help_behavior_hint="")] = None
    """Write the placement there, for placement simulate, explain, run and export."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the figures there as JSON."""


@dataclass(frozen=True)
class Pretrain:
    """Train the policy that placement place asks, on problems made from seeds."""

    time_limit_s: Annotated[float | None, arg(metavar="S", help_behavior_hint="")] = None
    """Seconds; by default half an hour without --updates. With --resume: more."""
    updates: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Updates in all, those before --resume included; the same seed then gives the same weights."""
    seed: Annotated[int, arg(metavar="K")] = 0
    """Seeds the first weights, the problems and the samples."""
    workers: WorkersArg = None
    """Go through the problems of an update on a number of processes, or on Ray."""
    problems: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Problems an update, whose mean gradient makes one step; by default one a worker."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Run directory to make; by default runs/pretrain-1, or the next number that is free."""
    resume: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Run directory to go on with; the seed is then read from it."""


@dataclass(frozen=True)
class Run:
    """Run a placement's steps on real devices of this machine, or a pipeline's on several, and measure them."""

    graph: Annotated[
        Positional[str],
        arg(metavar="GRAPH|RUN", help="What to run: a zoo name, FILE.py:function, or the directory of a run."),
    ]
    placement: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """A placement file of this graph, or stages.json of a pipeline; of a run by default what it took home."""
    workers: WorkersArg = None
    """For a pipeline: on whose machines its ranks run, as many on each."""
    devices: Annotated[
        str | None,
        arg(
            metavar="A,B,...",
            help="A device of this machine for each of the placement: cpu:0 (a core), cpu:2-3 (cores as one), cuda:0."
            " By default those that it names.",
            help_behavior_hint="",
        ),
    ] = None
    steps: Annotated[int, arg(metavar="N")] = 10
    """Steps that count; one more goes before them."""
    time_limit_s: Annotated[float, arg(metavar="S")] = 60.0
    """Seconds that they may take; what is not done by then has failed."""
    compile_regions: Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")] = False
    """Compile the runs of ops between transfers first (needs a C++ compiler), as is done where the placement was."""
    plain: PlainArg = "eager"
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the figures there as JSON."""


@dataclass(frozen=True)
class Profile:
    """Measure what each op and copy of a graph's step takes on devices of this machine, for the simulator to use."""

    graph: Annotated[Positional[str], arg(metavar="GRAPH", help="What to run: a zoo name, or FILE.py:function.")]
    devices: DevicesArg
    out: Annotated[Path, arg(metavar="FILE.graph.json.gz")]
    """The graph file to write, with the times of its ops."""
    cluster_out: Annotated[Path | None, arg(metavar="FILE.yaml", help_behavior_hint="(next to --out)")] = None
    """The cluster file to write, with the devices and what copies between them take."""
    schedule: EngineScheduleArg = "priority"
    placements: Annotated[int, arg(metavar="N")] = 8
    """Random placements to run, after each device alone."""
    steps: Annotated[int, arg(metavar="N")] = 10
    """Steps of each that count; one more goes before them."""
    seed: Annotated[int, arg(metavar="K")] = 0
    """Seeds the random placements."""
    time_limit_s: Annotated[float, arg(metavar="S")] = 60.0
    """Seconds that the steps of one placement may take."""


@dataclass(frozen=True)
class Compare:
    """Run several placers on one problem and compare their step times."""

    graph: GraphArg
    cluster: OptionalClusterArg = None
    topology: TopologyArg = None
    placers: Annotated[str, arg(metavar="A,B,...")] = "all"
    """Which placers, separated by commas; see: placement list placers."""
    schedule: ScheduleArg = "priority"
    target: TargetArg = "engine"
    time_limit_s: Annotated[float, arg(metavar="S")] = 20.0
    """Seconds that each placer may take; only those that search use them up."""
    seed: Annotated[int, arg(metavar="K")] = 0
    """Seeds each placer's random numbers."""
    granularity: GranularityArg = "group"
    start: StartArg = "heuristics"
    groups: GroupsArg = 256
    pin: PinArg = ()
    forbid: ForbidArg = ()
    reserve: ReserveArg = ()
    workers: WorkersArg = None
    """Run placers at the same time, each on its share of the cores: a number of processes, or Ray."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the rows there as JSON, after each of them; started again, finished rows are taken from there."""
    restart: Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")] = False
    """Run every placer again, whatever the --json file holds."""
    csv: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the rows there as CSV."""
    plot: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="")] = None
    """Draw the step times there."""


@dataclass(frozen=True)
class Simulate:
    """Simulate one step under a placement: its time, each device's load and memory, and a trace."""

    placement: Annotated[str, arg(metavar="FILE|PLACER")]
    """A placement file, or the name of a placer to ask for one."""
    graph: Annotated[Positional[str | None], _GRAPH, arg(help_behavior_hint="(unless FILE is a run's)")] = None
    cluster: Annotated[str | None, _CLUSTER, arg(help_behavior_hint="(a run's, or this machine)")] = None
    topology: TopologyArg = None
    schedule: ScheduleArg = DEFAULT_SCHEDULE
    target: TargetArg = "engine"
    time_limit_s: Annotated[float, arg(metavar="S")] = 20.0
    """Seconds that a placer may take; only those that search use them up."""
    seed: Annotated[int, arg(metavar="K")] = 0
    """Seeds a placer's random numbers."""
    granularity: GranularityArg = "group"
    start: StartArg = "heuristics"
    groups: GroupsArg = 256
    pin: PinArg = ()
    forbid: ForbidArg = ()
    reserve: ReserveArg = ()
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the figures there as JSON."""
    trace: Annotated[Path | None, arg(metavar="FILE.json", help_behavior_hint="")] = None
    """Write the trace there, for ui.perfetto.dev or chrome://tracing."""
    plot: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="")] = None
    """Draw the trace there."""


@dataclass(frozen=True)
class WhatIf:
    """Place a graph for other batches, numbers of devices and speeds of links: a table, a chart, the Pareto front."""

    graph: GraphArg
    cluster: OptionalClusterArg = None
    topology: TopologyArg = None
    batch: Annotated[str | None, arg(metavar="16,32,64", help_behavior_hint="")] = None
    """Batch sizes, for a graph whose name takes one; by default the graph's own."""
    devices: Annotated[str | None, arg(metavar="1..8", help_behavior_hint="")] = None
    """Numbers of accelerators, the first ones of the cluster; by default all."""
    links: Annotated[str, arg(metavar="0.5x,1x,2x")] = "1x"
    """Factors of every link's bandwidth."""
    time_limit_s: Annotated[float, arg(metavar="S")] = 3.0
    """Seconds of search a cell."""
    placer: Annotated[str, arg(metavar="NAME")] = "reinforce"
    """Who places each cell; the learned placer starts from the best of the heuristics."""
    schedule: EngineScheduleArg = "priority"
    seed: Annotated[int, arg(metavar="K")] = 0
    """Seeds each cell's random numbers."""
    groups: GroupsArg = 256
    workers: WorkersArg = None
    """Place cells at the same time, each on its share of the cores: a number of processes, or Ray."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the cells there as JSON, after each of them; started again, finished cells are taken from there."""
    restart: Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")] = False
    """Place every cell again, whatever the --json file holds."""
    plot: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="")] = None
    """Draw the chart there."""


@dataclass(frozen=True)
class Import:
    """Turn a model into a graph file, which needs neither the model nor its code any more."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """A zoo name with optional sizes, a graph file, an .onnx file (model.onnx:batch=8,x.1=4 sets open dimensions), or
    FILE.py:function or python:package.module:function (model, example batch, loss)."""
    out: Annotated[Path, arg(metavar="FILE.graph.json.gz")]
    """The graph file to write: .graph.json.gz or .graph.json."""
    device_kinds: Annotated[str | None, arg(metavar="TYPE=KIND[+KIND][,...]", help_behavior_hint="")] = None
    """Kinds of device that ops of a type may be on, as in TopK=cpu, for what a runtime keeps on the host."""
    split_tables: Annotated[str | None, arg(metavar="rows:SIZE|columns:SIZE", help_behavior_hint="")] = None
    """Cut embedding tables of more than SIZE into parts, as in rows:16GB, so that they can be on several devices."""


@dataclass(frozen=True)
class Export:
    """Turn a placement, or the stages of a pipeline, into what other programs read."""

    placement: Annotated[Positional[str], arg(metavar="RUN|PLACEMENT|STAGES")]
    """A run directory, a placement file, or a file stages.json."""
    out: Annotated[Path, arg(metavar="FILE")]
    """The file to write."""
    graph: Annotated[Positional[str | None], _GRAPH, arg(help_behavior_hint="(unless it is a run)")] = None
    cluster: Annotated[str | None, _CLUSTER, arg(help_behavior_hint=_OF_PLACEMENT)] = None
    topology: TopologyArg = None
    format: ExportFormat = "json"
    """json, csv: every op with its module, group and device. device-map: for Accelerate. onnxruntime, onnx: the model
    with layer annotations, or with ONNX's device configuration. The others are for stages."""


@dataclass(frozen=True)
class Explain:
    """Say why a step takes as long as it does, why each group is where it is, and what would help."""

    placement: Annotated[Positional[str], arg(metavar="RUN|PLACEMENT")]
    """A run directory, or a placement file."""
    graph: Annotated[Positional[str | None], _GRAPH, arg(help_behavior_hint="(unless it is a run)")] = None
    cluster: Annotated[str | None, _CLUSTER, arg(help_behavior_hint=_OF_PLACEMENT)] = None
    topology: TopologyArg = None
    against: Annotated[Path | None, arg(metavar="RUN|PLACEMENT", help_behavior_hint="")] = None
    """Another placement of the same graph: say what differs, too."""
    groups: Annotated[int, arg(metavar="N")] = 12
    """Groups to show, those that the critical path waits for longest first; --json holds all."""
    tries: Annotated[int, arg(metavar="N")] = 256
    """Placements that are tried on each better cluster; 0 tries no other cluster."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write all figures there as JSON."""
    html: Annotated[Path | None, arg(metavar="FILE.html", help_behavior_hint="")] = None
    """Write the report there: one page with all of this, which needs no server."""


@dataclass(frozen=True)
class Machine:
    """Find out what this machine is made of, measure it, and write it as a cluster file."""

    out: Annotated[Path | None, arg(metavar="FILE.yaml", help_behavior_hint="")] = None
    """Write the cluster there: devices, links, and where each figure is from."""
    topology: Annotated[
        str | None,
        arg(
            metavar="FILE[,FILE]",
            help="Another machine instead, by its saved outputs of nvidia-smi topo -m, nvidia-smi -q -x, lstopo --of "
            "xml or rocm-smi --showtopo; what they do not say goes behind, as in topo.txt:gpu=rtx_3090.",
            help_behavior_hint="",
        ),
    ] = None
    again: Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")] = False
    """Measure again; otherwise what was measured of the same hardware is taken from the cache."""
    diagram: Annotated[Path | None, arg(metavar="FILE.mmd", help_behavior_hint="")] = None
    """Draw the topology there, as text for Mermaid, which GitHub and editors show as a picture."""


@dataclass(frozen=True)
class List:
    """List what is known: the zoo's graphs, clusters, devices with their figures, or placers."""

    what: Positional[Literal["graphs", "clusters", "devices", "placers"]]
    """Which list."""
    name: Annotated[Positional[str | None], arg(metavar="NAME", help_behavior_hint="")] = None
    """Only what has this in its name (rtx_40, p4d) or is like it (*x8); of few, also where the figures are from."""


Verb = (
    Train | Place | Pretrain | Compare | WhatIf | Simulate | Explain | Run | Profile | Machine | Import | Export | List
)

VERBS: dict[str, Callable[..., Verb]] = {
    "train": Train,
    "place": Place,
    "pretrain": Pretrain,
    "compare": Compare,
    "what-if": WhatIf,
    "simulate": Simulate,
    "explain": Explain,
    "run": Run,
    "profile": Profile,
    "machine": Machine,
    "import": Import,
    "export": Export,
    "list": List,
}
"""The verbs by name."""
