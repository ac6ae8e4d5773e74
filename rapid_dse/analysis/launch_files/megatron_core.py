"""What Megatron Core calls things: the part of the table that Megatron-LM's arguments and Megatron Bridge's recipes share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rapid_dse.analysis.launch_files.field_table import (
    ACCUMULATION,
    CHUNKS,
    INSTANCES,
    DropoutRates,
    Entry,
    FieldsRead,
    LaunchedRun,
    NamedChoice,
    SameNumber,
    SwitchFlag,
    TwoWays,
)
from rapid_dse.model.architecture import split_of

MOST_LAYERS = 1000  # of a model whose pipeline's layout is read
Spell = Callable[[str], str]  # a name of Megatron Core's as the file has it

_CONTEXT = {"ring": "p2p", "ulysses": "a2a"}  # cp_comm_type
_STRATEGIES = {2: "optim_grads", 3: "optim_grads_params"}  # of Megatron-FSDP, by ZeRO stage


@dataclass(frozen=True)
class Guarded(Entry):
    """Lines that say something only where the file has one of the fields ``names``: without a model it is left to the command line."""

    names: tuple[str, ...]
    entries: tuple[Entry, ...]

    def write(self, run: LaunchedRun) -> dict[str, Any]:
        return {name: value for entry in self.entries for name, value in entry.write(run).items()}

    def read(self, fields: FieldsRead) -> dict[str, Any]:
        if not any(name in fields.fields for name in self.names):
            return {}
        for entry in self.entries:
            fields.keys.update(entry.read(fields))
        return {}


def degrees(spell: Spell) -> tuple[Entry, ...]:
    """Batch, sequence and degrees."""
    return (
        SameNumber("parallel.tp", spell("tensor_model_parallel_size"), default=1),
        SameNumber("parallel.pp", spell("pipeline_model_parallel_size"), default=1),
        SameNumber("parallel.cp", spell("context_parallel_size"), default=1),
        SameNumber("parallel.ep", spell("expert_model_parallel_size"), default=1),
        TwoWays(lambda run: _write_expert_grid(run, spell), lambda fields: _read_expert_grid(fields, spell)),
        SwitchFlag("parallel.sequence_parallel", spell("sequence_parallel")),
        SameNumber("workload.seq_len", spell("seq_length")),
        SameNumber("workload.global_batch_size", spell("global_batch_size")),
        SameNumber("parallel.micro_batch_size", spell("micro_batch_size"), default=1),
        TwoWays(lambda run: _write_context(run, spell), lambda fields: _read_context(fields, spell)),
    )


def _write_context(run: LaunchedRun, spell: Spell) -> dict[str, Any]:
    return {spell("cp_comm_type"): _CONTEXT[run["parallel.cp_kind"]]} if run["parallel.cp"] > 1 else {}


def _read_context(fields: FieldsRead, spell: Spell) -> dict[str, Any]:
    """Ways of context parallelism; layers may each have their own, which are few words in a list."""
    word = fields.take(spell("cp_comm_type"))
    words = dict.fromkeys(word if isinstance(word, list) else str(word or "").split())
    kinds = [kind for kind, name in _CONTEXT.items() if list(words) == [name]]
    if words and not kinds:
        fields.notes.append(f"{spell('cp_comm_type')}={' '.join(words)}: taken as p2p")
    return {"parallel.cp_kind": kinds[0] if kinds else "ring"} if fields.keys.get("parallel.cp", 1) > 1 else {}


def _write_expert_grid(run: LaunchedRun, spell: Spell) -> dict[str, Any]:
    return {spell("expert_tensor_parallel_size"): int(run.layout.expert_tp[0])} if run["model.num_experts"] else {}


def _read_expert_grid(fields: FieldsRead, spell: Spell) -> dict[str, Any]:
    if not fields.keys.get("model.num_experts", 0):
        fields.take(spell("expert_tensor_parallel_size"))
        return {}
    return {"parallel.etp": fields.number(spell("expert_tensor_parallel_size"), default=fields.keys.get("parallel.tp", 1))}


def sharding(spell: Spell, strategy_default: str) -> tuple[Entry, ...]:
    """ZeRO, what shares its shards, and what hides its transfers; ``strategy_default`` is Megatron-FSDP's where the file does not say."""

    def write(run: LaunchedRun) -> dict[str, Any]:
        zero = run["parallel.zero"]
        said: dict[str, Any] = {spell("use_distributed_optimizer"): zero > 0}
        if zero > 1:
            said |= {spell("use_megatron_fsdp"): True, spell("data_parallel_sharding_strategy"): _STRATEGIES[zero]}
        if zero > 0 and run.shards < run.replicas:
            said[spell("num_distributed_optimizer_instances")] = run.replicas // run.shards
        of_copies = run["software.all_reduce_overlap"] if zero == 0 else None
        reduces = (run["software.dp_overlap"] if of_copies is None else of_copies) > 0
        said[spell("overlap_grad_reduce")] = reduces
        said[spell("overlap_param_gather")] = reduces and zero > 0 and _gathers(run)
        return said

    def read(fields: FieldsRead) -> dict[str, Any]:
        strategies = {"no_shard": 0, "optim": 1} | {word: stage for stage, word in _STRATEGIES.items()}
        zero = int(fields.flag(spell("use_distributed_optimizer")))
        strategy = fields.take(spell("data_parallel_sharding_strategy"), default=strategy_default)
        if fields.flag(spell("use_megatron_fsdp"), spell("use_custom_fsdp")):
            zero = strategies.get(strategy, 3)
        reshards = not fields.flag(spell("torch_fsdp2_no_reshard_after_forward"))
        if fields.flag(spell("use_torch_fsdp2")):
            zero = 3 if reshards else 2
        said: dict[str, Any] = {"parallel.zero": zero}
        instances = fields.number(spell("num_distributed_optimizer_instances"), default=1)
        if instances > 1:
            said[INSTANCES] = instances
        reduces, gathers = fields.flag(spell("overlap_grad_reduce")), fields.flag(spell("overlap_param_gather"))
        if not reduces and zero < 2:
            said["software.dp_overlap" if zero else "software.all_reduce_overlap"] = 0.0
        elif zero == 0:
            said["software.all_reduce_overlap"] = None  # as under other stages, whatever the profile takes to be usual
        if not gathers and zero == 1:
            said["software.parameter_gather_overlap"] = 0.0
        return said

    return (TwoWays(write, read),)


