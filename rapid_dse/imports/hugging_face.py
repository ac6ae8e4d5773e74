"""Hugging Face's config.json as an option of ``model``: plain JSON, no transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from rapid_dse.config.fields import MOST_LAYERS
from rapid_dse.config.model import BLOCK_SCALED_EXPERTS, Model
from rapid_dse.config.units import shortened
from rapid_dse.imports.families import ALIASES, FAMILIES, FULL, PARALLEL, SLIDING, Family
from rapid_dse.imports.reader import Imported, Reader, Rules

TEXT_PARTS = ("text_config", "llm_config", "language_config")  # where models that see have their language model

# Fields of the schema, and the keys that families give them; the first that a file has counts.
FIELDS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "n_head_kv"),
    "head_dim": ("head_dim", "kv_channels"),
    "intermediate_size": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "tie_word_embeddings": ("tie_word_embeddings",),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "seq_length"),
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "experts_per_token", "top_k_experts"),
    "moe_intermediate_size": ("moe_intermediate_size",),
    "n_shared_experts": ("n_shared_experts",),
    "first_k_dense_replace": ("first_k_dense_replace",),
    "interleave_moe_layer_step": ("interleave_moe_layer_step", "decoder_sparse_step"),
    "num_nextn_predict_layers": ("num_nextn_predict_layers",),
    "n_group": ("n_group",),
    "topk_group": ("topk_group",),
    "q_lora_rank": ("q_lora_rank",),
    "kv_lora_rank": ("kv_lora_rank",),
    "qk_nope_head_dim": ("qk_nope_head_dim",),
    "qk_rope_head_dim": ("qk_rope_head_dim",),
    "v_head_dim": ("v_head_dim",),
    "attention_bias": ("attention_bias", "add_qkv_bias", "qkv_bias"),
    "linear_bias": ("bias", "use_bias"),
    "swiglu_limit": ("swiglu_limit",),
    "qk_norm": ("use_qk_norm",),
    "image_size": ("image_size",),
    "patch_size": ("patch_size",),
}
# Rates of dropout of attention's weights, and of what attention and MLP give.
DROPOUT = (
    *("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob"),
    *("hidden_dropout", "hidden_dropout_prob", "resid_pdrop", "residual_dropout"),
)
BESIDE = ("use_parallel_residual", "parallel_attn")  # attention and MLP run side by side
LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
EXPERTS = (
    *("num_experts_per_tok", "moe_intermediate_size", "n_shared_experts", "first_k_dense_replace"),
    *("interleave_moe_layer_step", "n_group", "topk_group"),
)

# Kinds that need a field, or a value of one, which the schema may not have yet: as soon as it has, they are taken.
KINDS = {
    "mlp_type": "an MLP of this kind",
    **dict.fromkeys(("num_prefix_tokens", "num_classes", "image_size", "patch_size"), "the layers of a vision transformer (image_size)"),
}


@dataclass(frozen=True)
class NotModelled:
    """A kind of layer that nothing here prices: ``key`` tells it where ``shows`` its value."""

    key: str
    kind: str
    shows: Callable[[Any], bool] = bool


def _above_one(value: Any) -> bool:
    return isinstance(value, int) and value > 1


def _of_other_kinds(value: Any) -> bool:
    return isinstance(value, list) and not set(map(str, value)) <= {FULL, SLIDING}


NOT_MODELLED = (
    NotModelled("layer_types", "linear or state-space attention (layer_types)", _of_other_kinds),
    NotModelled("linear_attn_config", "linear attention (linear_attn_config)"),
    NotModelled("hybrid_override_pattern", "state-space layers (hybrid_override_pattern)"),
    NotModelled("hybrid_layer_pattern", "layers with attention of several shapes (hybrid_layer_pattern)"),
    NotModelled("layers_block_type", "layers of several kinds (layers_block_type)"),
    NotModelled("block_configs", "layers that differ from each other (block_configs)"),
    NotModelled("attn_type_list", "linear attention (attn_type_list)", lambda kinds: isinstance(kinds, list) and 0 in kinds),
    NotModelled("index_topk", "sparse attention behind an indexer (index_topk)"),
    NotModelled("attention_chunk_size", "attention in chunks (attention_chunk_size)"),
    NotModelled("alibi", "positions by attention biases (alibi)"),
    NotModelled("moe_layer_freq", "dense layers between layers of experts (moe_layer_freq)", _above_one),
    NotModelled("num_kv_shared_layers", "layers that share keys and values (num_kv_shared_layers)"),
    NotModelled("attention_k_eq_v", "attention whose keys are its values (attention_k_eq_v)"),
    NotModelled("is_encoder_decoder", "encoder with decoder (is_encoder_decoder)"),
    NotModelled("add_cross_attention", "cross-attention (add_cross_attention)"),
)

_COSTS_NOTHING = "no cost depends on its value"
_TRANSFORMERS = "how transformers runs it"
LEFT: Rules = (
    (r"(.*_)?(token|bos|eos|pad|sep|mask|unk|decoder_start)(_token)?(_id|_ids|_index)", _COSTS_NOTHING),
    (r".*tokenizer.*|.*_token_(id|index)", _COSTS_NOTHING),
    (r"model_type|architectures|auto_map.*|transformers_version|_name_or_path|_commit_hash", "says what the file is"),
    (r"rope_.*|partial_rotary.*|rotary.*|.*rope.*|use_mrope", _COSTS_NOTHING),
    (r"_?sliding_window_pattern", "layer_types, or the family, says which layers have a window"),
    (r"max_position_embeddings|original_max_position.*|n_positions|n_ctx|seq_length", "model.max_position_embeddings says it"),
    (r"initial_context_length|max_length|min_length", "workload.seq_len says what is run"),
    (r".*dropout.*|.*_drop|.*_pdrop", "dropout beside that of attention and of its and the MLP's outputs is not priced"),
    (r"initializer.*|.*_eps|.*epsilon|.*_std|.*_multiplier|.*softcapping|query_pre_attn_scalar|.*_limit", _COSTS_NOTHING),
    (r"(torch_)?dtype|use_bfloat16|fp32_residual_connection", "workload.precision says what is run"),
    (r"(quantization|compression)_config.*", "workload.precision says what is run, not how the checkpoint is stored"),
    (r"use_cache|output_.*|return_.*|torchscript|.*cache_implementation|pretraining_tp|ep_size|tp_plan|chunk_size.*", _TRANSFORMERS),
    (r"norm_topk_prob|.*router.*|use_routing_bias|aux_loss.*|scoring_func|topk_method", _COSTS_NOTHING),
    (
        r"routed_scaling.*|seq_aux|clip_qkv|apply_residual_connection_post_layernorm|use_.*bias_correction|qk_norm_type|attn_type_list",
        _COSTS_NOTHING,
    ),
    (r"num_mtp.*|use_mtp|mtp_.*|.*nextn.*", "model.num_nextn_predict_layers says how many layers predict further tokens"),
    (r"mlp_bias|shared_intermediate_size|lm_head_bias", "true or above 0 it adds a few parameters, which are not counted"),
    (r"num_channels|encoder_stride|pooler.*", "model.patch_size says what a patch holds, of 3 channels"),
    (r"id2label.*|label2id.*|num_labels|problem_type|finetuning_task|task_specific_params.*", _COSTS_NOTHING),
    (r"hidden_act(ivation)?|activation_function|activation", "model.mlp_type follows from the family"),
    (r"(no_repeat|num_beam|num_return|repetition|length_pen|diversity|temperature|typical_p|do_sample).*", _TRANSFORMERS),
    (r"(early_stop|bad_words|begin_suppress|suppress|forced_|exponential_decay|encoder_no_repeat).*|top_[kp]", _TRANSFORMERS),
    (r"(remove_invalid|prefix|pruned_heads|tf_legacy|summary_|is_decoder|cross_attention|tie_encoder).*", _TRANSFORMERS),
    (r"(gradient_check|resid_|embd_|scale_attn|reorder_and).*", _TRANSFORMERS),
)


def read_config(tree: Mapping[str, Any], name: str, source: str) -> Imported:
    """A config.json as an option of ``model``.

    Args:
        tree: the file's content.
        name: of the model.
        source: the file, as messages name it.

    Raises:
        ValueError: one line: an unknown family, a kind of layer that is not modelled, a key that is missing or wrong.
    """
    config, remarks = _language_model(tree, source)
    kind = str(config.get("model_type") or tree.get("model_type"))
    kind = ALIASES.get(kind, kind)
    family = FAMILIES.get(kind)
    if family is None:
        _refuse_kinds(config, source, kind)
        raise ValueError(
            f"{source}: model_type={kind}: a family that is not known here; allowed: {', '.join(sorted(FAMILIES))}, "
            "or model=llama (gpt) with its dimensions as model.* keys"
        )
    _refuse_kinds(config, source, kind)
    _require_a_kind_each(config, source)
    defaults = {key: value for key, value in {**family.defaults, **_every_nth_full(config)}.items() if config.get(key) is None}
    reader = Reader({**config, **defaults}, source)
    fields = _fields(reader, family, kind)
    _require_schema(fields, source, kind)
    for key in {kind.key for kind in NOT_MODELLED} & config.keys() - reader.taken.keys():
        reader.leave(key, "the model has none of it")
    for key in BESIDE:
        reader.leave(key, "said beside the result where it is true")
    reader.leave_rest(LEFT)
    for key in family.defaults.keys() - config.keys():
        reader.taken.pop(key, None), reader.not_taken.pop(key, None)
    reader.remarks += [*remarks, *family.remarks, *_said(config)]
    return reader.imported("model", f"Hugging Face config.json ({kind})", {"name": name, **fields})


def _language_model(tree: Mapping[str, Any], source: str) -> tuple[Mapping[str, Any], list[str]]:
    """The part of the file that describes the language model; what is said of the other parts."""
    for part in TEXT_PARTS:
        inner = tree.get(part)
        if isinstance(inner, Mapping):
            shared = {key: value for key, value in tree.items() if key in ("tie_word_embeddings", "vocab_size") and key not in inner}
            others = sorted(key for key in tree if key.endswith("_config") and key not in (part, "quantization_config"))
            said = [f"the language model alone is priced, without {', '.join(others)}"] if others else []
            return {**shared, **inner}, said
    if not any(key in tree for key in FIELDS["hidden_size"]):
        raise ValueError(f"{source}: has no hidden_size; expected a Hugging Face config.json of a transformer")
    return tree, []


def _refuse_kinds(config: Mapping[str, Any], source: str, family: str) -> None:
    for kind in NOT_MODELLED:
        if kind.key in config and kind.shows(config[kind.key]):
            raise ValueError(f"{source}: {family} has {kind.kind}, a kind that is not modelled; allowed: a model without it")


def _require_a_kind_each(config: Mapping[str, Any], source: str) -> None:
    """Refuses ``layer_types`` that are no list of as many kinds as there are layers."""
    types, layers = config.get("layer_types"), config.get("num_hidden_layers")
    if types is not None and not isinstance(types, list):
        raise ValueError(f"{source}: layer_types={shortened(types)}; expected a list, a kind for each layer")
    if types is not None and isinstance(layers, int) and len(types) != layers:
        raise ValueError(f"{source}: layer_types has {len(types)} kinds and num_hidden_layers is {layers}; expected a kind for each layer")


def _every_nth_full(config: Mapping[str, Any]) -> dict[str, Any]:
    """``layer_types`` as Gemma's code makes them of ``sliding_window_pattern``: each layer of that many has no window."""
    every = config.get("sliding_window_pattern")
    if config.get("layer_types") is not None or not isinstance(every, int) or not 0 < every <= MOST_LAYERS:
        return {}
    return {"layer_types": [*[SLIDING] * (every - 1), FULL]}


