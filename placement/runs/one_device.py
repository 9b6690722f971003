"""All cores as one device, which no placement on several of them should be slower than.

No torch is loaded here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from envs.clusters.cluster import Cluster
from envs.make_problem import make_problem
from envs.measured.machine import RealDevice, as_one
from envs.measured.problem import Hosts, MeasuredProblem, Measurement, Measurer, machine_cluster, measured
from envs.measured.protocol import Protocol
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError
from placement.results.placement_file import PlacementResult, make_result
from placement.runs.plain import COMPILE_REGIONS, ONE_DEVICE, can_be_one


class OneDevice:
    """Every op on one device that has all cores of some devices, by the engine. To be used in a ``with`` statement.

    Args:
        source: What the model is built from.
        graph: Of its step.
        devices: Whose cores it has.
        schedule: Which ready op runs first.
        time_limit_s: Seconds that one measurement may take.
        how: How many steps.
        compile_regions: Regions will be compiled.
        hosts: The machines that run it; by default this one.

    Raises:
        InputError: The devices are not several of cores, see `can_be_one`.
    """

    def __init__(
        self,
        source: str,
        graph: ComputationGraph,
        devices: Sequence[RealDevice],
        *,
        schedule: str = "priority",
        time_limit_s: float,
        how: Protocol,
        compile_regions: bool = False,
        hosts: Hosts | None = None,
    ) -> None:
        device = as_one(devices)
        if device is None or not can_be_one(devices):
            raise InputError("only several devices of cores can be one device")
        self.cluster: Cluster = machine_cluster((device,))
        problem = make_problem(graph.untimed, self.cluster, schedule=schedule)
        self._problem = measured(
            problem,
            source,
            (device,),
            time_limit_s=time_limit_s,
            how=how,
            compile_regions=compile_regions,
            hosts=None if hosts is None else hosts.on_devices((device,)),
        )
        self._placement = np.zeros(graph.num_ops, dtype=np.int32)

    def __enter__(self) -> OneDevice:
        return self

    def __exit__(self, *error: object) -> None:
        self._problem.close()

    def measure(self, *, compile_regions: bool) -> Measurement:
        """Run it, once more where it was run in this way before: the step times of all runs count.

        Raises:
            InputError: The model cannot be built, or its regions cannot be compiled.
        """
        measurer = self._problem.measurer
        measurer.compile_regions = compile_regions
        return measurer.measure(self._placement, self._problem.schedule, again=True)

    def result(self) -> PlacementResult | None:
        """The placement with its step time in the way in which it was faster; None where it was not run to the end."""
        measurer = self._problem.measurer
        found: list[PlacementResult] = []
        for measurer.compile_regions in (False, True):
            if measurer.best(self._problem.schedule):
                config = {COMPILE_REGIONS: True} if measurer.compile_regions else {}
                found.append(make_result(self._problem, self._placement, placer=ONE_DEVICE, seed=0, config=config))
        return min(found, key=lambda each: each.step_time_s, default=None)


def run_in_turn(
    problem: MeasuredProblem, *, compile_regions: bool, before_each: Callable[[], None]
) -> tuple[PlacementResult, Cluster] | None:
    """Run one device of all cores in turn with the best placement, so that what disturbs the machine disturbs both.

    Args:
        problem: Whose placements were run on several devices of cores.
        compile_regions: Once more with regions that are compiled.
        before_each: Called before each run; it may raise.

    Returns:
        Every op on that device, in the way in which it is faster, and the cluster of it; None where it cannot be run.

    Raises:
        InputError: The model cannot be built.
    """
    measurer = problem.measurer
    alone = OneDevice(
        measurer.process.source,
        problem.graph,
        measurer.process.devices,
        schedule=problem.schedule,
        time_limit_s=measurer.time_limit_s,
        how=measurer.how,
        compile_regions=compile_regions,
        hosts=measurer.hosts,
    )
    with alone:
        for compiles in (False, True) if compile_regions else (False,):
            with compiled_regions(measurer) if compiles else contextlib.nullcontext():
                before_each()
                alone.measure(compile_regions=compiles)
                for op_placement in measurer.best(problem.schedule)[:1]:
                    before_each()
                    measurer.measure(op_placement, problem.schedule, again=True)
                before_each()
                alone.measure(compile_regions=compiles)
        found = alone.result()
    return None if found is None else (found, alone.cluster)


@contextlib.contextmanager
def compiled_regions(measurer: Measurer) -> Iterator[None]:
    """Have a measurer run placements with regions that are compiled, as long as this is open."""
    measurer.compile_regions = True
    try:
        yield
    finally:
        measurer.compile_regions = False
