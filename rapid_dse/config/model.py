"""What the schema knows of a model; fields carry the names of Hugging Face's config.json."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rapid_dse.config.effects import TRAINED, Only, Where
from rapid_dse.config.fields import WHOLE, Count, CountOrZero, Frozen, Layers
from rapid_dse.config.layer_names import LAYER_TYPES, MISSING_TYPES, LayerType
from rapid_dse.config.lora_names import HUGGING_FACE_MODULES, MEGATRON_MODULES
from rapid_dse.config.model_kinds import KINDS, ModelKind, ModelKindName, of_kinds

EXPERTS = Only(Where("model.num_experts"))
REQUESTS = Only(Where("workload.kind", ("inference",)))
BLOCK_SCALED_EXPERTS = 64  # a mixture of so many experts and more has fp8 weights scaled in blocks (DeepSeek-V3, Qwen3, MiniMax M2)
Predictions = Annotated[int, WHOLE, Field(ge=0, le=16)]
TEXT, LAYERED, VIT, GEMM = of_kinds("transformer"), of_kinds("transformer", "vit"), of_kinds("vit"), of_kinds("gemm")
LSTM, STACKED, TABLED = of_kinds("lstm"), of_kinds("transformer", "vit", "lstm"), of_kinds("transformer", "lstm")


class Model(Frozen):
    """A model of a kind of ``model_kinds.py``, with the fields that it needs.

    ``head_dim`` null is hidden_size / num_attention_heads; ``num_experts`` 0 is a dense model.

    ``layer_types`` are the kinds of attention of the first layers, in tables the text full_attention,sliding_attention, repeated over all
    layers; null: windows in all layers where ``sliding_window`` is set. Of a mixture of experts the first ``first_k_dense_replace`` layers
    are dense, and of all layers those have experts whose number, counted from 1, ``interleave_moe_layer_step`` divides.
    ``max_position_embeddings``: the longest sequence that it takes, tokens; a request's prompt and what it generates must fit; null: any.
    ``n_group`` groups of experts, of ``topk_group`` of which a token may have experts; null or 0: no groups.
    A vision transformer (kind vit; Dosovitskiy et al., arXiv 2010.11929) sees an image of ``image_size`` pixels a side in patches of
    ``patch_size`` a side, 3 channels, behind ``num_prefix_tokens`` learned tokens (the class token, registers); a product with
    ``num_classes`` columns reads one of its tokens, 0: none does. ``qkv_bias``: whether the projections to queries, keys and values have
    biases, where that is other than ``linear_bias`` and ``attention_bias`` say. ``layer_scale``: whether what each half of a layer gives is
    multiplied with a learned vector (Touvron et al., arXiv 2103.17239).

    A stack of long short-term memory (kind lstm): ``input_size`` is the width of what the first layer reads, null hidden_size;
    ``vocab_size`` 0: neither embedding nor head.

    One matrix product (kind gemm): C[m, n] = A[m, k] · B[k, n].
    """

    name: str  # the option that the model comes from
    kind: ModelKindName = "transformer"  # what it is made of
    hidden_size: Annotated[Count, STACKED] = 0  # width of the stream between layers
    num_hidden_layers: Annotated[Layers, STACKED] = 1  # layers
    num_attention_heads: Annotated[Count, LAYERED] = 0  # query heads
    num_key_value_heads: Annotated[Count, LAYERED] = 0  # heads of keys and values: fewer than query heads under grouped-query attention
    head_dim: Annotated[Count | None, LAYERED] = None
    intermediate_size: Annotated[Count, LAYERED] = 0  # inner width of a dense MLP
    vocab_size: Annotated[CountOrZero, TABLED] = 0  # rows of the embedding table
    tie_word_embeddings: Annotated[bool, TEXT] = False  # whether the head is the embedding table
    mlp_type: Annotated[Literal["gelu", "relu2", "swiglu", "geglu"], LAYERED] = (
        "swiglu"  # activation of the MLPs; swiglu and geglu have a gate
    )
    norm: Annotated[Literal["layernorm", "rmsnorm"], LAYERED] = "rmsnorm"  # kind of normalisation
    position_embedding: Annotated[Literal["rope", "learned"], LAYERED] = "rope"  # rotary, or a learned table
    # Largest value of both projections of a gated activation, to which experts cut them (GPT-OSS); null: none.
    swiglu_limit: Annotated[Annotated[float, Field(gt=0, le=1e6)] | None, EXPERTS, TRAINED] = None
    linear_bias: Annotated[bool, LAYERED] = False  # whether linear layers have a bias
    attention_bias: Annotated[bool, LAYERED] = False  # whether query, key and value have a bias, whatever linear_bias says
    qkv_bias: Annotated[bool | None, VIT] = None
    qk_norm: Annotated[bool, LAYERED] = False  # whether queries and keys are normalised
    layer_scale: Annotated[bool, VIT] = False
    # Whether its training drops out what attention and MLP give, and attention's weights; null: as the framework has it (software.dropout).
    dropout: Annotated[bool | None, LAYERED, TRAINED] = None
    sliding_window: Annotated[Count | None, TEXT] = None
    layer_types: Annotated[tuple[LayerType, ...] | None, TEXT] = None
    max_position_embeddings: Annotated[Count | None, REQUESTS, TEXT] = None
    num_experts: Annotated[CountOrZero, TEXT] = 0
    num_experts_per_tok: Annotated[CountOrZero, EXPERTS] = 0  # experts that a token is sent to
    moe_intermediate_size: Annotated[CountOrZero, EXPERTS] = 0  # inner width of an expert
    n_shared_experts: Annotated[CountOrZero, EXPERTS] = 0  # experts that every token passes
    num_nextn_predict_layers: Annotated[Predictions, of_kinds("transformer"), TRAINED] = 0  # layers that predict a token more each
    # Whether its fp8 weights have a scale for each block of 128 × 128 (DeepSeek-V3, Qwen3), not one for a whole tensor or row; null: where
    # it has 64 experts and more. Chips whose tensor cores take no such scales multiply them slower.
    fp8_block_scales: Annotated[bool | None, REQUESTS, Only(Where("workload.precision", ("fp8",))), TEXT] = None
    first_k_dense_replace: Annotated[CountOrZero, EXPERTS] = 0
    n_group: Annotated[CountOrZero | None, EXPERTS, TRAINED] = None
    topk_group: Annotated[CountOrZero | None, EXPERTS, TRAINED] = None
    interleave_moe_layer_step: Annotated[Count, EXPERTS] = 1
    q_lora_rank: CountOrZero | None = None  # latent attention: rank of queries; null: they are not compressed
    kv_lora_rank: Annotated[CountOrZero | None, TEXT] = None  # latent attention: rank of keys and values; null: attention is not latent
    qk_nope_head_dim: CountOrZero | None = None  # latent attention: width of a query head without positions
    qk_rope_head_dim: CountOrZero | None = None  # latent attention: width of the part with rotary positions
    v_head_dim: CountOrZero | None = None  # latent attention: width of a value head
    image_size: Annotated[Count | None, VIT] = None
    patch_size: Annotated[Count | None, VIT] = None
    num_prefix_tokens: Annotated[CountOrZero, VIT] = 1
    num_classes: Annotated[CountOrZero, VIT] = 1000
    input_size: Annotated[Count | None, LSTM] = None
    m: Annotated[Count | None, GEMM] = None  # of one product: rows of its output
    n: Annotated[Count | None, GEMM] = None  # of one product: columns of its output
    k: Annotated[Count | None, GEMM] = None  # of one product: the length that is summed over

    @field_validator("layer_types", mode="before")
    @classmethod
    def _listed(cls, kinds: Any) -> Any:
        names = [kind.strip() for kind in kinds.split(",")] if isinstance(kinds, str) else kinds
        for kind in names if isinstance(names, list | tuple) else ():
            if kind in MISSING_TYPES:
                raise ValueError(f"{kind} needs {MISSING_TYPES[kind]}, which is not modelled; allowed: {', '.join(LAYER_TYPES)}")
        return names

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Self:
        for name in self.of_kind.needs:
            if name not in self.model_fields_set or getattr(self, name) is None:
                raise ValueError(f"{name} is missing: a model of the kind {self.kind} needs it")
        if self.kind == "transformer" and self.vocab_size < 1:
            raise ValueError(f"vocab_size={self.vocab_size}: too small; expected at least 1")
        if self.vocab_size and self.input_size not in (None, self.hidden_size):
            raise ValueError(f"input_size={self.input_size}: a table of tokens is hidden_size={self.hidden_size} wide; allowed: null")
        if self.image_size and self.patch_size and self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is no multiple of patch_size={self.patch_size}")
        return self

    @model_validator(mode="after")
    def _layers_are_of_these_kinds(self) -> Self:
        if self.layer_types is not None:
            setting = f"layer_types={','.join(self.layer_types)}"
            if not self.layer_types:
                raise ValueError("layer_types=[]; allowed: null, or the kind of at least one layer")
            if self.kv_lora_rank:
                raise ValueError(f"{setting}: all layers have latent attention; allowed with kv_lora_rank: null")
            if "sliding_attention" in self.layer_types and not self.sliding_window:
                raise ValueError(f"{setting} needs sliding_window, in tokens")
            if self.sliding_window and "sliding_attention" not in self.layer_types:
                raise ValueError(
                    f"sliding_window={self.sliding_window} has no effect with {setting}; allowed: null, or some sliding_attention"
                )
        if self.num_experts and not any(map(self.has_experts, range(self.num_hidden_layers))):
            raise ValueError(
                f"first_k_dense_replace={self.first_k_dense_replace} and interleave_moe_layer_step={self.interleave_moe_layer_step} leave "
                f"none of num_hidden_layers={self.num_hidden_layers} to experts; allowed: num_experts=0, or less of them"
            )
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.num_key_value_heads and self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} does not divide num_attention_heads={self.num_attention_heads}"
            )
        if self.head_dim is None and self.num_attention_heads and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size}, and head_dim is null"
            )
        for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim") if self.kv_lora_rank else ():
            if not getattr(self, name):
                raise ValueError(f"{name} is missing: latent attention (kv_lora_rank={self.kv_lora_rank}) needs it, as 128")
        for name in ("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if getattr(self, name) and not self.kv_lora_rank:
                raise ValueError(f"{name}={getattr(self, name)} belongs to latent attention; allowed with kv_lora_rank alone, else null")
        if self.num_experts and not (self.num_experts_per_tok and self.moe_intermediate_size):
            raise ValueError(f"num_experts={self.num_experts} needs num_experts_per_tok and moe_intermediate_size, both at least 1")
        if self.num_experts and self.num_experts_per_tok > self.num_experts:
            raise ValueError(f"num_experts_per_tok={self.num_experts_per_tok} is above num_experts={self.num_experts}")
        return self

    @property
    def of_kind(self) -> ModelKind:
        """What its kind is."""
        return KINDS[self.kind]

    @property
    def patches(self) -> int:
        """Patches of an image; 0 where it sees none."""
        return (self.image_size // self.patch_size) ** 2 if self.image_size and self.patch_size else 0

    @property
    def sample_tokens(self) -> int | None:
        """Tokens of a sample, where the model itself says how many: patches and what stands before them; a row of a product."""
        if self.m is not None:
            return 1
        return self.patches + self.num_prefix_tokens if self.patches else None

    @property
    def mlp_widths(self) -> dict[str, int]:
        """Widths of the MLPs that its layers have, by key: of dense layers, of one routed expert.

        Shared experts are ``n_shared_experts`` times as wide as a routed one: what divides that width divides theirs.
        """
        widths = {}
        if self.intermediate_size and not all(map(self.has_experts, range(self.num_hidden_layers))):
            widths["intermediate_size"] = self.intermediate_size
        if self.num_experts:
            widths["moe_intermediate_size"] = self.moe_intermediate_size
        return widths

    @property
    def attention_head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def linear_modules(self) -> tuple[str, ...]:
        """The modules that low-rank adapters may stand beside: Hugging Face's, and Megatron Core's."""
        gate = ("gate_proj",) if self.mlp_type in ("swiglu", "geglu") else ()
        modules = {*gate, "o_proj", "up_proj", "down_proj", "linear_proj", "linear_fc1", "linear_fc2"}
        if not self.kv_lora_rank:
            modules |= {"q_proj", "k_proj", "v_proj", "linear_qkv"}
        else:
            modules |= {"kv_a_proj_with_mqa", "kv_b_proj", "linear_kv_down_proj", "linear_kv_up_proj"}
            narrow = {"q_a_proj", "q_b_proj", "linear_q_down_proj", "linear_q_up_proj"}
            modules |= narrow if self.q_lora_rank else {"q_proj", "linear_q_proj"}
        return tuple(name for name in (*HUGGING_FACE_MODULES, *MEGATRON_MODULES) if name in modules)

    @property
    def scaled_in_blocks(self) -> bool:
        """Whether its fp8 weights have scales of blocks."""
        return self.num_experts >= BLOCK_SCALED_EXPERTS if self.fp8_block_scales is None else self.fp8_block_scales

    def has_experts(self, layer: int) -> bool:
        """Whether a layer, counted from 0, has experts in place of an MLP."""
        return bool(self.num_experts) and layer >= self.first_k_dense_replace and (layer + 1) % self.interleave_moe_layer_step == 0

    def layer_type(self, layer: int) -> str:
        """What mixes tokens in a layer, counted from 0."""
        if self.layer_types is not None:
            return self.layer_types[layer % len(self.layer_types)]
        return "sliding_attention" if self.sliding_window else "full_attention"

    def drops_out(self, usual: bool) -> bool:
        """Whether kernels of dropout run with it; ``usual``: whether they do where a model does not say (``software.dropout``)."""
        return usual if self.dropout is None else self.dropout

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Tokens that a query of each layer sees at most; None: all."""
        if self.sliding_window is None:
            return (None,) * self.num_hidden_layers
        types = map(self.layer_type, range(self.num_hidden_layers))
        return tuple(self.sliding_window if kind == "sliding_attention" else None for kind in types)
