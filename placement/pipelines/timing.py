"""One process of a pipeline that is measured: started by `torchrun`, it runs steps and says how long they took.

``python -m placement.pipelines.timing FOLDER``: the folder holds what to run, and afterwards what was found. All of it
goes by files, as what processes print is the model's own.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgspec

from envs.measured.child import end_with_the_parent, failure_reason
from graphs.errors import InputError
from placement.exports.stages import Stages

ASKED, TIMES = "asked.json", "times.json"


class Asked(msgspec.Struct, frozen=True):
    """What is run.

    Attributes:
        source: What names the model, see `graphs.sources.load_model`.
        stages: Its stages, a rank each process.
        steps: That count.
        dropped: That go before them.
        timeout_s: Seconds that a process waits for another before it gives up.
        import_path: Where modules are looked for.
    """

    source: str
    stages: Stages
    steps: int
    dropped: int
    timeout_s: float
    import_path: list[str]


class Said(msgspec.Struct, frozen=True):
    """Why a process has ended.

    Attributes:
        text: The reason.
        is_lost: Whether it only waited in vain for another, which knows more.
    """

    text: str
    is_lost: bool = False


def main() -> None:
    """Run what the folder says; each process writes what it knows."""
    end_with_the_parent(os.getppid())
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    asked = msgspec.json.decode((folder / ASKED).read_bytes(), type=Asked)
    sys.path[:] = asked.import_path
    try:
        times = run(asked)
    except Exception as error:
        from placement.pipelines.run import RankLostError

        kind = "" if isinstance(error, InputError | RankLostError) else f"{type(error).__name__}: "
        said = Said(failure_reason(error, kind)[:500], isinstance(error, RankLostError))
        (folder / f"said-{rank}.json").write_bytes(msgspec.json.encode(said))
        os._exit(1)  # what is left of the pipeline may wait for ever
    if rank == "0":
        (folder / TIMES).write_bytes(msgspec.json.encode(times))


def run(asked: Asked) -> list[float]:
    """Seconds of each step that counts, as long as the slowest process took.

    Raises:
        InputError: The model or its stages cannot be run.
        placement.pipelines.run.RankLostError: Another process has ended.
    """
    import torch
    import torch.distributed as dist

    from envs.measured.optimizers import make_optimizer
    from envs.measured.updates import UpdateSettings
    from graphs.sources import load_model
    from placement.pipelines.run import pipeline

    options = load_model(asked.source)
    for name in ("step", "clip_grad_norm"):
        if options.get(name) is not None:
            raise InputError(f"graph '{asked.source}' has a {name}, which a pipeline does not run; leave it out")
    if not options.get("training", True):
        raise InputError(f"graph '{asked.source}' is not trained; a pipeline runs training steps")
    loss = options.get("loss") or (lambda output: output)
    batch = options["example_batch"]
    pipe = pipeline(options["model"], asked.stages, batch, loss, timeout_s=asked.timeout_s)
    optimizer = make_optimizer(options.get("optimizer", "adam"), UpdateSettings(), list(pipe.parameters()))
    times = []
    for _ in range(asked.dropped + asked.steps):
        optimizer.zero_grad()
        dist.barrier()
        began_s = time.perf_counter()
        pipe.step(batch)
        optimizer.step()
        if pipe.device.type == "cuda":
            torch.cuda.synchronize(pipe.device)
        took_s = torch.tensor(time.perf_counter() - began_s, dtype=torch.float64, device=pipe.device)
        dist.all_reduce(took_s, op=dist.ReduceOp.MAX)
        times.append(float(took_s))
    dist.destroy_process_group()
    return times[asked.dropped :]


if __name__ == "__main__":
    main()
