"""What kinds of models there are: the fields of the schema that each needs, and what it says of a run that others are told.

A new kind is an entry here, with the fields that it brings in ``model.py``, and a line in ``model/compositions.py`` for what it is made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from rapid_dse.config.effects import Only, Where

ModelKindName = Literal["transformer", "vit", "lstm", "gemm"]
LAYERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")


@dataclass(frozen=True)
class ModelKind:
    """Attributes:
    needs: fields that have no default for it.
    decodes: whether it generates token after token; else inference is one pass forward of a batch.
    sample: what a sequence of the workload is, in words.
    shared_by: parallelisms that divide it.
    streams: whether activations pass from layer to layer, which sequence parallelism shares.
    chained: whether each of its steps needs the last one, so that host and device wait for each other step by step.
    divided: fields that tp divides, beside heads and MLPs.
    looped: whether a framework's loop and an optimizer run around it.
    """

    needs: tuple[str, ...]
    decodes: bool
    sample: str
    shared_by: tuple[str, ...] = ("tp", "cp", "ep", "dp", "pp")
    streams: bool = True
    looped: bool = True
    chained: bool = False
    divided: tuple[str, ...] = ()


KINDS: dict[str, ModelKind] = {
    "transformer": ModelKind((*LAYERS, "vocab_size"), True, "sequence"),
    "vit": ModelKind((*LAYERS, "image_size", "patch_size"), False, "image"),
    "lstm": ModelKind(
        ("hidden_size", "num_hidden_layers"), False, "sequence", ("tp", "dp"), streams=False, chained=True, divided=("hidden_size",)
    ),
    "gemm": ModelKind(("m", "n", "k"), False, "row", ("tp", "dp"), streams=False, looped=False),
}
assert set(KINDS) == set(get_args(ModelKindName))


def of_kinds(*names: str) -> Only:
    """Metadata of a field that models of some kinds have, and that is refused in others."""
    return Only(Where("model.kind", names), refused=True)


ONE_PASS = tuple(name for name, kind in KINDS.items() if not kind.decodes)

# Of a field that serving, which has kernels and a host of its own (software.layer_latency, step_latency), does not read: training does, and
# inference of models that decode nothing, which is training's forward pass.
NOT_SERVED = Only(Where("workload.kind", ("training",)), Where("model.kind", ONE_PASS))
# Of a field that says how requests decode.
DECODED = Only(Where("model.kind", tuple(name for name, kind in KINDS.items() if kind.decodes)))
