"""Arithmetic on columns: `batch_size * 2048`, `` `config.batch` * length ``, `log(perplexity)`. Nothing is executed."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_FUNCTIONS: dict[str, Callable[[Array], Array]] = {"log": np.log, "exp": np.exp}
_OPERATORS: dict[type[ast.operator], Callable[[Array, Array], Array]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}
_LONGEST = 300


class Expression:
    """+ - * / ( ) log exp over numbers and columns. Names with other signs than letters stand in backquotes."""

    def __init__(self, text: str) -> None:
        """Raises `ValueError` where `text` is not such an expression."""
        self.text = text
        self._names: dict[str, str] = {}
        if len(text) > _LONGEST:
            raise ValueError(f"longer than {_LONGEST} characters")
        code = re.sub(r"`([^`]+)`", self._placeholder, text).strip()
        try:
            self._tree = ast.parse(code, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError("not arithmetic on columns; put names with other signs in backquotes") from None
        self.columns = tuple(dict.fromkeys(self._checked(self._tree)))

    def _placeholder(self, found: re.Match[str]) -> str:
        name = f"_column_{len(self._names)}_"
        self._names[name] = found[1]
        return f" {name} "

    def _checked(self, node: ast.expr) -> list[str]:
        """The columns below `node`; anything but arithmetic raises `ValueError`."""
        match node:
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return [*self._checked(left), *self._checked(right)]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self._checked(operand)
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return []
            case ast.Name(id=name):
                return [self._names.get(name, name)]
            case ast.Call(func=ast.Name(id=name), args=[operand], keywords=[]) if name in _FUNCTIONS:
                return self._checked(operand)
        raise ValueError("only + - * / ( ) log and exp over columns and numbers are understood")

    def value(self, columns: Mapping[str, Array]) -> Array:
        """The expression for each row; not finite where it is not defined."""
        with np.errstate(all="ignore"):
            return np.asarray(self._value(self._tree, columns), dtype=float)

    def _value(self, node: ast.expr, columns: Mapping[str, Array]) -> Array:
        match node:
            case ast.BinOp(left=left, op=op, right=right):
                return _OPERATORS[type(op)](self._value(left, columns), self._value(right, columns))
            case ast.UnaryOp(operand=operand):
                return -self._value(operand, columns)
            case ast.Constant(value=int() | float() as value):
                return np.asarray(float(value))
            case ast.Name(id=name):
                return columns[self._names.get(name, name)]
            case ast.Call(func=ast.Name(id=name), args=[operand]):
                return _FUNCTIONS[name](self._value(operand, columns))
        raise AssertionError(node)
