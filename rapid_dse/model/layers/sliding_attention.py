"""Attention of which each query sees the ``sliding_window`` tokens before it."""

from __future__ import annotations

from rapid_dse.config.model import Model
from rapid_dse.model.layers.attention import Attention


def windowed(model: Model) -> Attention:
    """The attention of such a layer of a model."""
    return Attention(model, window=model.sliding_window)


PART = windowed
