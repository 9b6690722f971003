"""How this project's kernels are compiled: once each, kept on disk, and in as little time as numba allows.

What a newcomer waits for is numba, so four things are done that numba does not do by itself:

- **Parts are made machine code only where they end up.** A function that only compiled functions call (`called`,
  `inlined`) is neither optimised as a whole nor turned into machine code on its own (`envs.compiling.parts`).
- **Named tuples of arrays are passed by address** (`Packed`): handing over forty arrays by value took most of the code
  of a call, from Python and from compiled code alike.
- **What is large is called by address** (`address_of`, `call_simulator`), so that its callers hold no copy of it.
- **The cache knows what a function was made of** (`envs.compiling.cache`), in whatever files that stands; numba by
  itself looks at one.
"""

from envs.compiling.cache import cached, can_keep, is_at_hand, is_kept
from envs.compiling.functions import called, compiled, inlined
from envs.compiling.instructions import prefetch, trailing_zeros
from envs.compiling.packed import Packed, address_of, call_simulator, compile_for

__all__ = [
    "Packed",
    "address_of",
    "cached",
    "call_simulator",
    "called",
    "can_keep",
    "compile_for",
    "compiled",
    "inlined",
    "is_at_hand",
    "is_kept",
    "prefetch",
    "trailing_zeros",
]
