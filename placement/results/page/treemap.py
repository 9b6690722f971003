"""A squarified treemap (Bruls, Huizing and van Wijk, 2000): rectangles with given areas, as square as they can be.

Letters: ``R`` rectangles.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def squarify(
    areas: NDArray[np.float64], *, left: float = 0.0, bottom: float = 0.0, width: float = 1.0, height: float = 1.0
) -> NDArray[np.float64]:
    """``float64[R, 4]``: left, bottom, right and top of rectangles that fill one, with areas in proportion to `areas`.

    Args:
        areas: ``float64[R]``, each more than 0.
        left: Of the rectangle that is filled.
        bottom: Of it.
        width: Of it.
        height: Of it.
    """
    made = np.zeros((len(areas), 4))
    if not len(areas):
        return made
    order = np.argsort(-areas, kind="stable")
    sizes = areas[order] / areas.sum() * width * height
    begin = 0
    while begin < len(order):
        side = min(width, height)
        end = begin + 1
        worst = _worst(sizes[begin:end], side)
        while end < len(order):
            wider = _worst(sizes[begin : end + 1], side)
            if wider > worst:
                break
            worst, end = wider, end + 1
        depth = float(sizes[begin:end].sum()) / side
        along = np.concatenate([[0.0], np.cumsum(sizes[begin:end])]) / depth
        for i, rectangle in enumerate(order[begin:end]):
            if width >= height:  # a column at the left
                made[rectangle] = (left, bottom + along[i], left + depth, bottom + along[i + 1])
            else:  # a row at the bottom
                made[rectangle] = (left + along[i], bottom, left + along[i + 1], bottom + depth)
        if width >= height:
            left, width = left + depth, max(width - depth, 1e-12)
        else:
            bottom, height = bottom + depth, max(height - depth, 1e-12)
        begin = end
    return made


def nested(
    areas: NDArray[np.float64], parent: NDArray[np.integer], *, width: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rectangles within the rectangles of their parents, in a rectangle of a height of 1.

    Args:
        areas: ``float64[R]``, each more than 0.
        parent: ``int[R]``, from 0 to the number of parents - 1, each with at least one child.
        width: Of the whole.

    Returns:
        The rectangles, ``float64[R, 4]``, and those of the parents.
    """
    outer = squarify(np.bincount(parent, areas).astype(np.float64), width=width)
    made = np.zeros((len(areas), 4))
    for number, (left, bottom, right, top) in enumerate(outer):
        inside = np.flatnonzero(parent == number)
        made[inside] = squarify(areas[inside], left=left, bottom=bottom, width=right - left, height=top - bottom)
    return made, outer


def _worst(sizes: NDArray[np.float64], side: float) -> float:
    """The worst ratio of sides in a row of rectangles along a side."""
    total = float(sizes.sum())
    depth = total / side
    lengths = sizes / depth
    return float(max((depth / lengths).max(), (lengths / depth).max()))
