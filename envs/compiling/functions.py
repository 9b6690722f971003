"""The decorators of compiled functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

from envs.compiling.cache import cached
from envs.compiling.parts import PartCompiler, WholeCompiler

_OPTIONS: dict[str, Any] = {"nogil": True, "_nrt": False, "error_model": "numpy", "no_cfunc_wrapper": True}
_PART: dict[str, Any] = {**_OPTIONS, "no_cpython_wrapper": True, "pipeline_class": PartCompiler}

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile on first use, release the GIL, and keep the machine code in numba's cache.

    `_nrt=False` leaves out counting references to arrays, which took nine tenths of the time: nothing here allocates or
    keeps an array, and the caller holds all of them.
    """
    return cached(function, {**_OPTIONS, "pipeline_class": WholeCompiler})


def called(function: F) -> F:
    """Compile for compiled callers only."""
    return cast(F, numba.njit(**_PART)(function))


def inlined(function: F) -> F:
    """As `called`, and compile into the callers."""
    return cast(F, numba.njit(forceinline=True, **_PART)(function))
