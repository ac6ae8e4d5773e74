"""What models of each kind are made of: a new kind is an entry here and one in ``config/model_kinds.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rapid_dse.config.model import Model
from rapid_dse.config.model_kinds import ModelKindName
from rapid_dse.model.layers.embedding import Embedding
from rapid_dse.model.layers.end import End
from rapid_dse.model.layers.head import Head


@dataclass(frozen=True)
class ModelFamily:
    """What stands before the first and behind the last layer, told whether it is frozen, and the parts of a layer, counted from 0, by their
    names in the registry."""

    first: Callable[[Model, bool], End]
    layer: Callable[[Model, int], tuple[str, ...]]
    last: Callable[[Model, bool], End]


def _of_transformer(model: Model, layer: int) -> tuple[str, str]:
    mixer = "latent_attention" if model.kv_lora_rank else model.layer_type(layer)
    return mixer, "experts" if model.has_experts(layer) else "mlp"


def _of_vision(model: Model, layer: int) -> tuple[str, str]:
    return "bidirectional_attention", "mlp"


def _of_memory(model: Model, layer: int) -> tuple[str]:
    other = layer == 0 and model.input_size not in (None, model.hidden_size)
    return ("recurrent_input" if other else "recurrent",)


def _table(model: Model, frozen: bool) -> End:
    return Embedding(model, frozen) if model.vocab_size else End(model, frozen)


def _patches(model: Model, frozen: bool) -> End:
    from rapid_dse.model.layers.patches import Patches  # a model that has none needs no import of it, and so for the other ends

    return Patches(model, frozen)


def _classifier(model: Model, frozen: bool) -> End:
    from rapid_dse.model.layers.classifier import Classifier

    return Classifier(model, frozen)


def _output(model: Model, frozen: bool) -> End:
    from rapid_dse.model.layers.recurrent import OutputHead

    return OutputHead(model, frozen) if model.vocab_size else End(model, frozen)


def _of_product(model: Model, layer: int) -> tuple[str]:
    return ("matmul",)


FAMILIES: Mapping[ModelKindName, ModelFamily] = MappingProxyType(
    {
        "transformer": ModelFamily(Embedding, _of_transformer, Head),
        "vit": ModelFamily(_patches, _of_vision, _classifier),
        "lstm": ModelFamily(_table, _of_memory, _output),
        "gemm": ModelFamily(End, _of_product, End),
    }
)
