"""What an exact evaluation of a move costs inside the search, against another checkout of this project in the same run.

    python scripts/benchmark_moves.py [CELL ...] [--against FOLDER] [--moves N] [--rounds N]

A cell is GRAPH/CLUSTER[/SCHEDULE]. One chain walks from a cut into blocks through a run from coarse to fine, cooling as
in a training, in a process of its own; with --against the two checkouts take turns, and the least times count. Printed
are microseconds of a core for an evaluation (a move that was judged, whatever it took), the share that was accepted,
and the ratio.
The walks of two checkouts must be the same, move by move, or the ratio says nothing: evaluations, acceptance and what
is found are compared to the last bit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
if __name__ == "__main__" and "--walk" not in sys.argv:  # a walk is of the checkout that it was asked of
    sys.path.insert(0, str(HERE))

CELLS = ("nmt/k80x4", "nasnet/k80x4", "inception_v3/k80x4", "rnnlm:steps=285/k80x4", "rnnlm:steps=1200/v100x8")
PARTS = 40
"""Blocks of moves into which a run is cut, at least: temperatures fall from one to the next."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", help=f"by default {' '.join(CELLS)}")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--moves", type=int, help="of a run; by default about 20 million simulated ops' worth")
    parser.add_argument("--rounds", type=int, default=3, help="of which the least time counts: %(default)s")
    parser.add_argument("--walk", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.walk is not None:
        print(json.dumps(walk(**options.walk)))
        return
    checkouts = [HERE] if options.against is None else [HERE, options.against.resolve()]
    print(f"{'cell':<26}{'ops':>8}{'moves':>8}{'accepted':>10}{'us':>9}{'there':>9}{'ratio':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for cell in options.cells or CELLS:
            measure(cell, checkouts, options.moves, options.rounds, Path(folder))


def measure(cell: str, checkouts: list[Path], moves: int | None, rounds: int, folder: Path) -> None:
    """Print the line of one cell.

    Raises:
        RuntimeError: The checkouts walk differently.
    """
    from graphs.files import save_graph_file
    from graphs.sources import load_graph

    name, cluster, schedule = (*cell.split("/"), "priority")[:3]
    graph = load_graph(name)
    path = folder / "cell.graph.json.gz"
    save_graph_file(graph, path)
    moves = moves or max(20_000_000 // graph.num_ops, 400)
    asked = json.dumps({"path": str(path), "cluster": cluster, "schedule": schedule, "moves": moves})
    least: list[dict[str, Any]] = [{} for _ in checkouts]
    for _ in range(rounds):
        for number, checkout in enumerate(checkouts):
            found = walk_there(checkout, asked)
            if not least[number] or found["seconds"] < least[number]["seconds"]:
                least[number] = found
    ways = [{key: value for key, value in found.items() if key != "seconds"} for found in least]
    if ways[0] != ways[-1]:
        raise RuntimeError(f"{cell}: the checkouts walk differently: {ways[0]}, {ways[-1]}")
    accepted = ways[0]["acceptance"]
    micros = [1e6 * found["seconds"] / found["evaluations"] for found in least]
    there = f"{micros[1]:>9.1f}{micros[0] / micros[1]:>7.2f}" if len(micros) > 1 else ""
    print(f"{cell:<26}{graph.num_ops:>8}{moves:>8}{accepted:>10.1%}{micros[0]:>9.1f}{there}", flush=True)


def walk_there(checkout: Path, asked: str) -> dict[str, Any]:
    """Walk by the code of a checkout, in a process of its own."""
    command = [sys.executable, __file__, "--walk", asked]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def walk(path: str, cluster: str, schedule: str, moves: int) -> dict[str, Any]:
    """One chain's run; what it came to, and seconds without compiling."""
    import numpy as np

    from placement.api import make_problem
    from placement.move_search.config import MoveConfig
    from placement.move_search.search import MoveSearch
    from placement.runs.compile_ahead import compile_search

    compile_search(schedule)
    problem = make_problem(path, cluster, schedule=schedule)
    groups, gpus = problem.num_groups, problem.num_devices - 1
    blocks = 1 + np.arange(groups) * gpus // groups
    blocks = np.where(problem.allowed[np.arange(groups), blocks], blocks, problem.allowed.argmax(axis=1))
    search = MoveSearch(problem, config=MoveConfig(chains=1), seed=0)
    search.offer_best_of(blocks[None], problem.evaluate(blocks[None]))
    search.expect(moves)
    seconds = 0.0
    with ThreadPoolExecutor(1) as executor:
        for part in range(PARTS):
            began = time.process_time()
            search.finish(
                search.start(
                    max(moves // PARTS, 1),
                    progress=lambda share, part=part: (part + share) / PARTS,  # type: ignore[misc]
                    should_stop=lambda: False,
                    log_probability=None,
                    executor=executor,
                )
            )
            seconds += time.process_time() - began
    return {
        "seconds": seconds,
        "evaluations": search.evaluations,
        "acceptance": search.acceptance,
        "best_s": search.best_cost_s,
    }


if __name__ == "__main__":
    main()
