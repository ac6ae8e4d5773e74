"""Tables of measurements that are no cases: kernels, and whole steps on one GPU; each row with what is predicted beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from rapid_dse.analysis.kernels import CARDS, COLLECTIVES, GPUS, error_table, precisions, predict_kernels, with_chips
from rapid_dse.analysis.layers_alone import is_layers, layer_errors, predict_layers, unpriced_layers
from rapid_dse.analysis.measured_collectives import predict_collectives
from rapid_dse.analysis.measured_energy import PREDICTED, energy_errors, is_inference_steps, is_loads, predict_energy, unpredicted
from rapid_dse.analysis.sample_steps import is_sample_steps, predict_samples, sample_errors, unpriced_samples
from rapid_dse.analysis.served_runs import is_served, predict_served, served_errors
from rapid_dse.analysis.steps import is_steps, predict_steps, step_errors, unpriced_steps
from rapid_dse.config.hardware import Hardware
from rapid_dse.device import FloatArray

SECONDS = "measured.time_s"
MEASURED = (SECONDS, "time_s", "time_ms_derived", "fwd_time_s", "bwd_time_s", "opt_time_s", "step_time_s", "energy_j")  # what is timed


@dataclass(frozen=True)
class Predicted:
    """A table with its predictions.

    Attributes:
        table: the table as it was, with ``predicted.<column>`` after each measured column that is predicted.
        errors: a line a kind; of predicted / measured − 1: ``n``, ``mape``, ``median``, ``p90`` (absolute), ``bias``; of kernels also the
            ``unpriced`` rows, and the ``mape`` that a roofline has; None where nothing is predicted.
        left_out: what is not predicted, and why, one line each.
    """

    table: pd.DataFrame
    errors: pd.DataFrame | None
    left_out: tuple[str, ...]


def chips_of(table: pd.DataFrame) -> set[str]:
    """Names of the chips that a table of kernels may need: what it names, and cards that it calls otherwise."""
    named = set(table["hw"].dropna().astype(str)) if "hw" in table else set()
    return named | set(CARDS.values()) | set(GPUS.values())


def predict_table(table: pd.DataFrame, chips: Mapping[str, Hardware], name: str) -> Predicted:
    """Predicts what can be predicted of a table of measurements, whichever it is.

    Raises:
        ValueError: a column that is missing, or holds what is none of its values.
    """
    if is_steps(table):
        return _steps(table)
    if is_sample_steps(table):
        return _samples(table)
    if is_served(table):
        return _served(table)
    if is_loads(table) or is_inference_steps(table):
        return _energies(table, chips)
    if is_layers(table):
        return _layers(table)
    if "kind" in table and (SECONDS in table or "time_ms_derived" in table):
        return _kernels(table, chips, name)
    measured = [column for column in MEASURED if column in table]
    return Predicted(table, None, (f"{', '.join(measured) or 'no measured column that is known'}: nothing here predicts such a table yet",))


def _steps(table: pd.DataFrame) -> Predicted:
    predicted, why = predict_steps(table), unpriced_steps(table)
    counts = why[why.ne("")].value_counts()
    left_out = [f"{count} rows: {reason}" for reason, count in counts.items()]
    return Predicted(_prediction_beside_measurement(table, predicted), step_errors(table, predicted), tuple(left_out))


def _layers(table: pd.DataFrame) -> Predicted:
    predicted, why = predict_layers(table), unpriced_layers(table)
    return Predicted(
        _prediction_beside_measurement(table, predicted),
        layer_errors(table, predicted),
        _counted(table["kind"] + " rows: " + why, why.ne("")),
    )


def _samples(table: pd.DataFrame) -> Predicted:
    predicted, why = predict_samples(table), unpriced_samples(table)
    said = "peaks of inference: what autocast caches and a library's workspace are not counted"
    return Predicted(
        _prediction_beside_measurement(table, predicted), sample_errors(table, predicted), (*_counted("rows: " + why, why.ne("")), said)
    )


def _served(table: pd.DataFrame) -> Predicted:
    predicted, why = predict_served(table)
    return Predicted(_prediction_beside_measurement(table, predicted), served_errors(table, predicted), tuple(why))


def _energies(table: pd.DataFrame, chips: Mapping[str, Hardware]) -> Predicted:
    """Energies of loads and of passes of whole models, and what a table of passes has of single layers."""
    predicted, why = predict_energy(table, chips), unpredicted(table)
    errors, said = energy_errors(table, predicted), "time_s: what was measured of it is what the energy is predicted with"
    if not is_layers(table):
        return Predicted(_prediction_beside_measurement(table, predicted), errors, (*_counted("rows: " + why, why.ne("")), said))
    of_layers, alone = predict_layers(table), unpriced_layers(table)
    both = of_layers.assign(**{PREDICTED: predicted[PREDICTED].fillna(of_layers[PREDICTED])})
    errors = pd.concat([pd.concat({"energy_j": errors}, names=["column"]).swaplevel(), layer_errors(table, of_layers)])
    return Predicted(_prediction_beside_measurement(table, both), errors, (*_counted("rows: " + alone, alone.ne("") & why.ne("")), said))


def _counted(reasons: pd.Series[str], where: pd.Series[bool]) -> tuple[str, ...]:
    """A line for each reason, with the number of rows that it holds for."""
    return tuple(f"{count} {reason}" for reason, count in reasons[where].value_counts().items())


def _kernels(table: pd.DataFrame, chips: Mapping[str, Hardware], name: str) -> Predicted:
    rows = with_chips(table, name)
    seconds, plain = (_seconds(rows, chips, model) for model in ("tiled", "roofline"))
    column, unit = (SECONDS, 1.0) if SECONDS in table else ("time_ms_derived", 1e3)
    predicted = pd.DataFrame({f"predicted.{column}": seconds * unit}, index=table.index)
    kinds = rows.assign(precision=precisions(rows).where(~rows["kind"].isin(COLLECTIVES), "–"))
    by = ("kind", "hw", "precision")
    errors = error_table(kinds, seconds, by).assign(roofline=error_table(kinds, plain, by)["mape"])
    none = errors[errors["n"] == 0].index.get_level_values("kind").unique()
    left_out = (f"nothing here prices yet: {', '.join(none)}",) if len(none) else ()
    return Predicted(_prediction_beside_measurement(table, predicted), errors[errors["n"] > 0], left_out)


def _seconds(rows: pd.DataFrame, chips: Mapping[str, Hardware], model: str) -> FloatArray:
    """What ``hw.operator_model=model`` predicts of kernels, and the network of collectives, (n,)."""
    chosen = {name: hw.model_copy(update={"operator_model": model}) for name, hw in chips.items()}
    networks = {name: hw.network for name, hw in chips.items()}
    return predict_kernels(rows, chosen, lambda part, _: predict_collectives(as_collectives(part), networks))


def as_collectives(rows: pd.DataFrame) -> pd.DataFrame:
    """LLMCompass's all-reduces of a GPT-3 layer are collectives of the kind that their name begins with."""
    named = rows["kind"].str.startswith("gpt3_layer_op:AllReduce")
    return rows.assign(kind=rows["kind"].where(~named, "all_reduce"))


def _prediction_beside_measurement(table: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """The table with each column of predictions right after the one that it predicts."""
    columns: dict[str, pd.Series[float]] = {}
    for name in map(str, table.columns):
        columns[name] = table[name]
        if f"predicted.{name}" in predicted:
            columns[f"predicted.{name}"] = predicted[f"predicted.{name}"]
    return pd.DataFrame(columns, index=table.index)
