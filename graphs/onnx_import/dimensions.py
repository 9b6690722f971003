"""Sizes for the dimensions that an ONNX file leaves open: what the user gives, names, and expressions of names.

A dimension has a name (``batch``), is an expression of names (``past_sequence_length + sequence_length``), or has
neither; the last is called by its tensor and position (``x.0``). Exporters also write -1 for a dimension that is open.
"""

from __future__ import annotations

import ast
import difflib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from math import ceil, floor
from typing import Any

from graphs.computation_graph import Shape
from graphs.errors import InputError, unknown_name
from graphs.onnx_import.values import Missing

_LONGEST_EXPRESSION = 400
_LARGEST = 2**53
"""Sizes beyond it are a mistake; it also bounds the work of an expression."""

_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: lambda a, b: a % b,
    ast.Pow: lambda a, b: Fraction(a**b) if 0 <= b <= 8 else Fraction(_LARGEST + 1),
}

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "floor": floor,
    "ceil": ceil,
    "ceiling": ceil,
    "max": max,
    "min": min,
    "mod": lambda a, b: a % b,
    "floordiv": lambda a, b: a // b,
    "inttruediv": lambda a, b: a / b,
}


class Sizes:
    """The sizes that the user gave, which of them are used, and which are missing.

    Args:
        given: By name of a dimension, ``tensor.position``, or the name of a tensor (a whole shape, or the one number in
            it).
        texts: The names and expressions of all dimensions of the file's inputs.
    """

    def __init__(self, given: Mapping[str, int | Sequence[int]], texts: Iterable[str]) -> None:
        self.given = dict(given)
        self.used: set[str] = set()
        self.known: dict[str, None] = {}
        """Keys that have been asked for, in order."""
        texts = list(texts)
        self._trees = {text: _parse(text) for text in texts}
        self._names = {text for text in texts if self._trees[text] is None}
        for text, tree in self._trees.items():
            # "batch-size" is a name, unless there are dimensions "batch" and "size".
            if tree is not None and "-" in text and " " not in text and not any(c in text for c in "+*/%()"):
                symbols = _symbols(tree)
                if text in given or not all(s in self._names or s in given for s in symbols):
                    self._trees[text] = None
                    self._names.add(text)

    def lookup(self, key: str) -> int | None:
        """The size that was given for a key."""
        self.known.setdefault(key)
        value = self.given.get(key)
        if value is None:
            return None
        self.used.add(key)
        if isinstance(value, int):
            return value
        raise InputError(f"'{key}' is one size; write {key}=8")

    def shape(self, name: str) -> Shape | None:
        """The whole shape that was given for a tensor."""
        value = self.given.get(name)
        if value is None or isinstance(value, int):
            return None
        self.used.add(name)
        return tuple(value)

    def number(self, name: str) -> int | None:
        """The one number that was given for a tensor that holds one."""
        return self.lookup(name)

    def named(self, text: str, where: str) -> tuple[int, list[Missing]]:
        """The size of a dimension that has a name or an expression: -1 where it is missing, with what is missing."""
        if text in self.given:
            return self._checked(text, self.lookup(text)), []
        tree = self._trees[text] if text in self._trees else _parse(text)
        if tree is None:
            return self._checked(text, self.lookup(text)), [Missing(text, f"dimension '{text}' of {where}")]
        sizes = {symbol: self.lookup(symbol) for symbol in _symbols(tree)}
        missing = [Missing(s, f"dimension '{s}' of {where}") for s, size in sizes.items() if size is None]
        if missing:
            return -1, missing
        size = _evaluate(tree, {symbol: Fraction(size or 0) for symbol, size in sizes.items()}, text)
        if size.denominator != 1 or size < 0:
            raise InputError(f"dimension '{text}' of {where} comes to {float(size):g}; it must be a whole number")
        return int(size), []

    def at(self, tensor: str, position: int) -> int:
        """The size that was given for a dimension without a name, -1 where none was."""
        key = f"{tensor}.{position}"
        return self._checked(key, self.lookup(key))

    def check_used(self) -> None:
        """Raise where a size was given for what the file does not have, or has fixed already."""
        for key in self.given:
            if key not in self.used:
                known = [name for name in self.known if name not in self.used or name in self.given]
                if not known:
                    raise InputError("all its dimensions are fixed already")
                raise unknown_name("dimension", key, known)

    def check_spelling(self, missing: Iterable[str]) -> None:
        """Raise where a size was given for a name that is almost one of those that are missing."""
        names = list(missing)
        for key in self.given:
            if key not in self.used and difflib.get_close_matches(key, names, n=1):
                raise unknown_name("dimension", key, names)

    @staticmethod
    def _checked(key: str, size: int | None) -> int:
        if size is None:
            return -1
        if size < 0 or size > _LARGEST:
            raise InputError(f"dimension '{key}' is set to {size}; it must be a whole number from 0 to {_LARGEST}")
        return size


