"""Place a model of your own: capture its training step, learn a placement, and save it.

    python examples/my_model.py --seconds 60 --out runs/my_model

Put your model, a batch and a loss into `make`; nothing else has to change. The command takes the same function:

    cd examples && placement train my_model.py:make --cluster k80x2
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

import placement
from graphs.capture import capture


class Towers(nn.Module):
    """Two towers, one for images and one for words, and a head that joins what they say."""

    def __init__(self, width: int = 512, layers: int = 6, classes: int = 10) -> None:
        super().__init__()
        self.images = nn.Sequential(*[layer for _ in range(layers) for layer in (nn.Linear(width, width), nn.ReLU())])
        self.words = nn.Sequential(*[layer for _ in range(layers) for layer in (nn.Linear(width, width), nn.Tanh())])
        self.head = nn.Linear(2 * width, classes)

    def forward(self, image: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of two inputs, ``[batch, width]`` each."""
        logits: torch.Tensor = self.head(torch.cat([self.images(image), self.words(word)], dim=1))
        return logits


def make(batch: int = 256, width: int = 512) -> dict[str, Any]:
    """What `capture` is given: no data is needed, since only the sizes of the batch count."""
    inputs = torch.randn(batch, width), torch.randn(batch, width)
    labels = torch.randint(10, (batch,))
    return {"model": Towers(width), "example_batch": (inputs, labels), "loss": nn.functional.cross_entropy}


def main() -> None:
    """Capture, learn, save, and say what was gained."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cluster", default="k80x2", help="a known cluster or a .yaml file")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training")
    parser.add_argument("--updates", type=int, help="of the policy, instead of the seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/my_model"), help="directory of the run, to be made")
    args = parser.parse_args()

    graph = capture(**make(), name="towers")
    problem = placement.make_problem(graph, args.cluster)
    run = placement.train(
        problem,
        time_limit_s=None if args.updates else args.seconds,
        updates=args.updates,
        out=args.out,
    )
    one_device_s = run.comparison.best_single_device_s or float("nan")
    print(f"a step takes {run.result.step_time_s * 1e3:.2f} ms; on the best single device {one_device_s * 1e3:.2f} ms")
    print(f"each op's device: {args.out / 'placement.json'}")


if __name__ == "__main__":
    main()
