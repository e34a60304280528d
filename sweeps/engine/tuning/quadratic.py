"""The minimum of a quadratic fitted to points, in plain Python: they are few, and have few coordinates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

_SINGULAR = 1e-12


def num_coefficients(dimensions: int) -> int:
    """Return how many a quadratic has, which is the fewest points that determine one."""
    return (dimensions + 1) * (dimensions + 2) // 2


def minimum(points: Sequence[Sequence[float]], values: Sequence[float]) -> list[float] | None:
    """Return where the quadratic that fits the values best, by least squares, is lowest.

    None where the points do not determine one, or it is not convex.
    """
    size = len(points[0])
    if len(points) < num_coefficients(size):
        return None
    pairs = list(itertools.combinations_with_replacement(range(size), 2))
    rows = [[1.0, *point, *(point[i] * point[j] for i, j in pairs)] for point in points]
    columns = list(zip(*rows, strict=True))
    fitted = _solved(
        [[_dot(one, other) for other in columns] for one in columns], [_dot(column, values) for column in columns]
    )
    if fitted is None:
        return None
    hessian = [[0.0] * size for _ in range(size)]
    for (i, j), coefficient in zip(pairs, fitted[1 + size :], strict=True):
        hessian[i][j] += coefficient
        hessian[j][i] += coefficient
    if not _is_positive_definite(hessian):
        return None
    return _solved(hessian, [-slope for slope in fitted[1 : 1 + size]])


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _solved(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float] | None:
    """The solution of a linear system by Gauss and Jordan; None where there is no single one."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(len(rows)):
        pivot = max(range(i, len(rows)), key=lambda row, i=i: abs(rows[row][i]))  # type: ignore[misc]
        rows[i], rows[pivot] = rows[pivot], rows[i]
        if abs(rows[i][i]) < _SINGULAR:
            return None
        for other in range(len(rows)):
            if other != i:
                factor = rows[other][i] / rows[i][i]
                rows[other] = [a - factor * b for a, b in zip(rows[other], rows[i], strict=True)]
    return [row[-1] / row[i] for i, row in enumerate(rows)]


def _is_positive_definite(matrix: Sequence[Sequence[float]]) -> bool:
    """Whether elimination without exchanges leaves nothing but positive pivots."""
    rows = [list(row) for row in matrix]
    for i, row in enumerate(rows):
        if row[i] <= _SINGULAR:
            return False
        for below in rows[i + 1 :]:
            factor = below[i] / row[i]
            below[:] = [a - factor * b for a, b in zip(below, row, strict=True)]
    return True
