"""A chip's constants from measured kernels: fitted to some rows, judged by the others.

A table has the columns of ``kernels.csv`` (``analysis/kernels.py``). What is fitted is what shows in single kernels: the clock that
products hold, the share of bandwidth that streams reach, L2's, the smallest kernel's time, and the rate of fp32 products. All else (how
many SMs, what they multiply a clock) is the data sheet's, or that of the chip that the fit starts from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rapid_dse.analysis.kernels import error_table, precisions, predict_kernels
from rapid_dse.config.hardware import Hardware
from rapid_dse.device import FloatArray
from rapid_dse.device.tiled import SMALLEST

SECONDS = "measured.time_s"
SHAPE = ("kind", "precision", "m", "n", "k", "batch", "seq_len", "context", "heads", "kv_heads", "head_dim", "causal", "impl", "layout")
STREAMS = ("add", "mul", "copy", "relu", "gelu", "cast_to_bf16")
FITTED_KINDS = ("gemm", "attention_fwd", "attention_bwd", *STREAMS)
TINY = 1e5  # bytes of a stream that takes as long as the smallest one
LOOSE = 0.1  # of the logarithm: errors above count less and less, so that a kernel that the model lacks does not bend a constant


@dataclass(frozen=True)
class Constant:
    """A constant that kernels show: its key below ``hw``, and the bounds of what is believed; ``of``: of rows in which precision."""

    key: str
    low: float
    high: float
    of: str | None = None


CONSTANTS = (
    Constant("efficiency.clock", 0.2, 1.0),
    Constant("efficiency.memory", 0.2, 3.0),  # above 1: the bandwidth of the chip that the fit starts from is too low
    Constant("efficiency.l2", 0.2, 1.0),
    Constant("kernel_latency", 2e-7, 5e-5),
    Constant("efficiency.vector", 0.2, 1.0, of="fp32"),
)
FULL = 0.95  # of a bandwidth: the most that streams reach


@dataclass(frozen=True)
class ChipFit:
    """A chip with constants fitted to measured kernels.

    Attributes:
        hardware: the chip.
        fitted: values of the fitted constants by key below ``hw``.
        errors: of rows that the fit had not seen, predicted by constants of the other half alone: a line a kind and precision.
        held_out: mean |predicted / measured − 1| over all of these rows; ``rows``: how many, ``unpriced``: that nothing here prices.
    """

    hardware: Hardware
    fitted: dict[str, float]
    errors: pd.DataFrame
    held_out: float
    rows: int
    unpriced: int


def fit_chip(base: Hardware, table: pd.DataFrame, seed: int = 0) -> ChipFit:
    """Constants from all rows, and the error that half of the shapes leave on the other half.

    Args:
        base: the chip that the fit starts from.
        table: measured kernels of the chip, with columns ``kind`` and ``measured.time_s``.

    Raises:
        ValueError: too few rows to fit and to judge.
    """
    rows = table[table[SECONDS].gt(0)].reset_index(drop=True)
    first, other = halves(rows, seed)
    if min(np.isin(rows.loc[part, "kind"], FITTED_KINDS).sum() for part in (first, other)) < 2 * len(CONSTANTS):
        raise ValueError(
            f"{len(rows)} measured kernels: too few to fit a chip to; needed: {4 * len(CONSTANTS)} of {', '.join(FITTED_KINDS)}"
        )
    judge, near = fitted_to(base, rows[first])
    unseen = rows[other]
    predicted = predict_chip(judge, unseen)
    hardware, values = fitted_to(base, rows, near)
    kinds = unseen.assign(precision=precisions(unseen))
    errors = error_table(kinds, predicted, ("kind", "precision"))
    error = np.abs(predicted / unseen[SECONDS].to_numpy(float) - 1)
    return ChipFit(
        hardware, values, errors[errors["n"] > 0], float(np.nanmean(error)), int((~np.isnan(error)).sum()), int(np.isnan(error).sum())
    )


def halves(rows: pd.DataFrame, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two halves of the table that share no shape: of each two shapes of a kind that follow each other in time, one each, by chance."""
    shape = rows.reindex(columns=list(SHAPE)).astype(object).fillna("").astype(str).agg("|".join, axis=1)
    rng, first = np.random.default_rng(seed), np.zeros(len(rows), bool)
    for _, part in rows.groupby("kind"):
        names = shape[part.index]
        distinct = part[SECONDS].groupby(names).median().sort_values(kind="stable").index.to_numpy()
        pairs = np.append(distinct, [None] * (len(distinct) % 2)).reshape(-1, 2)
        chosen = pairs[np.arange(len(pairs)), rng.integers(0, 2, len(pairs))]
        first[part.index] = names.isin([part for part in chosen if part is not None]).to_numpy()
    return first, ~first


