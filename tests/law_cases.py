"""Trials of every kind of work on every backend, and what makes them faster or more work: what ``test_laws.py`` draws from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from layout_spread import EVENT_BACKENDS

from rapid_dse.config.scenario import Scenario, parse
from rapid_dse.events.backends import price
from rapid_dse.events.one_by_one import Watch
from rapid_dse.parallel.layouts import KEYS, Layouts, broken_rules
from rapid_dse.simulate.results import Priced
from rapid_dse.sweep.compose import Composed, composed, hydra_ready, with_values
from rapid_dse.sweep.space import Setting, base_codes, layouts_of

HYBRID, HIERARCHICAL, FLATTENED = EVENT_BACKENDS
BACKENDS = ("analytical", *EVENT_BACKENDS)
ROWS = 24  # layouts of a trial in closed form; one on the event engine
Values = dict[str, Any]


@cache
def _composed(options: tuple[tuple[str, str], ...]) -> Composed:
    with hydra_ready():
        return composed(dict(options))


@dataclass(frozen=True)
class Trial:
    """Layouts under one scenario.

    Attributes:
        kind: one of ``KINDS``.
        options: of each group; ``values`` of keys above what they compose to.
        layouts: legal ones.
    """

    kind: str
    options: tuple[tuple[str, str], ...]
    values: tuple[tuple[str, Any], ...]
    layouts: Layouts

    def __repr__(self) -> str:
        words = [f"{group}={option}" for group, option in self.options] + [f"{key}={value}" for key, value in self.values]
        return f"{self.kind}: {' '.join(words)}; {self.layouts}"

    def scenario(self, **changes: Any) -> Scenario:
        """With keys changed, ``__`` for dots."""
        return parse(
            with_values(_composed(self.options).tree, dict(self.values) | {key.replace("__", "."): v for key, v in changes.items()})
        )

    def with_values(self, values: Mapping[str, Any]) -> Trial:
        """The same layouts under other values."""
        return replace(self, values=tuple((dict(self.values) | values).items()))

    def with_columns(self, **columns: Any) -> Trial:
        """Layouts with other columns."""
        return replace(self, layouts=replace(self.layouts, **columns))

    def rows(self, rows: Any) -> Trial:
        """Some of the layouts."""
        return replace(self, layouts=self.layouts.take(np.asarray(rows)))

    def legal(self) -> np.ndarray:
        """Which layouts break no rule, ``(n,)``; none where the scenario itself does."""
        try:
            return broken_rules(self.layouts, self.scenario())[0] < 0
        except ValueError:
            return np.zeros(len(self.layouts), bool)

    def price(self, watch: Watch | None = None) -> Priced:
        return price(self.scenario(), self.layouts, watch)


TRAINING = {
    "text": [("h100", "llama", "megatron_lm"), ("a100", "gpt", "megatron_deepspeed"), ("b200", "llama", "torchtitan"),
             ("l40s", "llama", "llm_foundry"), ("h200", "gpt", "nemo"), ("mi300x", "llama", "deepspeed"),
             ("a100_pcie", "llama", "nanotron"),
             ("gb200", "llama", "megatron_lm"), ("v100", "gpt", "deepspeed")],
    "experts": [("h100", "qwen3_30b_a3b", "megatron_lm"), ("h200", "deepseek_v3", "nemo"), ("b200", "mixtral_8x7b", "torchtitan"),
                ("gb200", "gpt_oss_20b", "megatron_lm")],
}  # fmt: skip
SERVING = {
    "serving": [("h100", "llama3_1_8b", "vllm"), ("h200", "llama2_7b", "sglang"), ("a100", "llama3_1_8b", "tensorrt_llm"),
                ("b200", "llama3_1_8b", "nim")],
    "serving experts": [("h200", "deepseek_v3", "sglang"), ("h100", "qwen3_30b_a3b", "vllm"), ("b200", "gpt_oss_20b", "tensorrt_llm")],
    "pools": [("h100", "llama3_1_8b", "vllm"), ("h200", "qwen3_30b_a3b", "sglang")],
}  # fmt: skip
OTHERS = {
    "vision": [("h100", "vit_base", "pytorch"), ("h200", "vit_large", "megatron_lm"), ("a100", "vit_base", "torchtitan")],
    "recurrent": [("h200", "lstm", "pytorch"), ("h100", "lstm", "pytorch_compile")],
    "product": [("h100", "gemm", "pytorch"), ("b200", "gemm", "pytorch")],
}
KINDS = (*TRAINING, *SERVING, "vision", "recurrent", *(f"{name} forward" for name in OTHERS))
FEW = (1, 2, 3, 4, 5, 7, 8)


@st.composite
def trials(draw: Callable[..., Any], kind: str, backend: str) -> Trial:
    """Legal layouts of a kind of work, of primes and of powers of two; few and small ones on the event engine."""
    small, name = backend != "analytical", kind.removesuffix(" forward")
    hw, model, software = draw(st.sampled_from((TRAINING | SERVING | OTHERS)[name]))
    workload = "inference" if name in SERVING or kind.endswith("forward") else "training"
    options = (("hw", hw), ("model", model), ("software", software), ("workload", workload))
    values: Values = {"software.enforce": False, "backend.name": backend}
    if small:
        values["backend.network"] = draw(st.sampled_from(["ideal", "fair"]))
    values |= draw(_MODELS[name](model, small))
    columns: dict[str, list[Any] | None] = {"num_gpus": [draw(st.sampled_from(FEW if small else (*FEW, 12, 16, 31, 64, 104)))]}
    if workload == "training":
        columns |= {"tp": None, "global_batch_size": [values["model.m"]]} if name == "product" else draw(_steps(small))
        values |= draw(_settings(name))
    else:
        columns |= draw(_loads(name))
        values |= {"model.max_position_embeddings": None} | draw(_lengths(small)) if name in SERVING else {}
    base = Trial(kind, options, tuple(values.items()), Layouts.of({name: [] for name in KEYS}))
    try:
        scenario = base.scenario()
        found, rule, _, _ = layouts_of(Setting(scenario, None, {}, {}), _own(scenario, columns))
    except ValueError:
        assume(False)
        raise
    found = _runnable(scenario, found.take(rule < 0), backend)
    assume(len(found) > 0)
    picked = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).permutation(len(found))[: 1 if small else ROWS]
    return replace(base, layouts=found.take(picked))


def _own(scenario: Scenario, columns: dict[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in columns.items() if name in base_codes(scenario)}


def _runnable(scenario: Scenario, layouts: Layouts, backend: str) -> Layouts:
    """Hierarchical needs a network dimension of just tp and cp where there are such groups."""
    if backend != HIERARCHICAL or (scenario.workload.kind == "inference" and scenario.model.of_kind.decodes):
        return layouts
    block, first = layouts.tp * layouts.cp, scenario.hw.network.dimensions[0].size or 0
    return layouts.take((block == 1) | (block == np.minimum(first, layouts.num_gpus)))


def _text(model: str, small: bool) -> st.SearchStrategy[Values]:
    heads = st.sampled_from([4, 7, 8, 12, 31])
    return st.builds(
        lambda heads, shared, size, layers, wide, vocab, tied, window: {
            "model.num_attention_heads": heads,
            "model.num_key_value_heads": heads if shared is None else shared,
            "model.hidden_size": heads * size,
            "model.head_dim": size,
            "model.num_hidden_layers": layers,
            "model.intermediate_size": heads * wide,
            "model.vocab_size": vocab,
            "model.tie_word_embeddings": tied,
            "model.sliding_window": window,
        },
        heads, st.sampled_from([None, None, 1]), st.sampled_from([64, 128]),
        st.sampled_from([1, 2, 3, 5] if small else [1, 2, 3, 5, 8, 13, 24]), st.sampled_from([128, 512]),
        st.sampled_from([1000, 50257, 128256]), st.booleans(), st.sampled_from([None, None, 256]),
    )  # fmt: skip


def _routed(model: str, small: bool) -> st.SearchStrategy[Values]:
    layers = st.sampled_from([2, 3, 5] if small else [2, 3, 5, 8, 13])
    experts = st.sampled_from([8, 16])
    return st.builds(
        lambda layers, experts, first: {"model.num_hidden_layers": layers, "model.num_experts": experts, "model.num_experts_per_tok": 2}
        | ({"model.first_k_dense_replace": first} if model == "deepseek_v3" else {}),
        layers, experts, st.sampled_from([0, 1]),
    )  # fmt: skip


def _served(model: str, small: bool) -> st.SearchStrategy[Values]:
    if model in ("llama3_1_8b", "llama2_7b"):
        return st.sampled_from([1, 2, 5, 7, 13, 32][: 4 if small else 6]).map(lambda layers: {"model.num_hidden_layers": layers})
    return _routed(model, small)


def _vision(model: str, small: bool) -> st.SearchStrategy[Values]:
    return st.sampled_from([1, 2, 3, 7] if small else [1, 2, 7, 12]).map(lambda layers: {"model.num_hidden_layers": layers})


def _recurrent(model: str, small: bool) -> st.SearchStrategy[Values]:
    return st.builds(
        lambda hidden, layers, vocab, steps: {
            "model.hidden_size": hidden, "model.num_hidden_layers": layers, "model.vocab_size": vocab, "workload.seq_len": steps},
        st.sampled_from([128, 420, 1024, 2048]), st.sampled_from([1, 2, 3]), st.sampled_from([0, 32000]), st.sampled_from([1, 7, 256]),
    )  # fmt: skip


def _product(model: str, small: bool) -> st.SearchStrategy[Values]:
    size = st.sampled_from([420, 1024, 4096, 8 * 1024 * 3])
    return st.builds(
        lambda m, n, k, way: {"model.m": m, "model.n": n, "model.k": k, "parallel.gemm_sharding": way},
        size, size, size, st.sampled_from(["row", "column", "2d"]),
    )  # fmt: skip


_MODELS: dict[str, Callable[[str, bool], st.SearchStrategy[Values]]] = {
    "text": _text, "experts": _routed, "serving": _served, "serving experts": _served, "pools": _served,
    "vision": _vision, "recurrent": _recurrent, "product": _product,
}  # fmt: skip


def _steps(small: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Columns of training: None is every legal value."""
    batch = st.sampled_from([2, 6, 8, 14] if small else [8, 24, 64, 93, 208])
    each = {"tp": None, "cp": None, "pp": None, "ep": None, "vpp": None, "zero": None, "sequence_parallel": None, "recompute": None}
    each |= {"schedule": None, "micro_batch_size": None}
    return batch.map(lambda size: each | {"global_batch_size": [size]})