def _fields(reader: Reader, family: Family, kind: str) -> dict[str, Any]:
    """Fields of the schema that differ from its defaults."""
    fields: dict[str, Any] = dict(family.fixed)
    for name, keys in FIELDS.items():
        key = next((key for key in keys if reader.get(key) is not None), None)
        if key is not None and (name not in ("image_size", "patch_size") or kind == "vit"):
            fields[name] = reader.take(key, f"model.{name}")
        for other in keys:
            if other != key and other in reader.tree and reader.get(other) in (None, fields.get(name)):
                reader.take(other, f"model.{name}")
    fields["dropout"] = max([_rate(reader, key) for key in DROPOUT if key in reader.tree], default=0.0) > 0
    _fill(fields, reader, kind)
    _windows(fields, reader)
    _block_scales(fields, reader)
    return {name: value for name, value in fields.items() if not _is_default(name, value)}


def _block_scales(fields: dict[str, Any], reader: Reader) -> None:
    """``fp8_block_scales`` of a checkpoint in fp8, where its experts do not tell it."""
    if reader.get("quantization_config.quant_method") != "fp8":
        return
    in_blocks = bool(reader.take("quantization_config.weight_block_size", "model.fp8_block_scales"))
    experts = fields.get("num_experts", 0)
    if in_blocks != (isinstance(experts, int) and experts >= BLOCK_SCALED_EXPERTS):
        fields["fp8_block_scales"] = in_blocks