def predict_chip(hw: Hardware, rows: pd.DataFrame) -> FloatArray:
    """Seconds of measured kernels on the chip, NaN where nothing here prices one, (n,)."""
    return predict_kernels(rows.assign(chip=hw.name, hw=hw.name), {hw.name: hw})


def fitted_to(base: Hardware, rows: pd.DataFrame, near: Mapping[str, float] | None = None) -> tuple[Hardware, dict[str, float]]:
    """The chip with the constants at which the rows' kernels come out best, and these constants; ``near``: constants to start from."""
    from scipy.optimize import least_squares

    known = rows[rows["kind"].isin(FITTED_KINDS)]
    known = known[~np.isnan(predict_chip(base, known))]
    told = set(precisions(known))
    smallest = _smallest(rows)
    if smallest is not None:
        base = base.model_copy(update={"kernel_latency": smallest / SMALLEST})
    constants = [constant for constant in CONSTANTS if constant.of is None or constant.of in told]
    constants = [constant for constant in constants if constant.key != "kernel_latency" or smallest is None]
    low, high = (np.log([getattr(constant, end) for constant in constants]) for end in ("low", "high"))
    measured = np.log(known[SECONDS].to_numpy(float))

    def off(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        log_errors: NDArray[np.float64] = np.log(predict_chip(_with(base, constants, np.exp(logs)), known)) - measured
        return log_errors

    start = np.log([(near or {}).get(constant.key, _value(base, constant.key)) for constant in constants])
    start, step = np.clip(start, low + 1e-6, high - 1e-6), [1e-3] * len(constants)
    solution = least_squares(
        off, start, bounds=(low, high), loss="soft_l1", f_scale=LOOSE, diff_step=step, ftol=1e-5, xtol=1e-4, max_nfev=20
    )
    values = dict(zip([constant.key for constant in constants], np.exp(solution.x).tolist(), strict=True))
    return _whole(
        _with(base, constants, np.exp(solution.x)), {**values, "kernel_latency": values.get("kernel_latency", base.kernel_latency)}
    )


def _smallest(rows: pd.DataFrame) -> float | None:
    """Median seconds of streams so small that they take what the smallest kernel does; None where there is none."""
    tiny = rows[rows["kind"].isin(STREAMS) & rows.get("bytes", pd.Series(np.nan, index=rows.index)).lt(TINY)]
    return float(tiny[SECONDS].median()) if len(tiny) else None


def _whole(hw: Hardware, values: dict[str, float]) -> tuple[Hardware, dict[str, float]]:
    """The chip with shares of bandwidth that are none above ``FULL``: what streams reach beyond it is bandwidth that the base lacks."""
    reached = values["efficiency.memory"]
    if reached <= FULL:
        return hw, values
    bandwidth = hw.memory.bandwidth * reached / FULL
    memory = hw.memory.model_copy(update={"bandwidth": bandwidth})
    efficiency = hw.efficiency.model_copy(update={"memory": FULL})
    whole = hw.model_copy(update={"memory": memory, "efficiency": efficiency})
    return whole, {**values, "efficiency.memory": FULL, "memory.bandwidth": bandwidth}


def _value(hw: Hardware, key: str) -> float:
    part, _, name = key.rpartition(".")
    value = getattr(getattr(hw, part) if part else hw, name)
    return float(hw.efficiency.tensor if value is None else value)


def _with(hw: Hardware, constants: Sequence[Constant], values: NDArray[np.float64]) -> Hardware:
    """The chip with other constants; unchecked, as a share of bandwidth may be above 1 on the way."""
    shares, plain = dict[str, float](), dict[str, float]()
    for constant, value in zip(constants, values.tolist(), strict=True):
        part, _, name = constant.key.rpartition(".")
        (shares if part else plain)[name] = value
    return hw.model_copy(update={**plain, "efficiency": hw.efficiency.model_copy(update=shares)})