def _settings(name: str) -> st.SearchStrategy[Values]:
    """What a framework, a chip and a cluster may do beside their usual ways."""
    lengths = {} if name in ("vision", "recurrent", "product") else {"workload.seq_len": st.sampled_from([128, 1024, 4096])}
    return st.fixed_dictionaries(
        lengths,
        optional={
            "hw.operator_model": st.sampled_from(["roofline", "tiled"]),
            "software.host_layer": st.sampled_from([0.0, 1e-4, 5e-3]),
            "software.launch_norm": st.sampled_from([None, 2.0, 5.0]),
            "software.cuda_graphs": st.just("full_iteration"),
        }
        | ({"software.dp_overlap": st.sampled_from([0.0, 0.5, 1.0]), "cluster.trees": st.booleans()} if name != "product" else {}),
    )


def _lengths(small: bool) -> st.SearchStrategy[Values]:
    return st.fixed_dictionaries(
        {"workload.prompt_len": st.sampled_from([1, 97, 1000, 4096, 20000]), "workload.decode_len": st.sampled_from([1, 2, 127, 1024])},
        optional={"workload.precision": st.sampled_from(["fp8", "bf16"]), "workload.length_spread": st.sampled_from([0.0, 0.2])},
    )


LOADS = st.one_of(
    st.sampled_from([1, 3, 16, 128]).map(lambda size: {"batch_size": [size]}),
    st.sampled_from([1, 5, 17, 64, 512]).map(lambda size: {"concurrency": [size]}),
    st.tuples(st.sampled_from([0.1, 1.0, 20.0, 300.0]), st.sampled_from([13, 1000])).map(
        lambda each: {"request_rate": [each[0]], "num_prompts": [each[1]]}
    ),
    st.sampled_from([0, 500]).map(lambda size: {"num_prompts": [size]}),
)


