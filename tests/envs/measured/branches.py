"""A graph for the tests of profiles and of what is learned from them."""

from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build


def two_branches() -> ComputationGraph:
    """``x`` makes 10 MB, which ``left`` and ``right``, ops of the same kind, read; ``join`` reads 20 kB of each."""
    kind = {"type": "mm", "flops": 100, "bytes_accessed": 100, "output_shapes": [(4, 4)]}
    ops = [
        OpRecord("x", "add", flops=1, bytes_accessed=8, output_shapes=[(8,)]),
        OpRecord("left", **kind),  # type: ignore[arg-type]
        OpRecord("right", **kind),  # type: ignore[arg-type]
        OpRecord("join", "cat", bytes_accessed=8, output_shapes=[(8, 4)]),
        OpRecord("nothing", "parameter"),
    ]
    tensors = [
        TensorRecord(0, 10_000_000, [1, 2]),
        TensorRecord(1, 20_000, [3]),
        TensorRecord(2, 20_000, [3]),
    ]
    return build("branches", ops, tensors)
