"""Measured latencies of GEMMs, interpolated: a user's own table, or those that NVIDIA publishes in ``aiconfigurator-core``.

The times stand on a grid of the m, n and k that were measured, made monotone (noise lets a larger product look faster), and are
interpolated linearly in the logarithms. Cells of the grid that nobody measured are the tile model's, corrected by the nearest
measured cell. Beyond the largest m, n or k the time grows with the work, as at an asymptotic rate; below the smallest, a product
costs what the smallest measured one does (it could be padded). So the answer is non-decreasing in m, n and k everywhere.

A table is of the chip that it was measured on: overrides of ``hw.sms`` or ``hw.memory.bandwidth`` do not reach it. No table
holds attention backward or streaming kernels of training: those, and attention forward, are the tile model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rapid_dse.config import table_file
from rapid_dse.config.hardware import Hardware
from rapid_dse.device.contract import AttentionCall, AttentionShape, FloatArray, OperatorModel
from rapid_dse.device.roofline import ACCUMULATE_BYTES
from rapid_dse.device.tiled import Tiled

if TYPE_CHECKING:
    import pandas as pd  # at run time only where a table is read: every trial imports this module

DIMENSIONS = ("m", "n", "k")
MAX_CELLS = 2_000_000
DENSE = 0.1  # share of empty cells up to which neighbours tell an outlier
OUTLIER = 0.3  # of the logarithm, against the median of the 26 neighbours
# Where aiconfigurator-core keeps a chip, the framework whose runs are taken (random data, so the chip throttles as in training;
# vLLM's are of constants), and its names of precisions.
SYSTEMS = {
    "a100": "a100_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "gb200": "gb200",
    "l40s": "l40s",
}
FRAMEWORKS = ("trtllm", "sglang")
DTYPES = {"bfloat16": "bf16", "fp8": "fp8"}


@dataclass(frozen=True)
class Grid:
    """Seconds on a grid: ``axes`` are the increasing m, n, k; ``log_seconds`` (len(m), len(n), len(k)), non-decreasing in each."""

    axes: tuple[FloatArray, FloatArray, FloatArray]
    log_seconds: FloatArray

    def at(self, m: FloatArray, n: FloatArray, k: FloatArray) -> FloatArray:
        """Seconds at (m, n, k), each (s,)."""
        beyond = np.ones_like(m)
        lower: list[NDArray[np.intp]] = []
        weight: list[FloatArray] = []
        for axis, value in zip(self.axes, (m, n, k), strict=True):
            beyond = beyond * np.maximum(value / axis[-1], 1.0)
            inside = np.log(np.clip(value, axis[0], axis[-1]))
            index = np.clip(np.searchsorted(np.log(axis), inside, side="right") - 1, 0, max(len(axis) - 2, 0))
            upper = np.minimum(index + 1, len(axis) - 1)
            span = np.maximum(np.log(axis[upper]) - np.log(axis[index]), 1e-12)
            lower.append(index)
            weight.append(np.clip((inside - np.log(axis[index])) / span, 0, 1))
        total = np.zeros_like(m)
        for corner in np.ndindex(2, 2, 2):
            cell = tuple(np.minimum(low + bit, size - 1) for low, bit, size in zip(lower, corner, self.log_seconds.shape, strict=True))
            share = np.prod([w if bit else 1 - w for w, bit in zip(weight, corner, strict=True)], axis=0)
            total += share * self.log_seconds[cell]
        return np.asarray(np.exp(total) * beyond, dtype=np.float64)


class Measured(OperatorModel):
    """GEMMs from a table (``hw.measured_table``; null: aiconfigurator-core's of the chip), all else from the tile model."""

    def __init__(self, hw: Hardware) -> None:
        super().__init__(hw)
        self.tiled = Tiled(hw)
        table = user_table(hw.measured_table, hw.name) if hw.measured_table else published_table(hw.name)
        self._grids = {str(name): build_grid(rows, str(name), self.tiled) for name, rows in table.groupby("precision")}

    def elementwise(self, bytes_moved: ArrayLike) -> FloatArray:
        """As the tile model prices it."""
        return self.tiled.elementwise(bytes_moved)

    def _flash(self, shape: AttentionShape, call: AttentionCall) -> FloatArray:
        return self.tiled._flash(shape, call)

    def _gemm(self, m: FloatArray, n: FloatArray, k: FloatArray, batch: FloatArray, *, precision: str, accumulate: bool) -> FloatArray:
        # Tables hold no batched products: one of batch × m rows has the same FLOP and output.
        grid = self._grid(precision)
        rows = batch * m
        flat = grid.at(rows.ravel(), n.ravel(), k.ravel()).reshape(m.shape)
        if accumulate:
            rate = self.hw.memory.bandwidth * self.hw.efficiency.memory
            flat = flat + self.tiled.family.store_exposed * (ACCUMULATE_BYTES - 2) * rows * n / rate
        return np.asarray(np.maximum(flat, 2 * rows * n * k / self.hw.peak_flops(precision)), dtype=np.float64)

    def _grid(self, precision: str) -> Grid:
        for name in (precision, {"fp16": "bf16", "bf16": "fp16"}.get(precision, precision)):
            if name in self._grids:
                return self._grids[name]
        raise ValueError(f"workload.precision={precision}: the measured table of {self.hw.name} has {', '.join(self._grids)}")


def user_table(path: str, chip: str) -> pd.DataFrame:
    """A user's table (CSV or Parquet): columns ``m, n, k, precision, seconds``.

    Its columns are those of ``kernels.csv``: m, n, k and ``measured.time_s``; ``kind`` (gemm rows are taken), ``hw`` (the chip's
    rows) and ``precision`` (else bf16) where it has them.

    Raises:
        ValueError: the file is missing, lacks a column, has no row for the chip, or a value that is not positive.
    """
    import pandas as pd

    if not Path(path).is_file():
        raise ValueError(f"hw.measured_table={path}: no such file")
    raw = table_file.read_table(path)
    missing = [name for name in (*DIMENSIONS, "measured.time_s") if name not in raw]
    if missing:
        raise ValueError(f"hw.measured_table={path} lacks the columns {', '.join(missing)}")
    for column, value in (("kind", "gemm"), ("hw", chip)):
        if column in raw:
            raw = raw[raw[column] == value]
    precision = raw["precision"] if "precision" in raw else pd.Series("bf16", index=raw.index)
    precision = precision.astype(str).str.extract(r"(bf16|fp16|fp8|tf32|fp32)", expand=False).fillna("bf16")
    table = raw[list(DIMENSIONS)].assign(precision=precision, seconds=raw["measured.time_s"])
    values = table[[*DIMENSIONS, "seconds"]].to_numpy(dtype=float)
    if not len(table) or not bool(np.all(np.isfinite(values) & (values > 0))):
        raise ValueError(f"hw.measured_table={path}: {len(table)} GEMM rows of {chip}; allowed: at least one, all values above 0")
    return table


def published_table(chip: str) -> pd.DataFrame:
    """The GEMMs that aiconfigurator-core publishes of ``chip``: columns ``m, n, k, precision, seconds``.

    Raises:
        ValueError: the package is not installed, or holds no GEMMs of the chip.
    """
    import pandas as pd

    package = find_spec("aiconfigurator_core")  # its files are read, its code never runs
    if package is None or not package.submodule_search_locations:
        raise ValueError("hw.operator_model=measured needs a table: set hw.measured_table, or pip install rapid-dse[measured]")
    data = Path(package.submodule_search_locations[0]) / "systems" / "data" / SYSTEMS.get(chip, chip) / "gemm"
    for framework in FRAMEWORKS:
        files = sorted(data.glob(f"{framework}/*/gemm_perf.parquet"))
        if files:
            raw = pd.read_parquet(files[-1], columns=[*DIMENSIONS, "gemm_dtype", "latency"])
            raw = raw[raw["gemm_dtype"].isin(list(DTYPES))]
            return raw[list(DIMENSIONS)].assign(precision=raw["gemm_dtype"].map(DTYPES), seconds=raw["latency"] * 1e-3)
    raise ValueError(f"hw.operator_model=measured: aiconfigurator-core has no GEMMs of {chip}; allowed: {', '.join(SYSTEMS)}, or a table")


def build_grid(table: pd.DataFrame, precision: str, tiled: Tiled) -> Grid:
    """The grid of one precision's rows; cells without a row take the tile model's time × the nearest row's measured / predicted."""
    cells = table.groupby(list(DIMENSIONS), as_index=False)["seconds"].median()
    axes = [np.unique(cells[name].to_numpy(dtype=float)) for name in DIMENSIONS]
    shape = tuple(len(axis) for axis in axes)
    if np.prod(shape) > MAX_CELLS:
        raise ValueError(f"measured table: {shape} distinct m, n, k make {np.prod(shape)} cells; allowed: up to {MAX_CELLS}")
    place = tuple(np.searchsorted(axis, cells[name].to_numpy(dtype=float)) for axis, name in zip(axes, DIMENSIONS, strict=True))
    predicted = np.log(tiled.gemm(*np.meshgrid(*axes, indexing="ij"), precision=precision))
    ratio = np.full(shape, np.nan)
    ratio[place] = np.log(cells["seconds"].to_numpy(dtype=float)) - predicted[place]
    return Grid((axes[0], axes[1], axes[2]), _monotone(predicted + _without_outliers(_nearest(ratio, axes), np.isnan(ratio).mean())))


def _without_outliers(ratio: FloatArray, empty: float) -> FloatArray:
    """``ratio`` of a dense grid without the cells that are off the median of their neighbours.

    One run that was disturbed would raise, by monotony, every larger product. ``empty``: the share of cells nobody measured.
    """
    from scipy.ndimage import median_filter

    if empty > DENSE:
        return ratio
    middle = median_filter(ratio, size=3, mode="nearest")
    return np.where(np.abs(ratio - middle) > OUTLIER, middle, ratio)


def _nearest(ratio: FloatArray, axes: list[FloatArray]) -> FloatArray:
    """``ratio`` with its empty cells filled from the nearest one that is not, by distance in the logarithms."""
    from scipy.spatial import cKDTree  # only tables with gaps need it

    empty = np.isnan(ratio)
    if not empty.any():
        return ratio
    points = np.stack(np.meshgrid(*(np.log(axis) for axis in axes), indexing="ij"), axis=-1)
    _, index = cKDTree(points[~empty]).query(points[empty])
    filled = ratio.copy()
    filled[empty] = ratio[~empty][index]
    return filled


def _monotone(values: FloatArray) -> FloatArray:
    """The mean of the least non-decreasing array above ``values`` and the greatest below: non-decreasing along every axis."""
    above, below = values, values
    for axis in range(values.ndim):
        above = np.maximum.accumulate(above, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
    return np.asarray((above + below) / 2, dtype=np.float64)
