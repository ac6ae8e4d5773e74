"""Trials of every kind drawn at random: chips, models, frameworks, precisions, layouts; what laws of all rows are held to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from generated import ROOT, profile, scenario

from rapid_dse.config import Scenario
from rapid_dse.config.run import RECOMPUTE
from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.parallel.layouts import AUTO_SCHEDULE, KEYS, Layouts, broken_rules, resolved

CHIPS = sorted(path.stem for path in (ROOT / "conf" / "hw").glob("*.yaml"))
PRECISIONS = ("bf16", "fp16", "fp8", "tf32", "fp32")
SOFTWARE = sorted(path.stem for path in (ROOT / "conf" / "software").glob("*.yaml"))
NAMED = ("gpt3_175b", "llama2_13b", "llama3_1_405b", "llama3_1_8b", "mixtral_8x7b", "qwen3_30b_a3b")
DRAWN = 1500  # layouts a scenario, of which those that break no rule are kept, at most KEPT
KEPT = 250


def drawn(rows: int, seed: int) -> Iterator[tuple[Scenario, Layouts]]:
    """At least ``rows`` legal layouts, up to ``KEPT`` a scenario; each chip prices a step alone and, the next time, a whole run."""
    rng, left, tried = np.random.default_rng(seed), rows, 0
    while left > 0:
        tried += 1
        try:
            found = _scenario(rng, CHIPS[tried % len(CHIPS)], 1e13 if tried // len(CHIPS) % 2 else None)
        except ValueError:  # the chip lacks the precision
            continue
        layouts = _layouts(found, rng)
        legal = layouts.take(broken_rules(layouts, found)[0] < 0).take(slice(0, KEPT))
        left -= len(legal)
        if len(legal):
            yield found, legal


def _scenario(rng: np.random.Generator, chip: str, train_tokens: float | None) -> Scenario:
    model, changes = ("llama3_1_8b", _small(rng)) if rng.random() < 0.5 else (str(rng.choice(NAMED)), {})
    seq_len = int(rng.choice([128, 1024, 4096, 8192, 30720, 131072]))
    settings: dict[str, Any] = {
        "software": profile(str(rng.choice(SOFTWARE))),
        "workload__precision": str(rng.choice(PRECISIONS, p=[0.4, 0.1, 0.3, 0.1, 0.1])),
        "workload__seq_len": seq_len,
        "workload__train_tokens": train_tokens,
        "hw__operator_model": str(rng.choice(["roofline", "tiled"], p=[0.7, 0.3])),
    }
    layers = changes.get("model__num_hidden_layers", 0)
    if layers and rng.random() < 0.4:  # a split of the user's own
        cuts = np.sort(rng.integers(0, layers + 1, int(rng.choice([1, 2, 3, 4, 8])) - 1))
        settings["parallel__stage_layers"] = np.diff([0, *cuts, layers]).tolist()
    return scenario(chip, model, **settings, **changes)


def _small(rng: np.random.Generator) -> dict[str, Any]:
    """A model of a few layers, some of them with far more vocabulary than layers, some of experts."""
    heads = int(rng.choice([4, 8, 16, 24]))
    model = {
        "hidden_size": heads * int(rng.choice([8, 64, 128])),
        "num_hidden_layers": int(rng.integers(1, 41)),
        "num_attention_heads": heads,
        "num_key_value_heads": int(rng.choice([1, heads // 2, heads])),
        "head_dim": int(rng.choice([64, 128])),
        "intermediate_size": int(rng.choice([256, 1536, 8192])),
        "vocab_size": int(rng.choice([1, 1000, 32000, 256000, 1000000])),
        "tie_word_embeddings": bool(rng.integers(2)),
        "mlp_type": str(rng.choice(["gelu", "swiglu"])),
        "norm": str(rng.choice(["layernorm", "rmsnorm"])),
        "position_embedding": str(rng.choice(["rope", "learned"])),
        "linear_bias": bool(rng.integers(2)),
        "sliding_window": None if rng.random() < 0.7 else int(rng.choice([64, 2048])),
    }
    if rng.random() < 0.4:
        model |= {"num_experts": int(rng.choice([4, 16, 128])), "num_experts_per_tok": int(rng.choice([1, 2, 4]))}
        model |= {"moe_intermediate_size": int(rng.choice([256, 1536])), "n_shared_experts": int(rng.integers(3))}
    return {f"model__{key}": value for key, value in (model | _of_several_kinds(rng, model)).items()}


def _of_several_kinds(rng: np.random.Generator, model: dict[str, Any]) -> dict[str, Any]:
    """Some models have layers of more than one kind."""
    kinds: dict[str, Any] = {}
    if model["sliding_window"] and rng.random() < 0.5:
        kinds["layer_types"] = ["sliding_attention", *rng.choice(["full_attention", "sliding_attention"], 2).tolist()]
    if model.get("num_experts") and rng.random() < 0.5:
        layers = model["num_hidden_layers"]
        kinds["first_k_dense_replace"] = int(rng.integers(layers))
        kinds["interleave_moe_layer_step"] = 2 if layers >= kinds["first_k_dense_replace"] + 2 and rng.random() < 0.5 else 1
    return kinds


def _layouts(of: Scenario, rng: np.random.Generator) -> Layouts:
    """Layouts that come near to breaking no rule: GPUs and batches follow from the degrees."""
    own = of.parallel.stage_layers
    stages = [len(own)] if own else [1, 2, 3, 4, 7, 8, 16, 32, of.model.num_hidden_layers + 2]

    def column(values: Any) -> Any:
        return rng.choice(values, DRAWN)

    rows = {"tp": column([1, 2, 4, 8, 16]), "cp": column([1, 1, 1, 2, 4, 8]), "pp": column(stages), "dp": column([1, 2, 3, 8, 64, 256])}
    rows |= {"vpp": column([1, 1, 1, 2, 3, 8]), "micro_batch_size": column([1, 2, 8]), "zero": column(range(4))}
    experts = [d for d in (1, 2, 4, 8, 64) if (of.model.num_experts or 1) % d == 0]
    rows |= {"ep": column(experts), "recompute": column(range(len(RECOMPUTE))), "shard_group": column([0, 0, 0, 2, 8])}
    rows["sequence_parallel"] = column([False, True]) & (rows["tp"] > 1)
    plain = column([code for code, name in enumerate(SCHEDULES) if name not in ("none", "interleaved_1f1b")])
    rows["schedule"] = np.where((rows["pp"] == 1) | (rows["vpp"] > 1), AUTO_SCHEDULE, plain)
    rows["vpp"] = np.where(rows["pp"] == 1, 1, rows["vpp"])
    whole = (rows["vpp"] > 1) | np.isin(rows["schedule"], [SCHEDULES.index(name) for name in ("zero_bubble", "dualpipe_v")])
    micro_batches = np.where(whole, rows["pp"] * column([1, 2, 5]), column([1, 2, 7, 16, 33]))
    rows["global_batch_size"] = rows["dp"] * rows["micro_batch_size"] * micro_batches
    rows["etp"] = column([0, 0, 0, 1, 2])
    rows["num_gpus"] = rows["tp"] * rows["cp"] * rows["pp"] * rows["dp"]
    assert rows.keys() == KEYS.keys()
    return resolved(Layouts.of(rows))
