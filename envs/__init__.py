"""Devices, clusters, the cost model, the step simulator and the Gymnasium environments.

Importing it registers ``DevicePlacement-v0`` and ``-v1``, ``DevicePlacementOneShot-v0`` and ``-v1`` and
``DevicePlacementMoves-v0`` with Gymnasium (by name only: nothing is built, and no torch is loaded).
"""

import gymnasium

gymnasium.register(id="DevicePlacement-v0", entry_point="envs.placement_env:DevicePlacementEnv")
gymnasium.register(
    id="DevicePlacementOneShot-v0",
    entry_point="envs.placement_env:DevicePlacementOneShotEnv",
    vector_entry_point="envs.placement_env:DevicePlacementOneShotVectorEnv",
)
gymnasium.register(
    id="DevicePlacement-v1",
    entry_point="envs.guided.environment:GuidedPlacementEnv",
    vector_entry_point="envs.guided.vector:GuidedPlacementVectorEnv",
)
gymnasium.register(
    id="DevicePlacementOneShot-v1",
    entry_point="envs.guided.one_shot:GuidedOneShotEnv",
    vector_entry_point="envs.guided.one_shot:GuidedOneShotVectorEnv",
)
gymnasium.register(id="DevicePlacementMoves-v0", entry_point="envs.guided.moves:PlacementMovesEnv")