def _rate(reader: Reader, key: str) -> float:
    """A rate of dropout; where transformers has its default, 0, null stands for it."""
    rate = reader.number(key, "model.dropout", 0.0)
    if not 0 <= rate <= 1:
        raise ValueError(f"{reader.name}: {key}={shortened(reader.get(key))}: expected a rate from 0 to 1")
    return rate


def _fill(fields: dict[str, Any], reader: Reader, kind: str) -> None:
    """What follows where a file does not say it in the schema's words."""
    vision = kind == "vit"
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", *(("image_size", "patch_size") if vision else ("vocab_size",))):
        if name not in fields:
            raise ValueError(f"{reader.name}: {' or '.join(FIELDS[name])} is missing")
    heads, hidden = fields["num_attention_heads"], fields["hidden_size"]
    if kind in ("falcon", "gpt_bigcode"):
        _falcon_heads(fields, reader)
    fields.setdefault("num_key_value_heads", heads)
    fields.setdefault("tie_word_embeddings", False)
    if "intermediate_size" not in fields and not (isinstance(hidden, int) and "moe_intermediate_size" in fields):
        fields["intermediate_size"] = 4 * hidden if isinstance(hidden, int) else None
    fields.setdefault("intermediate_size", fields.get("moe_intermediate_size"))
    if fields.get("num_experts"):
        fields.setdefault("moe_intermediate_size", fields["intermediate_size"])
        _shared_experts(fields, reader)
    else:
        for name in EXPERTS:
            fields.pop(name, None)
    if fields.get("kv_lora_rank"):
        fields.pop("head_dim", None)  # latent attention has its own
        fields["num_key_value_heads"] = heads
    else:
        for name in LATENT:
            fields.pop(name, None)
    if vision:
        fields["num_classes"] = len(reader.get("id2label", default={})) or reader.get("num_labels", "num_classes", default=1000)
    head = fields.get("head_dim")
    if isinstance(hidden, int) and isinstance(heads, int) and isinstance(head, int) and head * heads == hidden:
        fields.pop("head_dim")


