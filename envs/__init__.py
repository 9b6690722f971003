"""Devices, clusters, the cost model, the step simulator and the Gymnasium environments.

Importing it registers ``DevicePlacement-v0`` and ``DevicePlacementOneShot-v0`` with Gymnasium (by name only: nothing is
built, and no torch is loaded).
"""

import gymnasium

gymnasium.register(id="DevicePlacement-v0", entry_point="envs.placement_env:DevicePlacementEnv")
gymnasium.register(
    id="DevicePlacementOneShot-v0",
    entry_point="envs.placement_env:DevicePlacementOneShotEnv",
    vector_entry_point="envs.placement_env:DevicePlacementOneShotVectorEnv",
)
