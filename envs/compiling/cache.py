"""numba's cache of machine code, whose entries count as old as soon as anything changes that they were made of.

numba looks at the file of the function that it cached, and at nothing else, so a change to a function in another file,
or to a constant there, would go unnoticed. Here the code of all functions below the cached one, and the constants that
they name, are part of what an entry is known by.

The cache is the `__pycache__` beside the function's file; where that cannot be written, the user's cache directory, or
``NUMBA_CACHE_DIR``. Where none of them can be written numba refuses to cache, and we compile in every process.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.dispatcher import Dispatcher
from numba.extending import _Intrinsic

F = TypeVar("F", bound=Callable[..., Any])


def cached(function: F, options: dict[str, Any]) -> F:
    """Compile with options of numba's on first use, and keep the machine code where that can be written."""
    try:
        made = numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return cast(F, numba.njit(**options)(function))
    made._cache = _Cache(function)
    return cast(F, made)


def is_kept(function: Any) -> bool:
    """Whether the cache has machine code of a function as it is now."""
    cache = function._cache
    return isinstance(cache, _Cache) and cache.is_filled()


def can_keep(function: Any) -> bool:
    """Whether there is a place where machine code of a function can be kept."""
    return isinstance(function._cache, _Cache)


def is_at_hand(function: Any) -> bool:
    """Whether a call would not have to compile, so far as is known before it: it has been compiled, or is kept."""
    return bool(function.overloads) or is_kept(function)


class _Cache(FunctionCache):  # type: ignore[misc, unused-ignore]
    """Of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._looked = False

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Called by numba, when the function is called first."""
        self._look()
        return super().load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Called by numba, when the function has been compiled."""
        self._look()
        super().save_overload(sig, data)

    def is_filled(self) -> bool:
        """Whether it holds anything of the function as it is now."""
        self._look()
        return bool(self._cache_file._load_index())

    def _look(self) -> None:
        """Add to the stamp what is below the function; not before it is used, when all that it names is there."""
        if not self._looked:
            stamp = self._impl.locator.get_source_stamp(), made_of(self._py_func)
            self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, stamp)
            self._looked = True


def made_of(function: Callable[..., Any]) -> str:
    """A digest of a function's code, of all compiled functions that it calls, and of the constants that they name."""
    digest, seen, left = hashlib.sha256(_compilers()), set[int](), [function]
    while left:
        this = left.pop()
        if id(this) in seen or not isinstance(this, FunctionType):
            continue
        seen.add(id(this))
        for code in _codes(this.__code__):
            constants = [_text(constant) for constant in code.co_consts]
            digest.update(code.co_code + repr((code.co_names, constants)).encode())
            for value in _named(this, code):
                if isinstance(value, Dispatcher):
                    left.append(value.py_func)
                elif isinstance(value, _Intrinsic):
                    left.append(value._defn)
                else:
                    digest.update(_text(value).encode())
    return digest.hexdigest()


@functools.cache
def _compilers() -> bytes:
    """This package's own code, which says how tuples are laid out and what is called how."""
    return b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))


def _text(value: Any) -> str:
    """A constant as text that is the same in every process; nothing of what is no constant."""
    if isinstance(value, tuple | frozenset):
        parts = [_text(part) for part in value]
        return str(parts if isinstance(value, tuple) else sorted(parts))
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {value.tobytes()!r}"
    return repr(value) if isinstance(value, int | float | np.generic | str) else ""


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _named(function: FunctionType, code: CodeType) -> Iterator[Any]:
    """What the names in a function's code stand for, as far as that is known before it runs."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    for name in sorted({*code.co_names, *code.co_freevars}):
        value = cells[name].cell_contents if name in cells else function.__globals__.get(name)
        yield value
        if isinstance(value, ModuleType):
            yield from (vars(value).get(attribute) for attribute in code.co_names)
