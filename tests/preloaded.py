"""What processes of the tests find imported, see `tests.forked`."""

import gc
import importlib

gc.disable()  # nothing of this is ever freed; looking for it took a fifth of the time, here and in each process
for _name in (
    "envs.measured.engine",
    "envs.measured.plain",
    "graphs.capture",
    "graphs.sources",
    "placement.api",
    "placement.cli.main",
    "placement.learning.placer",
    "placement.runs.measured_training",
    "placement.runs.training",
    "tests.envs.measured.faulty_problems",
    "tests.placement.problems",
    "torch.utils.tensorboard",
):
    importlib.import_module(_name)
gc.collect()
gc.freeze()
gc.enable()
