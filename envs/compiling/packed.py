"""Named tuples of arrays for compiled functions, by address; and machine code, by address.

numba passes a tuple of arrays by value, seven words an array, and names and unpacks them all at every call. A `Packed`
tuple is one word. Compiled code reads ``work.devices`` like an attribute and gets the array; arrays are looked up when
they are named, so loops should begin by giving names to those that they use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import (
    NativeValue,
    intrinsic,
    lower_getattr_generic,
    models,
    register_model,
    typeof_impl,
    unbox,
)
from numba.np.arrayobj import get_itemsize, make_array, populate_array


class Part(NamedTuple):
    """Of a `Packed` tuple.

    Attributes:
        kind: numba's type.
        first: Its first word; of what is compiled in the number itself.
        is_constant: Whether it is compiled in.
    """

    kind: Any
    first: int
    is_constant: bool


class PackedType(types.Type):  # type: ignore[misc, unused-ignore]
    """numba's type of a `Packed` tuple.

    Attributes:
        parts: By name.
    """

    def __init__(self, title: str, parts: dict[str, Part]) -> None:
        self.parts = parts
        # All that tells two apart, in few letters: numba writes the name wherever the type occurs.
        digest = hashlib.sha256(repr((title, [(name, *map(str, part)) for name, part in parts.items()])).encode())
        super().__init__(name=f"Packed_{title}_{digest.hexdigest()[:24]}")


class Packed:
    """A named tuple of arrays and whole numbers that compiled functions take by address.

    In Python its parts are read as those of the tuple are. It keeps the arrays; whoever calls must keep it.

    Python's own whole numbers are compiled in: what is called with others is compiled for these, too, without what is
    only for others. NumPy's are read when the code runs.
    """

    def __init__(self, parts: Any) -> None:
        words: list[int] = []
        kinds: dict[str, Part] = {}
        for name, part in zip(parts._fields, parts, strict=True):
            if isinstance(part, int):
                kinds[name] = Part(types.intp, part, is_constant=True)
            elif isinstance(part, np.ndarray):
                kinds[name] = Part(numba.typeof(part), len(words), is_constant=False)
                words += [part.ctypes.data, *part.shape, *part.strides]
            elif isinstance(part, np.int64 | np.uint64):
                kinds[name] = Part(numba.typeof(part), len(words), is_constant=False)
                words.append(int(part))
            else:
                raise TypeError(f"'{name}' is of {type(part)}; only arrays and whole numbers of 64 bits can be packed")
        self.parts = parts
        self.kind = PackedType(type(parts).__name__, kinds)
        self._words = np.array(words, dtype=np.int64)
        self.address = self._words.ctypes.data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parts, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Packed, (self.parts,)  # addresses are this process's


@typeof_impl.register(Packed)
def _type_of_packed(packed: Packed, _context: Any) -> PackedType:
    return packed.kind


@register_model(PackedType)
class _PackedModel(models.OpaqueModel):  # type: ignore[misc, unused-ignore]
    """A pointer."""


@unbox(PackedType)
def _unbox_packed(kind: PackedType, packed: Any, given: Any) -> Any:
    number = given.pyapi.object_getattr_string(packed, "address")
    pointer = given.pyapi.long_as_voidptr(number)
    given.pyapi.decref(number)
    return NativeValue(pointer)


@infer_getattr
class _Parts(AttributeTemplate):  # type: ignore[misc, unused-ignore]
    """The types of the parts."""

    key = PackedType

    def generic_resolve(self, packed: PackedType, name: str) -> Any:  # type: ignore[override, unused-ignore]
        """Called by numba."""
        return packed.parts[name].kind if name in packed.parts else None


@lower_getattr_generic(PackedType)
def _read_part(context: Any, builder: Any, packed: PackedType, pointer: Any, name: str) -> Any:
    kind, first, is_constant = packed.parts[name]

    def word(at: int, llvm_type: Any) -> Any:
        words = builder.bitcast(pointer, llvm_type.as_pointer())
        value = builder.load(builder.gep(words, [context.get_constant(types.intp, first + at)]))
        value.set_metadata("invariant.load", builder.module.add_metadata([]))  # so it is read once
        return value

    if is_constant:
        return context.get_constant(kind, first)
    if not isinstance(kind, types.Array):
        return word(0, context.get_value_type(kind))
    array = make_array(kind)(context, builder)
    integer = context.get_value_type(types.intp)
    populate_array(
        array,
        data=word(0, array.data.type),
        shape=[word(1 + axis, integer) for axis in range(kind.ndim)],
        strides=[word(1 + kind.ndim + axis, integer) for axis in range(kind.ndim)],
        itemsize=context.get_constant(types.intp, get_itemsize(context, kind)),
        meminfo=None,
    )
    return array._getvalue()


def compile_for(function: Any, *arguments: Any) -> tuple[Any, ...]:
    """Compile a function, or take it from the cache, for arguments like these; return their types.

    Args:
        function: As `envs.compiling.compiled` made it.
        arguments: Examples.
    """
    kinds = tuple(numba.typeof(argument) for argument in arguments)
    function.compile(kinds)
    return kinds


def address_of(function: Any, *arguments: Any) -> int:
    """Where the machine code of a compiled function is, for arguments like these, as of `compile_for`."""
    kinds = compile_for(function, *arguments)
    made = function.overloads[kinds]
    address: int = made.library.get_pointer_to_function(made.fndesc.llvm_func_name)
    assert address, "numba has made machine code of it"
    return address


def _call_simulator(  # what numba is told
    typing_context: Any, address: Any, work: Any, placements: Any, limit_s: Any, step_time_s: Any, peak: Any
) -> Any:
    """Call a simulator's `simulate_many` by its address, as of `address_of`, and its `Packed` workspace by its own.

    Nothing checks that the other arguments are of the types that the address is for.
    """
    rest = placements, limit_s, step_time_s, peak
    given = types.voidptr, *rest

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.call_conv.get_function_type(types.none, given)
        function = builder.inttoptr(arguments[0], kind.as_pointer())
        pointer = builder.inttoptr(arguments[1], cgutils.voidptr_t)
        status, _ = context.call_conv.call_function(builder, function, types.none, given, [pointer, *arguments[2:]])
        with cgutils.if_unlikely(builder, status.is_error):
            context.call_conv.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, *rest), generate


call_simulator: Callable[..., None] = intrinsic(_call_simulator)