def _falcon_heads(fields: dict[str, Any], reader: Reader) -> None:
    multi_query = bool(reader.take("multi_query", "model.num_key_value_heads", True))
    grouped = bool(reader.take("new_decoder_architecture", "model.num_key_value_heads", False))
    if multi_query and not grouped:
        fields["num_key_value_heads"] = 1
    elif not grouped:
        fields["num_key_value_heads"] = fields["num_attention_heads"]


def _shared_experts(fields: dict[str, Any], reader: Reader) -> None:
    """Qwen's shared expert is told by its width."""
    width = reader.take("shared_expert_intermediate_size", "model.n_shared_experts")
    expert_width = fields["moe_intermediate_size"]
    if width:
        if not isinstance(width, int) or not isinstance(expert_width, int) or width % expert_width:
            raise ValueError(
                f"{reader.name}: shared_expert_intermediate_size={shortened(width)} is no multiple of moe_intermediate_size="
                f"{shortened(expert_width)}, a kind that is not modelled; allowed: shared experts as wide as the routed ones"
            )
        fields["n_shared_experts"] = width // expert_width
    dense = reader.get("mlp_only_layers")
    if dense:
        numbers = isinstance(dense, list) and all(isinstance(layer, int) for layer in dense)
        first = len(dense) if numbers and sorted(dense) == list(range(len(dense))) else None
        if first is None:
            raise ValueError(f"{reader.name}: dense layers between layers of experts (mlp_only_layers) are a kind that is not modelled")
        fields["first_k_dense_replace"] = first
    for key in ("mlp_only_layers", "moe_layer_freq"):
        reader.take(key, "model.first_k_dense_replace")
    if fields.get("n_group") in (None, 0, 1):  # one group is none
        fields.pop("n_group", None), fields.pop("topk_group", None)


