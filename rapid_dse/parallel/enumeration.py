"""Every legal layout of a space: all combinations of degrees, those that a rule forbids counted by the rule that they break first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import numpy as np

from rapid_dse.config.run import RECOMPUTE
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.schedule_names import PIPELINE_SCHEDULES, SCHEDULES
from rapid_dse.config.software.offers import Offers
from rapid_dse.parallel.kind_rules import of_rows
from rapid_dse.parallel.layouts import (
    OPTIONAL,
    RECOMPUTE_NONE,
    USUAL_ETP,
    WHOLE_GROUP,
    IntColumn,
    Layouts,
    broken_rules,
    first_broken,
    mathematics,
    resolved,
)
from rapid_dse.parallel.offered import settled
from rapid_dse.parallel.pipeline_rules import counted_ends

MAX_TP, MAX_CP, MAX_MICRO_BATCH, MAX_VPP = 16, 16, 16, 8
BLOCK_ROWS = 1 << 15  # layouts that are judged at once: their columns and masks fit into a processor's caches


@dataclass(frozen=True)
class Space:
    """Values to combine, a list a column of ``Layouts`` (short names); None is every value that can be legal."""

    values: Mapping[str, Sequence[float] | None]

    def options(self, name: str, default: Sequence[int]) -> Sequence[Any]:
        values = self.values.get(name)
        return default if values is None else values

    @property
    def open(self) -> bool:
        """Whether some column takes every value: only then is what changes nothing left out, and what is illegal only counted."""
        return any(value is None for value in self.values.values())


def enumerate_layouts(space: Space, scenario: Scenario) -> tuple[Layouts, Counter[str]]:
    """Every legal layout of a space, and how many others break which rule first.

    What changes nothing is left out (neither a layout nor counted): zero at dp · cp = 1, sequence_parallel at tp = 1, schedules at pp = 1.
    """
    parts: list[Layouts] = []
    rejected: Counter[str] = Counter()
    for num_gpus in space.options("num_gpus", ()):
        legal, counts = _legal_of(space, int(num_gpus), scenario)
        parts.append(legal)
        rejected.update(counts)
    return Layouts.concatenate(parts), rejected


def grid(columns: Mapping[str, Sequence[int]]) -> Layouts:
    """All combinations of the columns' values, the last column fastest, dp resolved."""
    return resolved(_combinations(columns))


def _combinations(columns: Mapping[str, Sequence[int]]) -> Layouts:
    given = {name: [value] for name, value in OPTIONAL.items()} | dict(columns)
    axes = np.meshgrid(*(np.asarray(given[f.name], np.int64) for f in fields(Layouts)), indexing="ij")
    return Layouts.of({f.name: axis.ravel() for f, axis in zip(fields(Layouts), axes, strict=True)})