def _gathers(run: LaunchedRun) -> bool:
    return bool(run["software.parameter_gather_overlap"] > 0)


def model(spell: Spell) -> tuple[Entry, ...]:
    """The dimensions that both spell alike."""
    return (
        SameNumber("model.num_hidden_layers", spell("num_layers")),
        SameNumber("model.hidden_size", spell("hidden_size")),
        SameNumber("model.num_attention_heads", spell("num_attention_heads")),
        TwoWays(
            lambda run: {spell("kv_channels"): run["model.head_dim"]} if run["model.head_dim"] else {},
            lambda fields: {"model.head_dim": fields.number(spell("kv_channels"))},
        ),
        SameNumber("model.vocab_size", spell("vocab_size")),
        NamedChoice("model.norm", spell("normalization"), {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}, default="layernorm"),
        SwitchFlag("model.qk_norm", spell("qk_layernorm")),
        TwoWays(
            lambda run: _write_predictions(run, spell),
            lambda fields: {"model.num_nextn_predict_layers": fields.number(spell("mtp_num_layers"), default=0)},
        ),
        TwoWays(lambda run: _write_experts(run, spell), lambda fields: _read_experts(fields, spell)),
    )


def _write_predictions(run: LaunchedRun, spell: Spell) -> dict[str, Any]:
    ahead = run.count("model.num_nextn_predict_layers")
    return {spell("mtp_num_layers"): ahead} if ahead else {}


