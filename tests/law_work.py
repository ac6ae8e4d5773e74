"""What is more work: of a trial, the same with more layers, tokens, width, experts; and what the work takes at least."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from law_cases import Trial
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.model.parameters import count
from rapid_dse.simulate.results import Priced

More = Callable[[Trial], Trial]


def _figure(scenario: Scenario, key: str) -> int:
    part, name = key.split(".")
    return int(getattr(getattr(scenario, part), name))


def _more(*keys: str, times: int = 2, plus: int = 0) -> More:
    def grown(trial: Trial) -> Trial:
        scenario = trial.scenario()
        return trial.with_values({key: times * _figure(scenario, key) + plus for key in keys})

    return grown


def _columns(*names: str) -> More:
    return lambda trial: trial.with_columns(**{name: 2 * getattr(trial.layouts, name) for name in names if name in vars(trial.layouts)})


LAYERS = {"layers": _more("model.num_hidden_layers"), "a layer": _more("model.num_hidden_layers", times=1, plus=1)}
STEPS = {"sequence": _more("workload.seq_len")}
TRAINED = {"batch": _columns("global_batch_size"), "micro-batch": _columns("global_batch_size", "micro_batch_size")}
WIDER = {"MLP": _more("model.intermediate_size")}
WIDTHS = WIDER | {
    "vocabulary": _more("model.vocab_size"),
    "heads": _more("model.num_attention_heads", "model.num_key_value_heads", "model.hidden_size"),
}
ROUTED = {
    "experts' width": _more("model.moe_intermediate_size"),
    "experts": _more("model.num_experts"),
    "experts of a token": _more("model.num_experts_per_tok"),
}
UNITS = {"units": _more("model.hidden_size")}
IMAGES = {"images": _columns("batch_size")}
PROMPTS = {"prompts": _more("workload.prompt_len")}
MORE: dict[str, dict[str, More]] = {
    "text": LAYERS | STEPS | TRAINED | WIDTHS,
    "experts": LAYERS | STEPS | TRAINED | ROUTED | {"vocabulary": WIDTHS["vocabulary"]},
    "serving": LAYERS | PROMPTS | WIDER,
    "serving experts": LAYERS | PROMPTS | ROUTED,
    "pools": LAYERS | PROMPTS,
    "vision": LAYERS | TRAINED | WIDER,
    "recurrent": LAYERS | STEPS | TRAINED | UNITS,
    "vision forward": LAYERS | WIDER | IMAGES,
    "recurrent forward": LAYERS | STEPS | UNITS | IMAGES,
    "product forward": {"rows": _more("model.m"), "columns": _more("model.n"), "depth": _more("model.k")},
}
SPLITS_ANEW = ("a layer", *WIDTHS)  # after which stages may have other layers than before


def keeps_its_split(trial: Trial, name: str) -> NDArray[np.bool_]:
    """Whether more work leaves no stage with less of it, ``(n,)``: one more layer may move others to another stage, and so may wider ones
    where the framework weighs the head in layers."""
    weighs = trial.scenario().software.pipeline.pipeline_split == "balanced"
    return (trial.layouts.pp == 1) | (name != "a layer" and not (weighs and name in SPLITS_ANEW))


def changes_gradients(name: str) -> bool:
    """Whether more work has other weights."""
    return name not in (STEPS | TRAINED | PROMPTS | IMAGES)


def least_seconds(trial: Trial, found: Priced) -> NDArray[np.float64]:
    """What a step takes at least, ``(n,)``: a GPU's optimizer states read and written in its memory, the half of its gradients that others
    have sent over its links; of a served token the layers' weights read in 8 bits."""
    scenario, layouts = trial.scenario(), trial.layouts
    hw, model = scenario.hw, scenario.model
    if scenario.workload.kind == "inference":
        weights = count(model).total - 2 * model.vocab_size * model.hidden_size
        engine = layouts.tp * layouts.pp * layouts.cp
        if trial.kind == "pools":
            engine = np.maximum(layouts.prefill_tp * layouts.prefill_pp, layouts.decode_tp * layouts.decode_pp)
        return weights / (engine * hw.memory.bandwidth)
    updated = 2 * found.memory_optimizer_bytes / hw.memory.bandwidth
    ranks, port = layouts.dp * layouts.cp, sum(dimension.bandwidth for dimension in hw.network.dimensions)
    whole = (layouts.zero == 0) & (layouts.ep == 1)
    return np.maximum(updated, whole * found.memory_parameters_bytes * (1 - 1 / ranks) / port)
