"""The neighbours of a layout: what differs from it in one setting, priced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rapid_dse.analysis.reasons.chosen import Figures, PricedTrial, figures_of, settings
from rapid_dse.config.run import RECOMPUTE
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.events.backends import price
from rapid_dse.parallel import schedules
from rapid_dse.parallel.engines import Engines
from rapid_dse.parallel.enumeration import MAX_CP, MAX_TP, MAX_VPP
from rapid_dse.parallel.layouts import AUTO_SCHEDULE, KEYS, POOLS, WHOLE_GROUP, Layouts, broken_rules
from rapid_dse.parallel.offered import usual_sequence_parallel
from rapid_dse.sweep.advice import engine_with, with_columns

_MOST = {"tp": MAX_TP, "cp": MAX_CP, "pp": 1024, "ep": 1024, "micro_batch_size": 256}


@dataclass(frozen=True)
class Neighbour:
    """A layout that differs in one setting.

    Attributes:
        key: the setting; what must follow from it (dp, a schedule of another kind) follows.
        before, value: its value in the layout and in the neighbour.
        layout: the neighbour, ``(1,)``.
        figures: its result columns.
        step_time_s, peak_memory_bytes: what it has more than the layout, SI units.
    """

    key: str
    before: Any
    value: Any
    layout: Layouts
    figures: Figures
    step_time_s: float
    peak_memory_bytes: float

    @property
    def fits(self) -> bool:
        """Whether its peak is within hw.memory.usable."""
        return bool(self.figures["fits"])


def neighbours(of: PricedTrial) -> list[Neighbour]:
    """Every legal layout that differs in one setting: the next value on either side of a degree, every other value of a mode.

    dp takes what tp, cp and pp leave. The other way of context parallelism is another scenario of the same layout.
    """
    scenario, before = of.scenario, settings(of.layout)
    options: list[tuple[str, Layouts]] = []
    for name, candidates in _engines(of.layout) if isinstance(of.layout, Engines) else _candidates(scenario, of.layout):
        legal = [candidate for candidate in candidates if broken_rules(candidate, scenario)[0][0] < 0 and _differs(candidate, of.layout)]
        options += [(of.layout.keys[name], layout) for layout in (legal if name in ("zero", "recompute", "schedule") else legal[:1])]
    priced = price(scenario, type(of.layout).concatenate([layout for _, layout in options])) if options else None
    result = []
    for row, (key, layout) in enumerate(options):
        assert priced is not None
        result.append(_neighbour(of, (key, before[key], settings(layout)[key]), layout, figures_of(priced, row)))
    return [*result, *_other_ways(of)]


def _neighbour(of: PricedTrial, setting: tuple[str, Any, Any], layout: Layouts, figures: Figures) -> Neighbour:
    """One that differs in a ``setting``: its key, its value before and there."""
    more = (figures[name] - of.figures[name] for name in ("step_time_s", "peak_memory_bytes"))
    return Neighbour(*setting, layout, figures, *more)


def _other_ways(of: PricedTrial) -> Iterator[Neighbour]:
    """The layout with the other way of context parallelism, where it has any and may have that."""
    now = of.scenario.cp_kind
    for kind in ("ring", "ulysses") if not isinstance(of.layout, Engines) and of.layout.cp[0] > 1 else ():
        parallel = of.scenario.parallel.model_copy(update={"cp_kind": kind})
        other = of.scenario.model_copy(update={"parallel": parallel})
        if kind != now and broken_rules(of.layout, other)[0][0] < 0:
            yield _neighbour(of, ("parallel.cp_kind", now, kind), of.layout, figures_of(price(other, of.layout)))


def _differs(one: Layouts, other: Layouts) -> bool:
    return any(getattr(one, name)[0] != getattr(other, name)[0] for name in one.keys)


def _engines(layout: Engines) -> Iterator[tuple[str, list[Layouts]]]:
    """Of inference: the degrees of an engine, or of the engines of each pool; experts are cut as the others leave it."""
    pools = [f"{pool}_" for pool in POOLS] if layout.pooled[0] else [""]
    for pool in pools:
        for name in ("tp", "attention_dp", "pp", "ep"):
            now = max(1, int(getattr(layout, pool + name)[0]))
            up = [now << k for k in range(1, 7)]
            down = [now >> k for k in range(1, 11) if now >> k >= 1 and now % (1 << k) == 0]
            follow = {f"{pool}etp": 0} | ({"decode_workers": 0} if pool else {"dp": 0})
            for values in (down, up):
                yield pool + name, [engine_with(layout, **{pool + name: degree}, **follow) for degree in values]


def _candidates(scenario: Scenario, layout: Layouts) -> Iterator[tuple[str, list[Layouts]]]:
    """Layouts to look at, a list a direction, the nearest first: of a degree the first legal one counts, of a mode all."""
    value = {name: int(getattr(layout, name)[0]) for name in KEYS}
    for name, follow in _FOLLOW.items():
        now, most = value[name], _MOST[name]
        up = [now << k for k in range(1, 11) if now << k <= most]
        down = [now >> k for k in range(1, 11) if now >> k >= 1 and now % (1 << k) == 0]
        for values in (down, up):
            yield name, [with_columns(layout, **{name: degree}, **follow(scenario, value, degree)) for degree in values]
    if value["pp"] > 1:
        for chunks in (range(value["vpp"] - 1, 0, -1), range(value["vpp"] + 1, MAX_VPP + 1)):
            yield "vpp", [with_columns(layout, vpp=degree, schedule=AUTO_SCHEDULE) for degree in chunks]
        others = [code for code in range(len(SCHEDULES)) if code not in (schedules.NONE, value["schedule"])]
        yield "schedule", [_scheduled(layout, value, code) for code in others]
    yield "zero", [with_columns(layout, zero=stage) for stage in range(4) if stage != value["zero"]]
    yield "recompute", [with_columns(layout, recompute=mode) for mode in range(len(RECOMPUTE)) if mode != value["recompute"]]
    if value["tp"] > 1:
        yield "sequence_parallel", [with_columns(layout, sequence_parallel=1 - value["sequence_parallel"])]
    if scenario.model.num_experts and value["tp"] > 1:
        now = int(layout.expert_tp[0])
        yield "etp", [with_columns(layout, etp=degree) for degree in ((value["tp"], 1) if now == 1 else (1,))]
    yield "shard_group", [with_columns(layout, shard_group=group) for group in _shard_groups(scenario, layout, value)]


def _scheduled(layout: Layouts, value: dict[str, int], code: int) -> Layouts:
    """The layout under another schedule; interleaving takes two chunks, the others one."""
    vpp = max(2, value["vpp"]) if schedules.INTERLEAVES[code] else 1
    return with_columns(layout, schedule=code, vpp=vpp)


def _shard_groups(scenario: Scenario, layout: Layouts, value: dict[str, int]) -> list[int]:
    """Shards within a node in place of all GPUs, and the other way round."""
    if value["shard_group"] != WHOLE_GROUP:
        return [WHOLE_GROUP]
    inside = scenario.hw.gpus_per_node // value["tp"]
    return [inside] if 1 < inside < int(layout.shards[0]) and value["zero"] > 0 else []


def _degrees(scenario: Scenario, value: dict[str, int], tp: int) -> dict[str, int]:
    return {"dp": 0, "sequence_parallel": int(tp > 1 and (value["sequence_parallel"] or usual_sequence_parallel(scenario.software.offers)))}


def _stages(_: Scenario, value: dict[str, int], pp: int) -> dict[str, int]:
    # From and to no pipeline at all the schedule follows.
    return {"dp": 0} if pp > 1 and value["pp"] > 1 else {"dp": 0, "vpp": 1, "schedule": AUTO_SCHEDULE}


# What follows from each degree.
_FOLLOW: dict[str, Callable[[Scenario, dict[str, int], int], dict[str, int]]] = {
    "tp": _degrees,
    "cp": lambda *_: {"dp": 0},
    "pp": _stages,
    "ep": lambda *_: {},
    "micro_batch_size": lambda *_: {},
}