def _write_experts(run: LaunchedRun, spell: Spell) -> dict[str, Any]:
    if not run["model.num_experts"]:
        return {}
    said = {
        spell("num_experts"): run["model.num_experts"],
        spell("moe_router_topk"): run["model.num_experts_per_tok"],
        spell("moe_ffn_hidden_size"): run["model.moe_intermediate_size"],
        spell("moe_grouped_gemm"): True,
        spell("moe_token_dispatcher_type"): "alltoall",
    }
    if run["model.n_shared_experts"]:
        said[spell("moe_shared_expert_intermediate_size")] = run["model.n_shared_experts"] * run["model.moe_intermediate_size"]
    if run["model.first_k_dense_replace"]:
        dense, layers = run["model.first_k_dense_replace"], run["model.num_hidden_layers"]
        said[spell("moe_layer_freq")] = f"([0]*{dense}+[1]*{layers - dense})"
    return said


def _read_experts(fields: FieldsRead, spell: Spell) -> dict[str, Any]:
    experts = fields.number(spell("num_experts"), default=0)
    if not experts:
        return {"model.num_experts": 0}
    fields.take(spell("moe_grouped_gemm")), fields.take(spell("moe_token_dispatcher_type"))
    wide = fields.number(spell("moe_ffn_hidden_size"), default=fields.keys.get("model.intermediate_size"))
    shared = fields.number(spell("moe_shared_expert_intermediate_size"), default=0)
    pattern = re.fullmatch(r"\(?\[0\]\*(\d+)\s*\+\s*\[1\]\*(\d+)\)?", str(fields.take(spell("moe_layer_freq"), default="")))
    return {
        "model.num_experts": experts,
        "model.num_experts_per_tok": fields.number(spell("moe_router_topk"), default=2),
        "model.moe_intermediate_size": wide,
        "model.n_shared_experts": shared // wide if wide else 0,
        "model.first_k_dense_replace": int(pattern[1]) if pattern else 0,
    }


def latent_attention(spell: Spell) -> Entry:
    """Multi-head latent attention."""
    names = {
        "model.q_lora_rank": "q_lora_rank",
        "model.kv_lora_rank": "kv_lora_rank",
        "model.qk_nope_head_dim": "qk_head_dim",
        "model.qk_rope_head_dim": "qk_pos_emb_head_dim",
        "model.v_head_dim": "v_head_dim",
    }

    def write(run: LaunchedRun) -> dict[str, Any]:
        if not run["model.kv_lora_rank"]:
            return {}
        return {spell("multi_latent_attention"): True} | {spell(name): run[key] for key, name in names.items() if run[key]}

    def read(fields: FieldsRead) -> dict[str, Any]:
        if not fields.flag(spell("multi_latent_attention")):
            return {}
        return {key: fields.number(spell(name)) for key, name in names.items()}

    return TwoWays(write, read)


def dropout(spell: Spell, usual: float | None) -> Entry:
    """Rates of dropout; ``usual`` as of ``DropoutRates``."""
    return DropoutRates((spell("attention_dropout"), spell("hidden_dropout")), usual)


