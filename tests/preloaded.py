"""What processes of the tests find imported, see `tests.forked`."""

import importlib

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
