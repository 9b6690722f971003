"""Devices, clusters, the cost model, the step simulator and the Gymnasium environments."""
