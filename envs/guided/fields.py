"""Where each field of a guided observation stands, and what it means.

An observation is about one group. First come numbers about the group and the whole, then blocks of one number a device.
All are from 0 to 1. *Squashed by u* is ``x / (x + u)``: one half at ``u``.

| name | one a device | meaning |
|---|---|---|
| ``progress`` | | groups placed / all |
| ``code`` | | the group's number in binary, `CODE_BITS` fields: tells the groups of one problem apart |
| ``num_ops`` | | ops of the group / ops of the largest group |
| ``work`` | | the group's time on its fastest device, squashed by a mean group's |
| ``resident`` | | the group's resident bytes / memory of the largest device |
| ``placed_traffic`` | | share of the bytes that it exchanges with groups that are placed |
| ``ahead`` | | the outlook as things stand, squashed by the reference's: above one half is worse than the reference |
| ``allowed`` | x | 1 where the group may be |
| ``time`` | x | its time there, squashed by a mean group's |
| ``start`` | x | when its first part would start there / the outlook as things stand |
| ``finish`` | x | when that part would end there / the same |
| ``outlook`` | x | change of the outlook if the group stands there: one half for none, above for a quicker step |
| ``transfer`` | x | seconds of exchanging tensors with placed groups elsewhere, squashed by a mean group's time |
| ``traffic`` | x | bytes exchanged with groups that are placed there / all that it exchanges |
| ``load`` | x | seconds of the groups placed there, squashed by a fair share of the work |
| ``idle`` | x | share of the outlook for which the device would be idle, with the rest where the reference has it |
| ``memory_left`` | x | share of the device's memory that residents placed so far leave |
| ``reference`` | x | 1 where the reference, the best of the votes, has the group |
| ``votes`` | x | share of the heuristics that have it there |
| ``together`` | x | of the placed groups that a heuristic has with this one, the share there; mean over them |
| ``last`` | x | 1 at the device of the group placed last |

Fields of a group are 0 where none is next, and fields of a device that the problem does not have are 0.
"""

from __future__ import annotations

CODE_BITS = 10
"""Groups are told apart up to 1,024 of them; beyond, codes repeat."""

SCALAR_PROGRESS = 0
SCALAR_CODE = 1
SCALAR_NUM_OPS = SCALAR_CODE + CODE_BITS
SCALAR_WORK = SCALAR_NUM_OPS + 1
SCALAR_RESIDENT = SCALAR_NUM_OPS + 2
SCALAR_PLACED_TRAFFIC = SCALAR_NUM_OPS + 3
SCALAR_AHEAD = SCALAR_NUM_OPS + 4
NUM_SCALARS = SCALAR_AHEAD + 1

_PER_DEVICE = (
    "allowed",
    "time",
    "start",
    "finish",
    "outlook",
    "transfer",
    "traffic",
    "load",
    "idle",
    "memory_left",
    "reference",
    "votes",
    "together",
    "last",
)
(ALLOWED, TIME, START, FINISH, OUTLOOK, TRANSFER, TRAFFIC, LOAD, IDLE, MEMORY_LEFT, REFERENCE, VOTES, TOGETHER,
 LAST) = range(len(_PER_DEVICE))  # fmt: skip


def size(devices: int) -> int:
    """Length of an observation with room for so many devices."""
    return NUM_SCALARS + len(_PER_DEVICE) * devices


def fields(devices: int) -> dict[str, slice]:
    """Where each field stands in an observation with room for so many devices.

    >>> fields(3)["allowed"]
    slice(16, 19, None)
    """
    scalars = {
        "progress": SCALAR_PROGRESS,
        "num_ops": SCALAR_NUM_OPS,
        "work": SCALAR_WORK,
        "resident": SCALAR_RESIDENT,
        "placed_traffic": SCALAR_PLACED_TRAFFIC,
        "ahead": SCALAR_AHEAD,
    }
    layout = {name: slice(at, at + 1) for name, at in scalars.items()}
    layout["code"] = slice(SCALAR_CODE, SCALAR_CODE + CODE_BITS)
    for number, name in enumerate(_PER_DEVICE):
        layout[name] = slice(NUM_SCALARS + number * devices, NUM_SCALARS + (number + 1) * devices)
    return layout
