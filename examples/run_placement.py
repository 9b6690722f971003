"""Run a model by its placement, on two cores of this machine, and train it that way.

    python examples/run_placement.py --steps 20

Every number is what the model itself would compute; only where it is computed changes. With GPUs the devices are
``cuda:0`` and so on.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

import placement
from graphs.capture import capture

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--devices", default="cpu:0,cpu:1", help="of this machine")
parser.add_argument("--steps", type=int, default=20, help="of the model's training")
parser.add_argument("--out", type=Path, default=Path("placement.json"), help="file of the placement, to be written")
args = parser.parse_args()

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
batch = torch.randn(128, 256), torch.randint(10, (128,))  # inputs and labels
loss = nn.functional.cross_entropy

graph = capture(model, batch, loss, optimizer="adam")
problem = placement.make_problem(graph, f"cpu_cores:{len(args.devices.split(','))}")
best = placement.compare(problem, ["single_device", "contiguous", "round_robin"]).best
assert best is not None
assert best.placement is not None
result = placement.make_result(problem, best.placement, placer=best.placer, seed=0)
placement.write_placement(args.out, result)  # what `placement run` and `placement simulate` take, too

with placement.apply(model, result, batch, loss, devices=args.devices, optimizer="adam") as step:
    for number in range(1, args.steps + 1):
        value = float(step(batch))  # any batch of these sizes; the weights that it updates are the model's own
        if step.last is not None and number in (1, args.steps):
            print(f"step {number}: loss {value:.4f}, {step.last.step_time_s * 1e3:.1f} ms, placed by {best.placer}")

with torch.no_grad():
    print(f"the model itself now: loss {float(loss(model(batch[0]), batch[1])):.4f}")