def stages(spell: Spell, virtual: str) -> Entry:
    """Chunks of stages, and how many layers each has; ``virtual`` is the field for the number of chunks."""
    ends = (spell("account_for_embedding_in_pipeline_split"), spell("account_for_loss_in_pipeline_split"))
    layout = spell("pipeline_model_parallel_layout")

    def write(run: LaunchedRun) -> dict[str, Any]:
        pp, vpp = run.count("parallel.pp"), run.count("parallel.vpp")
        if pp == 1:
            return {}
        counts = split_of(run.scenario).chunks(pp, vpp)
        chunks = [counts[at % pp][at // pp] for at in range(pp * vpp)]
        said: dict[str, Any] = {virtual: vpp} if vpp > 1 else {}
        if len(set(chunks)) == 1:
            return said
        if len({chunks[0] + 1, *chunks[1:-1], chunks[-1] + 1}) == 1:
            return said | dict.fromkeys(ends, True)
        return {layout: layout_text(chunks, run.count("model.num_nextn_predict_layers"))}

    def read(fields: FieldsRead) -> dict[str, Any]:
        pp, layers = fields.keys.get("parallel.pp", 1), fields.keys.get("model.num_hidden_layers")
        text = fields.take(layout)
        said: dict[str, Any] = {"parallel.vpp": fields.number(virtual, spell("virtual_pipeline_model_parallel_size"), default=1) or 1}
        counted = [fields.flag(name) for name in ends]
        layers_a_chunk = fields.number(spell("num_layers_per_virtual_pipeline_stage"))
        if layers_a_chunk and layers:
            said["parallel.vpp"] = max(1, (layers + sum(counted)) // (layers_a_chunk * pp))
        if text:
            return {CHUNKS: layout_counts(str(text))}
        if pp > 1 and layers and sum(counted) == 1 and (layers + 1) % (pp * said["parallel.vpp"]) == 0:
            chunks = [(layers + 1) // (pp * said["parallel.vpp"])] * (pp * said["parallel.vpp"])
            chunks[0 if counted[0] else -1] -= 1
            return {CHUNKS: chunks}
        return said | _ends_of(fields, spell, pp, layers)

    return TwoWays(write, read)


def _ends_of(fields: FieldsRead, spell: Spell, pp: int, layers: int | None) -> dict[str, Any]:
    """Layers of the first and the last stage where they are given, the others alike."""
    first = fields.number(spell("decoder_first_pipeline_num_layers"), spell("num_layers_in_first_pipeline_stage"))
    last = fields.number(spell("decoder_last_pipeline_num_layers"), spell("num_layers_in_last_pipeline_stage"))
    given = [count for count in (first, last) if count]
    if not given or not layers or pp < 2:
        return {}
    others = pp - len(given)
    inner, rest = divmod(layers - sum(given), others) if others else (0, layers - sum(given))
    if rest:
        fields.notes.append(f"{layers} layers do not come out with {given} in the first or last stage; taken as the framework's own split")
        return {}
    return {"parallel.stage_layers": [*([first] if first else []), *[inner] * others, *([last] if last else [])]}


def layout_text(chunks: Sequence[int], predictions: int = 0) -> str:
    """Layers of each chunk as Megatron's layout: E the embedding, t a layer, m one that predicts a further token, L the loss, | between
    chunks."""
    parts = [f"t*{count}" if count > 1 else "t" * count for count in chunks]
    return "|".join(["E" + parts[0], *parts[1:]]) + "m" * predictions + "L"


def layout_counts(text: str) -> list[int]:
    """Layers of each chunk of a layout: ``Et*3|(tt|)*29,m|L`` has 31 chunks."""
    flat = re.sub(r"\(([^()]*)\)\*(\d+)", _times, text.replace(",", "").replace(" ", ""))
    flat = re.sub(r"([EtmL])\*(\d+)", _times, flat)
    return [part.count("t") for part in flat.split("|")]


def _times(match: re.Match[str]) -> str:
    return match[1] * min(int(match[2]), MOST_LAYERS + 1)  # more are as wrong, and would take all memory


def finished(fields: FieldsRead) -> dict[str, Any]:
    """What follows from several keys once all are read: shard groups where the number of GPUs is known, sequence parallelism at tp 1."""
    keys = fields.keys
    said: dict[str, Any] = {} if "workload.global_batch_size" in keys else {ACCUMULATION: 1}
    if keys.get("parallel.tp") == 1:
        said["parallel.sequence_parallel"] = False
    if keys.get("parallel.pp") == 1:
        said["parallel.vpp"] = 1
    return said
