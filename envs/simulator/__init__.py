"""The step simulator: what one step of a graph does on a cluster under a placement, to the last bit.

**Time** is seconds in float64. The step starts at 0 and ends with its last op.

**Instants and rounds.** The simulation goes from one instant at which something happens to the next. At an instant it
makes rounds. In a round, first everything that falls due is applied: ops end (in op index order), transfers start and
arrive. Then every idle device, in device order, starts its best ready op. An op that takes no time ends at the same
instant, which makes a further round; when nothing is due any more, time advances.

**Ops.** A device runs one op at a time, to its end. An op is ready when all tensors that it reads are on its device: a
tensor made there when its producer ends, another when its transfer ends. An op that reads nothing is ready at 0.

**Schedules** say which ready op is best.

- ``priority``: the op with the longest remaining path, then the smallest op index. The remaining path of an op is the
  largest sum of op times from it (inclusive) to any op without readers, each op at its fastest allowed device and
  without transfers, so it is the same for all placements.
- ``fifo``: the op that became ready at the earliest instant, then the smallest op index; rounds of one instant count as
  the same time.
- ``program_order``: each device runs its ops strictly in op index order, and waits for the next one.
- ``sequential``: the whole cluster does one thing at a time, in op index order: before an op runs, the copies of
  tensors that it reads and that its device lacks are sent there (in tensor order), one after another. Nothing overlaps.
  So runs a model whose modules are spread over devices by Hugging Face Accelerate's hooks.

**Copies** under ``sequential``. An op belongs to a *visit*: a call of the outermost module around it that is called and
all of whose ops are on one device, or of its own module where there is none such (`graphs.colocation.module_visits`
says which ops count, and which call it is). A tensor of the forward pass is sent once to each visit that reads it
elsewhere, so to one device as often as there are such visits there: hooks move what a module is called with, and keep
nothing for the next. A tensor of the backward pass is sent once to each device. Of the contributions to one sum of
gradients that one visit makes on one device, only the first is sent: the others were added to it there.

**Transfers** under the other schedules. When an op ends, each of its tensors (in tensor order) is sent once to each
other device (in device order) that has readers of it, however many. A transfer is reserved at once: it starts at the
first moment, from now on, from which all link directions of its route are free for good, takes the sum of the links'
latencies plus bytes divided by the smallest bandwidth, and occupies all of these directions until it ends. Whoever
reserves first is served first; gaps are not filled. Both directions of a link are independent. A tensor of no bytes is
sent like any other. One whose transfers are said to take some seconds takes these instead, whatever the route.

**Memory.** Resident bytes stay on their op's device for the whole step. A tensor made on a device lives there from the
start of its producer to the latest of its producer's end, the end of its last reader there and the end of its last
transfer elsewhere; one that is among its producer's resident bytes takes nothing more there. A received copy lives from
the start of its transfer to the end of its last reader there (also a copy of a resident tensor). Lives are half open:
what ends at an instant makes room for what starts at it, and a life of no length takes no room. The peak is the most
that is in use between any two instants.

**Restrictions.** An op may be restricted to kinds of device. The simulator runs any placement; `envs.problem` calls one
infeasible that puts an op where it may not be, or whose peaks exceed a device's memory or one that devices share.

`envs.simulator.choosing`, `in_order` and `sequential` say how this is made fast; they differ in no bit from
`envs.simulator.plain`.

Letters: ``B`` placements in a batch, ``N`` ops, ``E`` edges, ``T`` tensors, ``D`` devices, ``S`` distinct device specs.
"""

from envs.simulator.input import SCHEDULES, SimulatorInput, make_input
from envs.simulator.simulate import simulate, simulate_batch

__all__ = ["SCHEDULES", "SimulatorInput", "make_input", "simulate", "simulate_batch"]
