"""Systems that serve, drawn by chance: a chip, a model, a framework, lengths, and one engine or pools of engines."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent.parent)]
from serving_trials import engines, scenario  # noqa: E402 tests are no package

from rapid_dse.config.scenario import Scenario  # noqa: E402
from rapid_dse.parallel.engines import Engines  # noqa: E402
from rapid_dse.parallel.layouts import SERVING_KEYS, broken_rules  # noqa: E402

CHIPS = ("h100", "h200", "a100", "b200", "gb200", "mi300x", "l40s")
WITHOUT_FP8 = ("a100",)
DENSE = ("llama3_1_8b", "llama2_7b", "llama3_1_70b")
OF_EXPERTS = ("deepseek_v3", "qwen3_30b_a3b", "gpt_oss_20b")
FRAMEWORKS = ("vllm", "sglang", "tensorrt_llm", "nim")
LAYERS = (1, 2, 4, 7, 13)
PROMPTS = (1, 2, 6, 33, 97, 181, 500, 1000, 1673, 4096, 7000, 20_000)
LONGEST_PROMPT = 30_000
GENERATED = (1, 2, 3, 5, 8, 24, 64, 127, 1024)
MOST_GENERATED = 1800
HELD_STEPS = 60  # software.attention_dp_wait where prompts are held back
Row = Mapping[str, Any]
Pricer = Callable[[Scenario, Engines], Any]  # gives the columns of Priced


@dataclass(frozen=True)
class ServedCase:
    """A system and what it is asked for, but for its load.

    Attributes:
        options: of hw, model and software.
        values: keys that the case sets above its options, dotted.
        engine: columns of ``Engines`` other than those of the load.
        pricer: what the case is priced by.
    """

    options: tuple[str, str, str]
    values: Row
    engine: Row
    pricer: Pricer

    @property
    def pools(self) -> bool:
        return "prefill_tp" in self.engine

    @property
    def generated(self) -> int:
        return int(self.values["workload.decode_len"])

    @property
    def engine_kind(self) -> str:
        """One engine or pools, whether attention has several ranks, and whether prompts are held back for these."""
        held_back = ", held" if self.values.get("software.attention_dp_wait") else ""
        return ("pools" if self.pools else "one engine") + (f", ranks{held_back}" if _ranks(self.engine) > 1 else "")

    @property
    def lengths(self) -> str:
        """Whether requests generate one token; else whether all are of one length."""
        if self.generated == 1:
            return "one token"
        return "differ" if "workload.length_spread" in self.values else "alike"

    @property
    def scenario(self) -> Scenario:
        return scenario(*self.options, **{key.replace(".", "__"): value for key, value in self.values.items()})

    @property
    def legal(self) -> bool:
        """Whether the chip has the precision, and the model can be cut like this."""
        try:
            of = self.scenario
        except ValueError:
            return False
        return bool((broken_rules(engines(self.engine), of)[0] < 0).all())

    def changed(self, values: Row) -> ServedCase:
        """With other values of some keys."""
        return replace(self, values={**self.values, **values})

    def served(self, loads: Sequence[Row]) -> Any:
        """Results under several loads, which are columns of ``Engines``."""
        return self.pricer(self.scenario, engines(*({**self.engine, **load} for load in loads)))

    def words(self, first: Row, second: Row) -> str:
        """The sweep that shows the case under two loads or settings: columns of ``Engines`` or dotted keys, of which some differ.

        Keys that both have alike are given once; of several that differ, each value goes with the others' of the same position.
        """
        both = [
            {SERVING_KEYS.get(key, key): value for key, value in {**self.values, **self.engine, **row}.items()} for row in (first, second)
        ]
        fixed = {key: value for key, value in both[0].items() if both[1][key] == value}
        pairs = [f"{key}={_text(value)},{_text(both[1][key])}" for key, value in both[0].items() if key not in fixed]
        named = [f"{group}={option}" for group, option in zip(("hw", "model", "software"), self.options, strict=True)]
        settings = [f"{key}={_text(value)}" for key, value in {"software.enforce": False, **fixed}.items()]
        pairs = pairs if len(pairs) < 2 else [f"'zip({';'.join(pairs)})'"]
        return " ".join(["-m", *named, "workload=inference", *settings, *pairs])


def _text(value: Any) -> str:
    """As the command line takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", False: "false", True: "true"}[value]
    return value if isinstance(value, str) else repr(value)


def drawn(rng: random.Random, pricer: Pricer) -> ServedCase:
    """A legal case."""
    while True:
        options = rng.choice(CHIPS), rng.choice(DENSE + OF_EXPERTS), rng.choice(FRAMEWORKS)
        experts = options[1] in OF_EXPERTS
        engine = _pools(rng, experts) if rng.random() < 0.35 else _engine(rng, experts)
        values = _values(rng, options[0])
        if _ranks(engine) > 1:
            values["software.attention_dp_wait"] = rng.choice((0, 0, HELD_STEPS))
        case = ServedCase(options, values, engine, pricer)
        if case.legal:
            return case


def _values(rng: random.Random, chip: str) -> dict[str, Any]:
    values: dict[str, Any] = {"model.max_position_embeddings": None}
    if rng.random() < 0.5:
        values["model.num_hidden_layers"] = rng.choice(LAYERS)
    values["workload.prompt_len"] = rng.choice(PROMPTS) if rng.random() < 0.7 else _between(rng, LONGEST_PROMPT)
    values["workload.decode_len"] = rng.choice(GENERATED) if rng.random() < 0.8 else _between(rng, MOST_GENERATED)
    if rng.random() < 0.5:
        values["workload.length_spread"] = 0.2
    if chip not in WITHOUT_FP8:
        values["workload.precision"] = rng.choice(("bf16", "fp8"))
    if rng.random() < 0.1:
        values["workload.prefix_hit"] = 0.5
    if rng.random() < 0.1:
        values |= {"workload.draft_tokens": 2, "workload.draft_acceptance": 0.7}
    return values


def _ranks(engine: Row) -> int:
    """The most attention ranks of an engine."""
    return int(max(engine.get(name, 1) for name in ("attention_dp", "prefill_attention_dp", "decode_attention_dp")))


def _between(rng: random.Random, most: int) -> int:
    """From 1 to the most, each doubling as likely as any other."""
    return round(most ** rng.random())


def _engine(rng: random.Random, experts: bool) -> dict[str, int]:
    engine = {"tp": rng.choice((1, 2, 4, 8)), "pp": rng.choice((1, 1, 1, 2, 4))}
    ranks = rng.choice((2, 4, 8, 16)) if experts and rng.random() < 0.5 else 1
    if ranks > 1:
        engine["attention_dp"] = ranks
    if experts:
        engine["ep"] = engine["tp"] * ranks
    return {"num_gpus": engine["tp"] * engine["pp"] * ranks, **engine}


def _pools(rng: random.Random, experts: bool) -> dict[str, int]:
    pools, gpus = {}, 0
    for pool in ("prefill", "decode"):
        tp, pp, workers = rng.choice((1, 2, 4)), rng.choice((1, 1, 2)), rng.choice((1, 2, 3))
        ranks = rng.choice((1, 2, 4, 8)) if experts and rng.random() < 0.5 else 1
        pools |= {f"{pool}_tp": tp, f"{pool}_pp": pp, f"{pool}_workers": workers}
        if experts:
            pools |= {f"{pool}_attention_dp": ranks, f"{pool}_ep": tp * ranks}
        gpus += tp * pp * ranks * workers
    return {"num_gpus": gpus, **pools}