def missing_error(path: str, missing: Iterable[Missing]) -> InputError:
    """The error that names all sizes that are missing and the option that gives them."""
    entries = {m.key: m for m in sorted(missing, key=lambda m: (m.key, m.what), reverse=True)}
    entries = dict(reversed(entries.items()))
    for entry in entries.values():
        if entry.error:
            return InputError(entry.what)
    option = f"{path}:{','.join(f'{m.key}={m.example}' for m in entries.values())}"
    option = shlex.quote(option) if any(c.isspace() for c in option) else option
    if len(entries) == 1:
        (only,) = entries.values()
        return InputError(f"{only.what} is not fixed; give it a size after the file's name, as in {option}")
    what = [m.what for m in entries.values()]
    return InputError(
        f"{len(entries)} sizes are not fixed ({'; '.join(what)}); give them after the file's name, as in {option}"
    )


def _parse(text: str) -> ast.expr | None:
    """The expression that a dimension's text is; None where it is a plain name."""
    if len(text) > _LONGEST_EXPRESSION or text.isidentifier():
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    return tree if _is_arithmetic(tree) and not isinstance(tree, ast.Name) else None


def _is_arithmetic(tree: ast.expr) -> bool:
    if isinstance(tree, ast.Constant):
        return type(tree.value) in (int, float)
    if isinstance(tree, ast.BinOp):
        return type(tree.op) in _OPERATORS and _is_arithmetic(tree.left) and _is_arithmetic(tree.right)
    if isinstance(tree, ast.UnaryOp):
        return isinstance(tree.op, ast.USub) and _is_arithmetic(tree.operand)
    if isinstance(tree, ast.Call):
        name = tree.func.id.lower() if isinstance(tree.func, ast.Name) else ""
        return name in _FUNCTIONS and bool(tree.args) and not tree.keywords and all(map(_is_arithmetic, tree.args))
    return isinstance(tree, ast.Name)


def _symbols(tree: ast.expr) -> list[str]:
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called]
    return list(dict.fromkeys(names))


def _evaluate(tree: ast.expr, sizes: Mapping[str, Fraction], text: str) -> Fraction:
    if isinstance(tree, ast.Constant):
        assert isinstance(tree.value, int | float)
        result = Fraction(tree.value)
    elif isinstance(tree, ast.Name):
        result = sizes[tree.id]
    elif isinstance(tree, ast.UnaryOp):
        result = -_evaluate(tree.operand, sizes, text)
    else:
        try:
            if isinstance(tree, ast.BinOp):
                left, right = _evaluate(tree.left, sizes, text), _evaluate(tree.right, sizes, text)
                result = _OPERATORS[type(tree.op)](left, right)
            else:
                assert isinstance(tree, ast.Call)
                assert isinstance(tree.func, ast.Name)
                arguments = [_evaluate(a, sizes, text) for a in tree.args]
                result = Fraction(_FUNCTIONS[tree.func.id.lower()](*arguments))
        except (ZeroDivisionError, TypeError) as error:
            raise InputError(f"dimension '{text}' cannot be computed from the sizes given; change them") from error
    if abs(result) > _LARGEST or result.denominator > _LARGEST:
        raise InputError(f"dimension '{text}' comes to a size that no memory holds; change the sizes given")
    return result
