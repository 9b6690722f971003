"""numba's compiler, for this project's functions: with less that is done twice.

Functions that only compiled functions call are parts of their callers.

numba optimises every function together with all that it calls and makes machine code of it, even where its one caller
takes all of it in and does the same again. Nine levels of calls were nine times that work. A part is typed and lowered
as ever, and its code goes to its callers as it is; what is called from Python is optimised and made machine code, once,
with all its parts in it.

And what numba's typing finds out about an operator and the types of its operands is remembered: it tries dozens of
rules, one after the other, for every ``+``.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, Flags
from numba.core.compiler_machinery import LoweringPass, register_pass
from numba.core.typed_passes import AnnotateTypes


class _NoEnvironment:
    """In place of numba's code generator: a part never runs by itself, so it needs no link to Python's objects."""

    @staticmethod
    def set_env(name: str, environment: Any) -> None:
        """Leave it out."""


class _Part(JITCodeLibrary):  # type: ignore[misc, unused-ignore]
    """The code of a part."""

    @property
    def codegen(self) -> Any:
        return _NoEnvironment

    def get_pointer_to_function(self, name: str) -> int:
        """Null: there is no machine code."""
        self._ensure_finalized()
        return 0

    def _optimize_final_module(self) -> None:
        """Leave it to the callers."""

    def _finalize_final_module(self) -> None:
        """Make no machine code."""
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=False, analysis_only=True)
class _IntoPart(LoweringPass):  # type: ignore[misc, unused-ignore]
    """Let the next pass put the code into a part."""

    _name = "into_part"

    def __init__(self) -> None:
        LoweringPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        """Called by numba."""
        state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        return False


class _Typing:
    """numba's typing context, which remembers its answers about functions that are its own."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._answers: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def resolve_function_type(self, function: Any, arguments: Any, keywords: Any) -> Any:
        """Called by numba."""
        if keywords or isinstance(function, types.Dispatcher | types.BoundFunction):
            return self._context.resolve_function_type(function, arguments, keywords)
        key = function, tuple(arguments)
        answer = self._answers.get(key)
        if answer is None:
            answer = self._context.resolve_function_type(function, arguments, keywords)
            if answer is not None and all(kind.is_precise() for kind in arguments):
                self._answers[key] = answer
        return answer


_typing: dict[int, _Typing] = {}


_ANY = hash(Flags())


class _Options(Flags):  # type: ignore[misc, unused-ignore]
    """numba's options, compared by what is set; it compares all that could be, for every operator."""

    def __hash__(self) -> int:
        return _ANY  # numba's own goes by the names of the options alone, too, and takes a while

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Options):
            return bool(self._values == other._values)
        return bool(super().__eq__(other))


class WholeCompiler(CompilerBase):  # type: ignore[misc, unused-ignore]
    """For functions that are called from Python."""

    def __init__(
        self, typing: Any, target: Any, library: Any, arguments: Any, return_type: Any, flags: Any, names: Any
    ) -> None:
        super().__init__(typing, target, library, arguments, return_type, _Options(flags), names)
        self.state.typingctx = _typing.setdefault(id(typing), _Typing(typing))

    def define_pipelines(self) -> list[Any]:
        """Called by numba."""
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


class PartCompiler(WholeCompiler):
    """For functions that compiled functions call."""

    def define_pipelines(self) -> list[Any]:
        """Called by numba."""
        (passes,) = super().define_pipelines()
        passes.add_pass_after(_IntoPart, AnnotateTypes)
        passes.finalize()
        return [passes]