def _blocks(columns: Mapping[str, Sequence[int]]) -> Iterator[dict[str, Sequence[int]]]:
    """The grid of ``columns`` as grids of at most ``BLOCK_ROWS`` consecutive rows each, in its order."""
    if not all(columns.values()):
        yield dict(columns)
        return
    names = [f.name for f in fields(Layouts)]
    inner, split = 1, len(names) - 1  # rows of the whole axes after the one that is split
    while split > 0 and inner * len(columns[names[split]]) <= BLOCK_ROWS:
        inner *= len(columns[names[split]])
        split -= 1
    values, most = columns[names[split]], max(1, BLOCK_ROWS // inner)
    for outer in product(*(columns[name] for name in names[:split])):
        for start in range(0, len(values), most):
            yield {
                **columns,
                **{name: [value] for name, value in zip(names, outer, strict=False)},
                names[split]: values[start : start + most],
            }


def _legal_of(space: Space, num_gpus: int, scenario: Scenario) -> tuple[Layouts, Counter[str]]:
    model = scenario.model
    divisors = [d for d in range(1, num_gpus + 1) if num_gpus % d == 0] if num_gpus <= 10**6 else []
    structure = {
        "num_gpus": [num_gpus],
        "global_batch_size": space.options("global_batch_size", ()),
        "tp": space.options("tp", [d for d in divisors if d <= MAX_TP]),
        "cp": space.options("cp", [d for d in divisors if d <= MAX_CP]),
        "dp": space.options("dp", [0]),
        "pp": space.options("pp", [d for d in divisors if d <= model.num_hidden_layers + counted_ends(scenario)]),
        "ep": space.options("ep", [d for d in range(1, (model.num_experts or 1) + 1) if (model.num_experts or 1) % d == 0]),
        "vpp": space.options("vpp", range(1, MAX_VPP + 1)),
        "zero": [1],  # of zero, sequence_parallel and recompute any: their values come with _with_options
        "sequence_parallel": [0],
        "micro_batch_size": space.options("micro_batch_size", [1 << k for k in range(MAX_MICRO_BATCH.bit_length())]),
        "recompute": [RECOMPUTE_NONE],
        "schedule": space.options("schedule", [SCHEDULES.index(name) for name in PIPELINE_SCHEDULES]),
        "shard_group": space.options("shard_group", [WHOLE_GROUP]),
        "etp": space.options("etp", [d for d in divisors if d <= MAX_TP] if model.num_experts else [USUAL_ETP]),
    }
    options = list(
        product(
            space.options("zero", range(4)),
            space.options("sequence_parallel", (0, 1)),
            space.options("recompute", range(len(RECOMPUTE))),
        )
    )
    rejected: Counter[str] = Counter()
    lawful = []
    for block in _blocks(structure):
        rows = _without_idle_schedules(_combinations(block), min(structure["vpp"], default=1), structure["schedule"])
        base = of_rows(resolved(rows), scenario)
        first, texts = first_broken(mathematics(base, scenario), len(base))
        rejected += times_broken(first, texts, len(options))
        lawful.append(base.take(first < 0))
    legal, late = _offered(Layouts.concatenate(lawful), options, scenario)
    return legal, rejected + late


def _offered(lawful: Layouts, options: Sequence[tuple[int, int, int]], scenario: Scenario) -> tuple[Layouts, Counter[str]]:
    """Layouts that the mathematics allow, with every option: those that break none of the rules, and how many break which first."""
    rejected: Counter[str] = Counter()
    legal, rows = [], max(1, BLOCK_ROWS // len(options))
    for start in range(0, max(1, len(lawful)), rows):
        layouts = settled(
            _with_options(lawful.take(slice(start, start + rows)), options, scenario.software.offers), scenario.software.offers
        )
        first, texts = broken_rules(layouts, scenario)
        rejected += times_broken(first, texts)
        legal.append(layouts.take(first < 0))
    return Layouts.concatenate(legal), rejected


def times_broken(rule: IntColumn, texts: Sequence[str], times: int = 1) -> Counter[str]:
    """How many layouts break which rule first, each counted so many times."""
    counts = np.bincount(rule[rule >= 0], minlength=len(texts))
    return Counter({text: int(count) * times for text, count in zip(texts, counts, strict=True) if count})


def _without_idle_schedules(rows: Layouts, least_vpp: int, schedules: Sequence[int]) -> Layouts:
    # At pp = 1 every schedule is the same: the first stands for all; vpp there means nothing either.
    return rows.take((rows.pp > 1) | ((rows.schedule == schedules[0]) & (rows.vpp == least_vpp)))


def _with_options(base: Layouts, options: Sequence[tuple[int, int, int]], offers: Offers) -> Layouts:
    """The rows of ``base``, each with every option of (zero, sequence_parallel, recompute) that changes something.

    Where a replica is alone, one zero stands for all: the least that is offered.
    """
    zeros, sequence, recompute = (np.array(column, np.int64) for column in zip(*options, strict=True))
    rows = np.repeat(np.arange(len(base)), len(options))
    zero, sp, rec = (np.tile(column, len(base)) for column in (zeros, sequence, recompute))
    least = min((int(stage) for stage in zeros if stage in {*offers.zero, *offers.zero_with_pipelines}), default=int(zeros.min()))
    idle_zero, idle_sp = (base.dp * base.cp)[rows] == 1, base.tp[rows] == 1
    keep = ~(idle_zero & (zero != least)) & ~(idle_sp & (sp != sequence.min()))
    layouts = base.take(rows[keep])
    return replace(layouts, zero=zero[keep], sequence_parallel=(sp[keep] == 1) & (layouts.tp > 1), recompute=rec[keep])
