"""Every kind of part that a layer can have, by name: a new one is a file beside this one, and a line here.

A layer has a mixer, in which tokens look at each other, and an MLP, in which each is by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from rapid_dse.config.model import Model
from rapid_dse.model.layers.attention import Attention
from rapid_dse.model.layers.experts import Experts
from rapid_dse.model.layers.latent_attention import LatentAttention
from rapid_dse.model.layers.mlp import Mlp
from rapid_dse.model.layers.part import Part

PARTS: Mapping[str, Callable[[Model], Part]] = MappingProxyType(
    {
        "full_attention": Attention,
        "sliding_attention": lambda model: Attention(model, window=model.sliding_window),
        "latent_attention": LatentAttention,
        "mlp": Mlp,
        "experts": Experts,
    }
)
