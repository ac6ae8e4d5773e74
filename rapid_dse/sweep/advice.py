"""What would make a layout fit in memory: its single changes, each priced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.run import RECOMPUTE
from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.parallel.engines import Engines
from rapid_dse.parallel.engines import resolved as resolved_engines
from rapid_dse.parallel.enumeration import MAX_CP, MAX_TP
from rapid_dse.parallel.layouts import AUTO_SCHEDULE, CODES, COLUMN_OF, POOLS, WHOLE_GROUP, Layouts, broken_rules, resolved
from rapid_dse.parallel.pipeline_rules import counted_ends
from rapid_dse.simulate.results import Priced
from rapid_dse.sweep.standing import Aim

MOST_STAGES, MOST_TIMES = 64, 16  # how far pp goes, and the number of GPUs
BATCHES = 256  # parts of a static batch of which so many as fit are found


@dataclass(frozen=True)
class Change:
    """One change that makes a layout fit.

    Attributes:
        text: what is set, as an override writes it.
        step_time_s, mfu, peak_memory_bytes, cost_usd: what comes of it.
    """

    text: str
    step_time_s: float
    mfu: float
    peak_memory_bytes: float
    cost_usd: float


@dataclass(frozen=True)
class _Kind:
    """Changes of one kind; ``first`` where the smallest that fits is wanted (GPUs cost), else the fastest is."""

    key: str
    changed: Sequence[Layouts]
    labels: Sequence[str]
    first: bool = False


def changes(scenario: Scenario, layout: Layouts, aim: Aim) -> tuple[list[Change], int]:
    """The single changes of a layout that make it fit, the fastest first: of each key the value that is fastest; last,
    of GPUs, the fewest.

    Tried are ZeRO, recomputation, tp, cp and pp (dp gives what they take, and stages are as long as one another), a smaller
    micro-batch, and more GPUs (for dp); of engines tp and pp, on the GPUs that there are and on as many more as they take, ep, a smaller
    batch and more GPUs. A backend that simulates is not asked: closed forms price them.

    Args:
        layout: one, ``(1,)``.
        aim: the share of usable memory that must stay free, and the constraints, those of keys outside the layout left out.

    Returns:
        the changes, and how many legal ones were tried.
    """
    closed = scenario.model_copy(update={"backend": scenario.backend.model_copy(update={"name": "analytical"})})
    fitting, tried = [], 0
    for kind in _kinds(scenario, layout):
        legal = [(one, text) for one, text in zip(kind.changed, kind.labels, strict=True) if _runs(one, closed)]
        if not legal:
            continue
        tried += len(legal)
        layouts = type(layout).concatenate([one for one, _ in legal])
        priced = price(closed, layouts)
        fits = np.flatnonzero(_meets(scenario, layouts, priced, aim))
        if len(fits):
            at = int(fits[0] if kind.first else fits[np.argmin(priced.step_time_s[fits])])
            figures = (getattr(priced, name)[at] for name in ("step_time_s", "mfu", "peak_memory_bytes", "cost_usd"))
            fitting.append(Change(f"{kind.key}={legal[at][1]}", *map(float, figures)))
    return sorted(fitting, key=lambda change: (change.text.startswith("hw."), change.step_time_s)), tried


def _runs(layout: Layouts, closed: Scenario) -> bool:
    """Whether a layout is legal, its places on the network included where dimensions list their parallelisms."""
    if broken_rules(layout, closed)[0][0] >= 0:
        return False
    if all(dimension.parallelisms is None for dimension in closed.hw.network.dimensions):
        return True
    try:
        price(closed, layout)
    except ValueError:
        return False
    return True


def _meets(scenario: Scenario, layouts: Layouts, priced: Priced, aim: Aim) -> NDArray[np.bool_]:
    """Which layouts fit and meet the constraints, ``(n_layouts,)``."""
    meets: NDArray[np.bool_] = priced.peak_memory_bytes <= scenario.hw.memory.usable * (1 - aim.headroom)
    for constraint in aim.constraints:
        column = getattr(priced, constraint.name, None)
        if column is None and constraint.name in COLUMN_OF:
            column = getattr(layouts, COLUMN_OF[constraint.name])
        if column is not None:
            meets = meets & ~constraint.broken(np.asarray(column, float))
    return meets


def _kinds(scenario: Scenario, layout: Layouts) -> Iterator[_Kind]:
    def kind(name: str, values: Sequence[int], **fixed: int) -> _Kind:
        labels = [CODES[name][value] if name in CODES else str(value) for value in values]
        return _Kind(layout.keys[name], [with_columns(layout, **{name: value}, **fixed) for value in values], labels, name == "num_gpus")

    if isinstance(layout, Engines):
        yield from _of_engines(layout)
        return
    gpus = int(layout.num_gpus[0])
    zero, recompute = int(layout.zero[0]), int(layout.recompute[0])
    yield kind("zero", [value for value in (1, 2, 3) if value > zero])
    yield kind("recompute", list(range(recompute + 1, len(RECOMPUTE))))
    yield kind("tp", _doubled(int(layout.tp[0]), MAX_TP), dp=0, sequence_parallel=1)
    yield kind("cp", _doubled(int(layout.cp[0]), MAX_CP), dp=0)
    chunks = {} if int(layout.pp[0]) > 1 else {"vpp": 1, "schedule": AUTO_SCHEDULE}
    if scenario.parallel.stage_layers is None:
        layers = (scenario.model.num_hidden_layers, scenario.model.num_hidden_layers + counted_ends(scenario))
        stages = [pp for pp in _doubled(int(layout.pp[0]), MOST_STAGES) if any(count % pp == 0 for count in layers)]
        yield kind("pp", stages, dp=0, **chunks)
    micro = int(layout.micro_batch_size[0])
    yield kind("micro_batch_size", [micro // by for by in (2, 4, 8, 16) if micro % by == 0])
    yield kind("num_gpus", [value for value in _doubled(gpus, gpus * MOST_TIMES) if value <= 2**20], dp=0)


def _of_engines(layout: Engines) -> Iterator[_Kind]:
    """More GPUs for an engine (of those that there are, or more), and of a static batch fewer requests."""

    def kind(name: str, values: Sequence[int], **fixed: int) -> _Kind:
        changed = [engine_with(layout, **{name: value}, **fixed) for value in values]
        return _Kind(layout.keys[name], changed, [str(value) for value in values], name in ("num_gpus", "batch_size"))

    gpus = int(layout.num_gpus[0])

    def larger(name: str, most: int, engines: int, fixed: Sequence[str]) -> _Kind:
        """A degree of that many engines, and as many GPUs more as it takes."""
        now = max(1, int(getattr(layout, name)[0]))
        wider = [(value, gpus + engines * (value - now) // now) for value in _doubled(now, most)]
        changed = [engine_with(layout, **{name: value, "num_gpus": count}, **dict.fromkeys(fixed, 0)) for value, count in wider]
        return _Kind(layout.keys[name], changed, [f"{value} hw.num_gpus={count}" for value, count in wider], True)

    if layout.pooled[0]:
        for pool in POOLS:
            cut = layout.degrees(pool)
            one = int(layout.dp[0] * getattr(layout, f"{pool}_workers")[0] * cut.tp[0] * cut.attention_dp[0] * cut.cp[0] * cut.pp[0])
            yield larger(f"{pool}_tp", MAX_TP, one, [f"{pool}_etp"])
            yield larger(f"{pool}_pp", MOST_STAGES, one, [])
        return
    yield kind("tp", _doubled(int(layout.tp[0]), MAX_TP), dp=0, etp=0)
    yield kind("pp", _doubled(int(layout.pp[0]), MOST_STAGES), dp=0)
    yield kind("ep", _doubled(int(layout.ep[0]), MOST_STAGES), etp=0)
    batch = int(layout.batch_size[0])
    fewer = {batch * part // BATCHES for part in range(1, BATCHES)} | {batch >> by for by in range(1, batch.bit_length())}
    yield kind("batch_size", sorted(fewer - {0}, reverse=True))  # the largest that fits
    yield kind("num_gpus", _doubled(gpus, gpus * MOST_TIMES), dp=0)
    yield larger("tp", MAX_TP, gpus, ["etp"])
    yield larger("pp", MOST_STAGES, gpus, [])


def engine_with(layout: Engines, **columns: int) -> Engines:
    """The layout of inference with other values, what is automatic among them settled."""
    return resolved_engines(replace(layout, **{name: np.array([value]) for name, value in columns.items()}))


def _doubled(value: int, most: int) -> list[int]:
    return [value << k for k in range(1, 20) if value << k <= most]


def with_columns(layout: Layouts, **columns: int) -> Layouts:
    """The layout with other values; shards go over as many GPUs as there are."""
    whole = {} if "dp" not in columns else {"shard_group": WHOLE_GROUP}
    replaced_columns = {name: np.array([value]).astype(getattr(layout, name).dtype) for name, value in {**whole, **columns}.items()}
    return resolved(replace(layout, **replaced_columns))
