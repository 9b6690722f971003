"""Describe the machine that you have, or one that you might buy, and see what it is worth to a model.

    python examples/my_cluster.py --graph nmt

The machine is in `my_cluster.yaml`. The command takes that file, too:

    placement compare nmt --cluster examples/my_cluster.yaml
"""

import argparse
from dataclasses import replace
from pathlib import Path

import placement
from envs.clusters.catalog import load_cluster

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--graph", default="nmt", help="a zoo name, a graph file or an ONNX file")
parser.add_argument("--cluster", default=str(Path(__file__).with_name("my_cluster.yaml")))
parser.add_argument("--seconds", type=float, default=10.0, help="of search for each machine")
args = parser.parse_args()

cluster = load_cluster(args.cluster)
for device in cluster.devices:
    print(f"{device.name}: {device.spec.name}, {device.spec.memory_bytes / 1e9:.0f} GB")

# The same machine with links twice as fast: would a new board pay?
links = tuple(replace(link, bytes_per_s=2 * link.bytes_per_s) for link in cluster.links)
faster = replace(cluster, name=f"{cluster.name} with faster links", links=links)

for machine in (cluster, faster):
    problem = placement.make_problem(args.graph, machine)
    comparison = placement.compare(problem, ["single_device", "heft", "annealing"], time_limit_s=args.seconds)
    best = comparison.best
    if best is None or best.step_time_s is None:
        print(f"{machine.name}: nothing fits")
    else:
        print(f"{machine.name}: {best.step_time_s * 1e3:.2f} ms a step, by {best.placer}")
