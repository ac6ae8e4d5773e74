"""``rd.model``: what a model is, of a shipped option or of a file."""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any

from rapid_dse.analysis.model_card import ModelCard, card
from rapid_dse.api.keywords import given_of
from rapid_dse.sweep.space import single


def model(option: str | PathLike[str], /, **fields: Any) -> ModelCard:
    """Parameters, active parameters and KV bytes a token of a model.

    Args:
        option: a name (llama3_1_70b) or a file (./config.json).
        fields: fields of the model that are set, as ``num_hidden_layers=40``.

    Raises:
        ValueError: an unknown model or field, a kind of layer that is not modelled.
    """
    settings = {f"model.{name}": value for name, value in fields.items()}
    return card(single(given_of({"model": fspath(option), **settings}, {})).scenario.model)
