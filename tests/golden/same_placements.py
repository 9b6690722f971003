"""Whether two revisions learn the same placements: ``--updates`` runs on six cells, compared byte for byte.

    python tests/golden/same_placements.py --base REVISION [--updates 3] [--cells nmt/k80x4 ...]

REVISION is checked out into a temporary worktree; the other side is the working tree. Exits 1 where a placement file
differs. For changes that must not change an answer: moved files, renamed classes, faster code.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CELLS = ("rnnlm/k80x4", "nmt/k80x4", "inception_v3/k80x2", "moe_lm/mixed", "dlrm/mixed", "transformer_lm/a100x4")


def learn(source: Path, cell: str, updates: int, out: Path) -> bytes:
    """The placement file that the code in `source` learns for a cell, ``graph/cluster``."""
    graph, _, cluster = cell.partition("/")
    args = ["train", graph, "--cluster", cluster, "--updates", str(updates), "--seed", "1", "--out", str(out)]
    subprocess.run(
        [sys.executable, "-m", "placement.cli", *args],
        cwd=out.parent,
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return (out / "placement.json").read_bytes()


def main() -> int:
    """Compare, print a line a cell, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the revision to compare with")
    parser.add_argument("--updates", type=int, default=3, help="updates a run: %(default)s")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), metavar="GRAPH/CLUSTER")
    args = parser.parse_args()
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(base), args.base], cwd=ROOT, check=True)
        try:
            for number, cell in enumerate(args.cells):
                before = learn(base, cell, args.updates, Path(folder) / f"before-{number}")
                after = learn(ROOT, cell, args.updates, Path(folder) / f"after-{number}")
                differing += before != after
                print(f"{cell:<24} {'same' if before == after else 'DIFFERENT'}", flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(base)], cwd=ROOT, check=True)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
