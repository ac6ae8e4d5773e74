"""Attention of which each token sees all others of its sample."""

from __future__ import annotations

from rapid_dse.config.model import Model
from rapid_dse.model.layers.attention import Attention


def unmasked(model: Model) -> Attention:
    """The attention of such a layer of a model."""
    return Attention(model, causal=False)


PART = unmasked
