"""nanotron: its YAML (src/nanotron/config); ``parallelism.recompute_layer`` came after 0.4."""

from __future__ import annotations

from typing import Any

from rapid_dse.analysis.launch_files.field_table import ACCUMULATION, Entry, FieldsRead, LaunchedRun, NamedChoice, SameNumber, TwoWays
from rapid_dse.analysis.launch_files.file_forms import YAML
from rapid_dse.analysis.launch_files.framework import LaunchFramework
from rapid_dse.analysis.launch_files.megatron_core import Guarded

_M = "model.model_config."


def _write_mode(run: LaunchedRun) -> dict[str, Any]:
    return {"parallelism.tp_mode": "REDUCE_SCATTER" if run["parallel.sequence_parallel"] else "ALL_REDUCE"}


def _read_mode(fields: FieldsRead) -> dict[str, Any]:
    mode = str(fields.take("parallelism.tp_mode", default="ALL_REDUCE")).upper()
    return {"parallel.sequence_parallel": mode == "REDUCE_SCATTER" and fields.keys.get("parallel.tp", 1) > 1}


def _read_schedule(fields: FieldsRead) -> dict[str, Any]:
    engine = str(fields.take("parallelism.pp_engine", default="afab")).lower()
    return {"parallel.schedule": None if fields.keys.get("parallel.pp", 1) == 1 else "1f1b" if engine == "1f1b" else "gpipe"}


def _read_batch(fields: FieldsRead) -> dict[str, Any]:
    return {ACCUMULATION: fields.number("tokens.batch_accumulation_per_replica", default=1)}


def _write_async(run: LaunchedRun) -> dict[str, Any]:
    return {"parallelism.tp_linear_async_communication": bool(run["software.async_tp"])}


def _read_async(fields: FieldsRead) -> dict[str, Any]:
    overlaps = fields.flag("parallelism.tp_linear_async_communication")
    # its asynchronous linear layers exchange by gathers and reduce-scatters alone
    return (
        {"software.async_tp": overlaps and bool(fields.keys.get("parallel.sequence_parallel"))}
        if fields.keys.get("parallel.tp", 1) > 1
        else {}
    )


def _write_kind(run: LaunchedRun) -> dict[str, Any]:
    return {f"{_M}hidden_act": "silu", f"{_M}is_llama_config": True, f"{_M}max_position_embeddings": run["workload.seq_len"]}


def _read_kind(fields: FieldsRead) -> dict[str, Any]:
    for name in ("hidden_act", "is_llama_config", "max_position_embeddings"):
        fields.take(f"{_M}{name}")
    tied = fields.flag(f"{_M}tie_word_embeddings")
    heads = fields.keys.get("model.num_attention_heads")
    return {"model.tie_word_embeddings": tied, "model.num_key_value_heads": fields.number(f"{_M}num_key_value_heads", default=heads)}


def _write_kind_and_heads(run: LaunchedRun) -> dict[str, Any]:
    said = {f"{_M}num_key_value_heads": run["model.num_key_value_heads"], f"{_M}tie_word_embeddings": run["model.tie_word_embeddings"]}
    return said | _write_kind(run)


TABLE: tuple[Entry, ...] = (
    Guarded(
        (f"{_M}hidden_size", f"{_M}num_hidden_layers"),
        (
            SameNumber("model.hidden_size", f"{_M}hidden_size"),
            SameNumber("model.num_hidden_layers", f"{_M}num_hidden_layers"),
            SameNumber("model.num_attention_heads", f"{_M}num_attention_heads"),
            SameNumber("model.intermediate_size", f"{_M}intermediate_size"),
            SameNumber("model.vocab_size", f"{_M}vocab_size"),
            TwoWays(_write_kind_and_heads, _read_kind),
        ),
    ),
    SameNumber("parallel.dp", "parallelism.dp"),
    SameNumber("parallel.tp", "parallelism.tp", default=1),
    SameNumber("parallel.pp", "parallelism.pp", default=1),
    TwoWays(lambda _: {}, SameNumber("parallel.cp", "parallelism.context_parallel_size", default=1).read),
    SameNumber("parallel.ep", "parallelism.expert_parallel_size", default=1),
    TwoWays(_write_mode, _read_mode),
    TwoWays(lambda run: {"parallelism.pp_engine": "afab" if run["parallel.schedule"] == "gpipe" else "1f1b"}, _read_schedule),
    TwoWays(_write_async, _read_async),
    NamedChoice("parallel.recompute", "parallelism.recompute_layer", {"full": True}, default="none"),
    SameNumber("workload.seq_len", "tokens.sequence_length"),
    SameNumber("parallel.micro_batch_size", "tokens.micro_batch_size", default=1),
    TwoWays(lambda run: {"tokens.batch_accumulation_per_replica": run.micro_batches}, _read_batch),
    SameNumber("parallel.zero", "optimizer.zero_stage", default=0),
    NamedChoice("workload.precision", "model.dtype", {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}, default="bf16"),
)


NANOTRON = LaunchFramework(
    name="nanotron",
    title="nanotron",
    profiles=("nanotron",),
    form=YAML,
    table=TABLE,
    idle=(
        *(
            "general",
            "checkpoints",
            "data",
            "data_stages",
            "lighteval",
            "logging",
            "tokenizer",
            "profiler",
            "s3_upload",
            "model.init_method",
        ),
        *(
            "optimizer.learning_rate",
            "optimizer.adam",
            "optimizer.weight_decay",
            "optimizer.clip_grad",
            "optimizer.accumulate_grad",
            "optimizer.torch",
        ),
        *(
            "optimizer.optimizer_factory",
            "tokens.train_steps",
            "tokens.val",
            "tokens.limit",
            "parallelism.tp_recompute_allgather",
            "model.make_vocab",
        ),
        *(
            "model.model_config.bos",
            "model.model_config.eos",
            "model.model_config.pad",
            "model.model_config.initializer",
            "model.model_config.rms",
        ),
        *(
            "model.model_config.rope",
            "model.model_config.pretraining_tp",
            "model.model_config.use_cache",
            "model.ddp_bucket",
            "metrics_logging",
        ),
    ),
    elsewhere={"parallel.stage_layers": "its own split by cost alone", "model": "LlamaConfig has none of it"},
)
