"""A small model as a file of the user's, and the devices that the tests of measured time run it on."""

from __future__ import annotations

from tests.envs.measured.measured_problems import NAMES

DEVICES = ",".join(NAMES)

MODEL = """
import torch

def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    return model, (torch.ones(4, 8), torch.zeros(4, dtype=torch.long)), torch.nn.functional.cross_entropy
"""
