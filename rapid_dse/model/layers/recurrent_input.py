"""The first of several recurrent layers, whose input may be of another width."""

from __future__ import annotations

from rapid_dse.config.model import Model
from rapid_dse.model.layers.recurrent import Recurrent


def first(model: Model) -> Recurrent:
    """That layer of a model."""
    return Recurrent(model, model.input_size or model.hidden_size)


PART = first
