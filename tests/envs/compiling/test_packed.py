"""Packed tuples: compiled code reads and writes the same arrays as Python, whatever their kind."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.compiling import Packed, address_of, call_simulator, called, compiled

RECORD = np.dtype([("seconds", np.float64), ("number", np.uint32)], align=True)


class Parts(NamedTuple):
    """One of each kind."""

    flags: NDArray[np.bool_]
    amount: int
    matrix: NDArray[np.float64]
    records: NDArray[Any]
    strided: NDArray[np.float64]  # every second entry
    last: NDArray[np.uint64]


class Alike(NamedTuple):
    """As many arrays of the same kinds by other names."""

    amount: int | np.uint64
    last: NDArray[np.uint64]


class Swapped(NamedTuple):
    """As `Alike`, the other way round."""

    last: NDArray[np.uint64]
    amount: int | np.uint64


def make_parts(size: int) -> Parts:
    return Parts(
        flags=np.arange(size) % 2 == 0,
        amount=size + 7,
        matrix=np.arange(3.0 * size).reshape(3, size),
        records=np.array([(i / 4, i) for i in range(size)], dtype=RECORD),
        strided=np.arange(2.0 * size)[::2],
        last=np.zeros(2, dtype=np.uint64),
    )


@called
def _total(parts: Any, i: int) -> float:
    return parts.matrix[2, i] + parts.records[i].seconds + parts.records[i].number + parts.strided[i]


@compiled
def run(parts: Any) -> float:
    total = 0.0
    for i in range(parts.matrix.shape[1]):
        if parts.flags[i]:
            total += _total(parts, i)
        parts.strided[i] = -total
        parts.records[i].number += np.uint32(parts.amount)
    parts.last[1] = parts.amount
    return total


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_compiled_code_reads_and_writes_the_arrays_of_the_tuple(size: int) -> None:
    parts, before = make_parts(size), make_parts(size)
    total = run(Packed(parts))
    each = before.matrix[2] + before.records["seconds"] + before.records["number"] + before.strided
    expected = np.cumsum(np.where(before.flags, each, 0.0))
    assert total == expected[-1]
    np.testing.assert_array_equal(parts.strided, -expected)
    np.testing.assert_array_equal(parts.records["number"], before.records["number"] + size + 7)
    assert parts.last.tolist() == [0, size + 7]


def test_python_reads_a_packed_tuple_as_the_tuple() -> None:
    parts = make_parts(3)
    packed = Packed(parts)
    assert packed.matrix is parts.matrix
    assert packed.amount == 10
    with pytest.raises(AttributeError, match="Parts"):
        packed.nothing  # noqa: B018


def test_a_copy_has_arrays_of_its_own() -> None:
    packed = Packed(make_parts(4))
    copy = pickle.loads(pickle.dumps(packed))
    assert copy.address != packed.address
    run(copy)
    assert copy.last[1] == 11
    assert packed.last[1] == 0


def test_tuples_whose_parts_stand_elsewhere_are_other_kinds() -> None:
    @compiled
    def read(parts: Any) -> Any:
        return parts.amount + parts.last[0]

    last, two = np.array([5], dtype=np.uint64), np.uint64(2)
    assert read(Packed(Alike(two, last))) == 7
    assert read(Packed(Swapped(last, two))) == 7
    assert read(Packed(Alike(2, last))) == 7
    assert read(Packed(Alike(3, last))) == 8
    assert len(read.signatures) == 4  # type: ignore[attr-defined]
    assert read(Packed(Alike(np.uint64(4), last + last))) == 14
    assert len(read.signatures) == 4  # type: ignore[attr-defined]


def test_what_is_no_array_and_no_whole_number_is_refused() -> None:
    with pytest.raises(TypeError, match="'amount' is of <class 'float'>"):
        Packed(Alike(1.5, np.zeros(1, dtype=np.uint64)))  # type: ignore[arg-type]


@compiled
def fill(
    work: Any,
    placements: NDArray[np.int32],
    limit_s: NDArray[np.float64],
    step_time_s: NDArray[np.float64],
    peak: NDArray[np.int64],
) -> None:
    """In place of a simulator."""
    for b in range(len(placements)):
        step_time_s[b] = limit_s[b] + placements[b].sum() * work.amount
        peak[b, 1] = work.last[0]


@compiled
def call(
    address: int,
    work: int,
    placements: NDArray[np.int32],
    limit_s: NDArray[np.float64],
    step_time_s: NDArray[np.float64],
    peak: NDArray[np.int64],
) -> None:
    call_simulator(address, work, placements, limit_s, step_time_s, peak)


def test_what_is_called_by_address_does_what_it_does_when_called_by_name() -> None:
    work = Packed(Alike(3, np.array([9], dtype=np.uint64)))
    placements, limit_s = np.arange(6, dtype=np.int32).reshape(2, 3), np.array([0.5, 0.25])
    answers = []
    for by_address in (False, True):
        step_time_s, peak = np.zeros(2), np.zeros((2, 2), dtype=np.int64)
        rest = placements, limit_s, step_time_s, peak
        if by_address:
            call(address_of(fill, work, *rest), work.address, *rest)
        else:
            fill(work, *rest)
        answers.append((step_time_s.tolist(), peak.tolist()))
    assert answers[0] == answers[1] == ([9.5, 36.25], [[0, 9], [0, 9]])
