"""How a data-parallel training step scales over the devices of a cluster, simulated.

    python scripts/data_parallel_scaling.py [--graph GRAPH] [--cluster CLUSTER] [--schedule S] [--replicas 1,2,4]
                                            [--bucket-bytes B] [--json FILE]

Each replica trains on a batch of the captured size on a device of its own, and gradients are summed around the ring of
devices (`graphs.replicate`). The speed-up is in samples a second: replicas x step time of one / step time.

By default it is ResNet-50 on a TPU v2 half pod, next to the published figure: 1,402 minutes of training to 76% on one
TPU v2 device, 45 on 32 of them (Dean, "Machine learning for systems and systems for machine learning", NIPS 2017), 31.2
times as fast. Nothing is fitted to it; docs/guide/clusters.md says what explains the difference.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # a clone runs without being installed

from envs.clusters.catalog import load_cluster
from envs.clusters.cluster import Cluster
from envs.problem import PlacementProblem
from envs.simulator.input import SCHEDULES
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError
from graphs.replicate import BUCKET_BYTES, replica_placement, replicate
from graphs.sources import load_graph

GRAPH = "resnet50:batch=256,dtype=bfloat16,optimizer=momentum"
CLUSTER = "tpu_v2_half_pod"
PUBLISHED_MINUTES = (1402, 45)
PUBLISHED_DEVICES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", default=GRAPH, help="a training step, as `placement` takes it")
    parser.add_argument("--cluster", default=CLUSTER, help="as `placement` takes it")
    parser.add_argument("--schedule", choices=SCHEDULES, default="priority")
    parser.add_argument("--replicas", default="1,2,4,8,16,32", help="numbers of devices, with commas between")
    parser.add_argument("--bucket-bytes", type=float, default=BUCKET_BYTES, help="size of a bucket")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    try:
        cluster, graph = load_cluster(args.cluster), load_graph(args.graph)
        counts = [int(count) for count in args.replicas.split(",")]
        rows = scaling(graph, cluster, counts, schedule=args.schedule, bucket_bytes=int(args.bucket_bytes))
    except (InputError, ValueError) as error:
        sys.exit(f"data_parallel_scaling: {error}")
    print(f"{graph.name} on {cluster.name}, schedule {args.schedule}, one replica a device\n")
    print(f"{'replicas':>8} {'ops':>8} {'step ms':>9} {'speed-up':>9} {'efficiency':>10} {'busy':>6} {'peak GB':>8}")
    for row in rows:
        print(
            f"{row['replicas']:8} {row['ops']:8,} {row['step_time_s'] * 1e3:9.2f} {row['speed_up']:9.2f} "
            f"{row['speed_up'] / row['replicas']:10.1%} {row['busy']:6.1%} {row['peak_memory_bytes'] / 1e9:8.1f}"
            + ("" if row["feasible"] else "  does not fit")
        )
    if (args.graph, args.cluster) == (GRAPH, CLUSTER):
        one, many = PUBLISHED_MINUTES
        print(f"\npublished, {PUBLISHED_DEVICES} devices: {one:,} -> {many} minutes, {one / many:.1f} times as fast")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def scaling(
    graph: ComputationGraph, cluster: Cluster, counts: list[int], *, schedule: str, bucket_bytes: int
) -> list[dict[str, Any]]:
    """One row for each number of replicas; the speed-up is over one replica.

    Raises:
        InputError: There are fewer accelerators than replicas.
    """
    accelerators = [i for i, device in enumerate(cluster.devices) if device.spec.kind != "cpu"]
    hosts = [i for i, device in enumerate(cluster.devices) if device.spec.kind == "cpu"]
    one_s, rows = 0.0, []
    for count in [1, *(count for count in counts if count != 1)]:
        if not 1 <= count <= len(accelerators):
            raise InputError(f"{count} replicas: cluster '{cluster.name}' has {len(accelerators)} accelerators")
        made = replicate(graph, count, bucket_bytes=bucket_bytes)
        problem = PlacementProblem(made, one_group_an_op(made), cluster, schedule)
        placement = replica_placement(made, accelerators[:count], host=hosts[0] if hosts else None)
        evaluation = problem.evaluate_ops(placement[None])
        step_time_s = float(evaluation.step_time_s[0])
        one_s = one_s or step_time_s
        first = accelerators[0]
        rows.append(
            {
                "replicas": count,
                "ops": made.num_ops,
                "step_time_s": step_time_s,
                "speed_up": count * one_s / step_time_s,
                "busy": float(problem.op_time_s[first][placement == first].sum()) / step_time_s,
                "peak_memory_bytes": int(evaluation.peak_memory_bytes[0, accelerators].max()),
                "feasible": bool(evaluation.feasible[0]),
            }
        )
    return rows


if __name__ == "__main__":
    main()