def _loads(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Columns of inference."""
    if name == "product":
        return st.just({"tp": None})
    each = {"tp": None, "pp": None, "cp": None, "ep": None}
    if name in OTHERS:
        return st.sampled_from([1, 7, 64]).map(lambda size: each | {"batch_size": [size]})
    if name == "pools":
        pool = {f"{pool}_{degree}": [1, 2] for pool in ("prefill", "decode") for degree in ("tp", "pp")}
        loads = LOADS.filter(lambda load: "batch_size" not in load)
        return loads.map(lambda load: pool | {"prefill_workers": [1, 2, 3], "decode_workers": [1, 2]} | load)
    return LOADS.map(lambda load: each | {"attention_dp": None} | load)


def figure(scenario: Scenario, key: str) -> float:
    """The number under a dotted key."""
    found: Any = scenario
    for name in key.split("."):
        found = found[int(name)] if name.isdigit() else found.get(name) if isinstance(found, dict) else getattr(found, name)
    return float(found)


def _scaled(key: str, factor: float, most: float = np.inf) -> Callable[[Scenario], Values]:
    def changed(scenario: Scenario) -> Values:
        return {key: min(most, figure(scenario, key) * factor)}

    return changed


DIMENSION = "hw.network.dimensions."
# What makes a machine faster: of a scenario, the values that change.
FASTER: dict[str, Callable[[Scenario], Values]] = {
    "clock": _scaled("hw.clock", 1.13),
    "clock twice": _scaled("hw.clock", 2.0),
    "memory": _scaled("hw.memory.bandwidth", 1.2),
    "memory three times": _scaled("hw.memory.bandwidth", 3.0),
    "l2": _scaled("hw.l2.bandwidth", 1.5),
    "shared memory": _scaled("hw.shared_memory.bandwidth", 1.5),
    "kernel latency": _scaled("hw.kernel_latency", 0.4),
    "exponentials": _scaled("hw.exponentials", 2.0),
    "sustained": _scaled("hw.efficiency.sustained", 1.1, 1.0),
    "first links": _scaled(f"{DIMENSION}0.bandwidth", 1.3),
    "first links ten times": _scaled(f"{DIMENSION}0.bandwidth", 10.0),
    "last links": _scaled(f"{DIMENSION}1.bandwidth", 1.3),
    "last links ten times": _scaled(f"{DIMENSION}1.bandwidth", 10.0),
    "first latency": _scaled(f"{DIMENSION}0.latency", 0.3),
    "last latency": _scaled(f"{DIMENSION}1.latency", 0.3),
    "hop latency": _scaled("cluster.hop_latency", 0.2),
    "node skew": _scaled("cluster.node_skew", 0.2),
    "fabric": lambda scenario: {"cluster.fabric_efficiency": 1.0},
    "power": _scaled("hw.energy.tdp", 1.3),
    "products": lambda scenario: {"software.matmul_efficiency": 1.1},
}