def _windows(fields: dict[str, Any], reader: Reader) -> None:
    """``sliding_window`` and ``layer_types``, where a window is shorter than the longest sequence."""
    window = reader.take("sliding_window", "model.sliding_window")
    reader.leave("sliding_window_size", "sliding_window says it")
    on, first = reader.take("use_sliding_window", "model.sliding_window", True), reader.get("max_window_layers")
    layers, types = fields["num_hidden_layers"], reader.take("layer_types", "model.layer_types")
    reader.take("max_window_layers", "model.layer_types")
    if _every_nth_full({**reader.tree, "layer_types": None}) == {"layer_types": types}:
        reader.take("sliding_window_pattern", "model.layer_types")
    longest = reader.get("max_position_embeddings")
    unlimited = isinstance(window, int) and isinstance(longest, int) and window >= longest
    if not window or not on or unlimited or not isinstance(layers, int) or not 0 < layers <= MOST_LAYERS:
        return  # of layers beyond their bounds the schema says what is wrong
    if types is None and isinstance(first, int):
        types = [FULL if layer < first else SLIDING for layer in range(layers)]
    pattern = _pattern([types[layer % len(types)] for layer in range(layers)]) if types else [SLIDING]
    if pattern == [FULL]:
        return
    fields["sliding_window"] = window
    if pattern != [SLIDING]:
        fields["layer_types"] = pattern


def _pattern(types: Sequence[str]) -> list[str]:
    """The shortest list that, repeated, gives the kinds of all layers: what is left before the longest part that both begins and ends
    them (the prefix function of Knuth, Morris and Pratt)."""
    borders = [0]
    for at in range(1, len(types)):
        border = borders[-1]
        while border and types[at] != types[border]:
            border = borders[border - 1]
        borders.append(border + (types[at] == types[border]))
    return list(types[: len(types) - borders[-1]])


def _is_default(name: str, value: Any) -> bool:
    info = Model.model_fields.get(name)
    known = info is not None and not info.is_required() and isinstance(value, bool) == isinstance(info.default, bool)
    return value is None or (known and info is not None and value == info.default)


def _require_schema(fields: Mapping[str, Any], source: str, family: str) -> None:
    """Refuses a kind whose field, or value of a field, the schema does not have."""
    for name, value in fields.items():
        info = Model.model_fields.get(name)
        allowed = get_args(info.annotation) if info is not None and isinstance(value, str) else ()
        if info is None or (allowed and value not in allowed):
            kind = KINDS.get(name, f"{name}={shortened(value)}") + (f" ({value})" if name == "mlp_type" else "")
            raise ValueError(f"{source}: {family} has {kind}, a kind that is not modelled; allowed: a model without it")


def _said(config: Mapping[str, Any]) -> list[str]:
    """Remarks on what a file asks for beside what is priced."""
    return [PARALLEL] if any(config.get(key) for key in BESIDE) else []
