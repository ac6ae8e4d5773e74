"""The rows of a study as points of a picture: each pixel once for the browser, and which rows lie inside a drawn outline."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.analysis.report.svg_charts import Axis
from rapid_dse.analysis.report.svg_scales import LOGARITHMIC
from rapid_dse.explorer.study_shelf import LoadedStudy
from rapid_dse.sweep import ranking

Values = NDArray[np.float64]
ACROSS, UP = 1200, 800  # pixels on which rows of one kind are one point
KINDS = ("does not fit", "fits", "front")
MOST_CORNERS = 400


@dataclass(frozen=True)
class Plane:
    """Two columns of all rows, and whether their axes are logarithmic; what is not above 0 has no place on such an axis.

    Attributes:
        x, y: ``(n_rows,)``.
        finite: rows that have a place, ``(n_rows,)``.
    """

    names: tuple[str, str]
    x: Values
    y: Values
    logarithmic: tuple[bool, bool]
    finite: NDArray[np.bool_]

    def placed(self, rows: NDArray[np.int64]) -> tuple[Values, Values]:
        """Where rows lie between the lower and the upper end of each axis, 0 to 1."""
        return tuple(  # type: ignore[return-value]
            _between(values[rows], values[self.finite], log) for values, log in zip((self.x, self.y), self.logarithmic, strict=True)
        )


def plane_of(study: LoadedStudy, names: tuple[str, str]) -> Plane:
    """The plane of two columns: an axis is logarithmic where all its values are above 0 and far apart, whatever is filtered."""
    x, y = (study.column_of_numbers(name) for name in names)
    finite = np.isfinite(x) & np.isfinite(y)
    logs = (_far_apart(x[finite]), _far_apart(y[finite]))
    return Plane(names, x, y, logs, finite)


def _far_apart(values: Values) -> bool:
    return bool(len(values)) and float(values.min()) > 0 and float(values.max()) > LOGARITHMIC * float(values.min())


def _between(values: Values, among: Values, logarithmic: bool) -> Values:
    low, high = float(among.min()), float(among.max())
    if logarithmic:
        values, low, high = np.log(values), float(np.log(low)), float(np.log(high))
    placed: Values = (values - low) / ((high - low) or 1.0)
    return placed


def front_of_rows(study: LoadedStudy, plane: Plane, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the rows that fit and that none of them is better than in both columns; rates are best large."""
    rows = rows[study.column_of_numbers("fits")[rows] == 1]
    x, y = (-column if ranking.descending(name) else column for column, name in zip((plane.x, plane.y), plane.names, strict=True))
    rows = rows[np.lexsort((y[rows], x[rows]))]
    least = np.concatenate([[np.inf], np.minimum.accumulate(y[rows])[:-1]]) if len(rows) else np.zeros(0)
    return rows[y[rows] < least]


def points_of(study: LoadedStudy, plane: Plane, mask: NDArray[np.bool_], axes: Sequence[Axis]) -> bytes:
    """The rows of a mask for the browser: the length of a header, the header (JSON, ends on 4 bytes), x and y (float32), kinds (bytes).

    Of rows of one kind on one pixel one is sent. ``kind`` indexes ``KINDS``.
    """
    rows = np.flatnonzero(mask & plane.finite)
    kept, kind = _a_pixel_once(study, plane, rows)
    front = front_of_rows(study, plane, rows)
    kept, kind = np.concatenate([kept, front]), np.concatenate([kind, np.full(len(front), 2, np.uint8)])
    header = {
        "names": plane.names, "logarithmic": plane.logarithmic, "points": len(kept), "rows": len(rows),
        "ends": [_ends(column[plane.finite]) for column in (plane.x, plane.y)],
        "titles": [axis.title for axis in axes], "units": [axis.unit for axis in axes], "kinds": KINDS,
    }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    parts = [plane.x[kept].astype("<f4").tobytes(), plane.y[kept].astype("<f4").tobytes(), kind.tobytes()]
    return b"".join([struct.pack("<I", len(text)), text, *parts])


def _ends(values: Values) -> list[float]:
    return [float(values.min()), float(values.max())] if len(values) else [0.0, 1.0]


def _a_pixel_once(study: LoadedStudy, plane: Plane, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """A row for each pixel and kind that has any, and the kinds."""
    if not len(rows):
        return rows, np.zeros(0, np.uint8)
    across, up = plane.placed(rows)
    fits = (study.column_of_numbers("fits")[rows] == 1).astype(np.int64)
    pixel = (fits * UP + np.rint(up * (UP - 1)).astype(np.int64)) * ACROSS + np.rint(across * (ACROSS - 1)).astype(np.int64)
    of_pixel = np.full(2 * UP * ACROSS, -1, np.int64)
    of_pixel[pixel] = rows
    hit = np.flatnonzero(of_pixel >= 0)
    return of_pixel[hit], (hit // (UP * ACROSS)).astype(np.uint8)


def corners_of(text: str) -> Values:
    """The corners of an outline, ``(n_corners, 2)``, from ``x,y;x,y;x,y``.

    Raises:
        ValueError: where it is none.
    """
    try:
        corners = np.array([[float(part) for part in pair.split(",")] for pair in text.split(";")])
    except ValueError:
        corners = np.zeros(0)
    if corners.ndim != 2 or corners.shape[1] != 2 or not 3 <= len(corners) <= MOST_CORNERS or not np.isfinite(corners).all():
        raise ValueError(f"lasso={text[:40]!r}: no outline; allowed: 3 to {MOST_CORNERS} corners, as 1,2;3,4;5,2")
    return corners


def inside_outline(plane: Plane, corners: Values, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The rows of a mask that lie inside an outline whose edges are straight on the picture's axes, ``(n_rows,)``."""
    values, sides = [plane.x, plane.y], [corners[:, 0], corners[:, 1]]
    inside_shape = mask & plane.finite
    for at, side in enumerate(sides):
        inside_shape &= (values[at] >= side.min()) & (values[at] <= side.max())
    rows = np.flatnonzero(inside_shape)
    for at, log in enumerate(plane.logarithmic):
        values[at] = values[at][rows]
        if log:
            values[at], sides[at] = np.log(values[at]), np.log(np.maximum(sides[at], np.finfo(float).tiny))
    odd = np.zeros(len(rows), bool)
    for (x0, y0), (x1, y1) in zip(np.stack(sides, 1).tolist(), np.roll(np.stack(sides, 1), -1, 0).tolist(), strict=True):
        if y0 != y1:  # a ray to the right crosses an edge that the row's height lies between the ends of
            crosses = (values[1] < y0) != (values[1] < y1)
            odd ^= crosses & (values[0] < x0 + (values[1] - y0) * (x1 - x0) / (y1 - y0))
    inside = np.zeros(len(mask), bool)
    inside[rows[odd]] = True
    return inside


def nearest_row(plane: Plane, mask: NDArray[np.bool_], at: tuple[float, float]) -> int | None:
    """The row of a mask that lies nearest to a place of the picture; None where there is no row."""
    rows = np.flatnonzero(mask & plane.finite)
    if not len(rows):
        return None
    across, up = plane.placed(rows)
    spot = [float(_between(np.array([value]), values[plane.finite], log)[0])
            for value, values, log in zip(at, (plane.x, plane.y), plane.logarithmic, strict=True)]  # fmt: skip
    return int(rows[np.argmin(((across - spot[0]) * ACROSS) ** 2 + ((up - spot[1]) * UP) ** 2)])
