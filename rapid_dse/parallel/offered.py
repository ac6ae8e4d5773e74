"""Which layouts the framework offers, as its profile's ``software.offers`` lists it, and what automatic settings become under it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.host_link import OFFLOADED
from rapid_dse.config.recompute_entries import entries, named
from rapid_dse.config.run import RECOMPUTE
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.schedule_names import PIPELINE_SCHEDULES, SCHEDULES
from rapid_dse.config.software.offers import Offers
from rapid_dse.parallel.context_rules import local_keys

if TYPE_CHECKING:
    from rapid_dse.parallel.layouts import Layouts

BoolColumn = NDArray[np.bool_]
AUTO = -1  # in the columns zero and recompute: the usual value, or what the framework offers in its place
USUAL_ZERO, USUAL_RECOMPUTE = 1, RECOMPUTE.index("selective")


@dataclass(frozen=True)
class Unoffered:
    """A setting that the framework does not offer.

    Attributes:
        setting: the key and its value in words, "schedule zero_bubble".
        named: the same as a rule names it, "zero_bubble".
        instead: what the framework offers in its place, in words.
        where: the layouts that have the setting, ``(n_layouts,)``.
    """

    setting: str
    named: str
    instead: str
    where: BoolColumn

    def rule(self, framework: str) -> str:
        """The rule that such a layout breaks."""
        return f"{framework} does not offer {self.named} (software.enforce=false prices it); it offers {self.instead}"

    def remark(self, framework: str) -> str:
        """What is said of such a layout where it is priced all the same."""
        return f"{self.setting}: not offered by {framework}"


def unoffered(layouts: Layouts, scenario: Scenario) -> list[Unoffered]:
    """Every setting that some value of the schema has and the framework lacks, with the layouts that have it."""
    offers = scenario.software.offers
    return [
        *of_the_job(len(layouts), scenario),
        *_degrees(layouts, offers, scenario.cp_kind),
        *_copied_keys(layouts, scenario),
        *_stages(layouts, offers),
        *_modes(layouts, offers),
        *_plus_plus(layouts, scenario),
        *_offloads(layouts, scenario),
        *_recomputed(layouts, scenario),
        *_overlapped(layouts, scenario),
    ]


def of_the_job(n_layouts: int, scenario: Scenario) -> list[Unoffered]:
    """Kind of workload, precision and what is trained, which all layouts of a scenario share."""
    offers, work, every = scenario.software.offers, scenario.workload, np.ones(n_layouts, bool)
    rules = []
    if work.kind == "training" and work.trainable not in offers.trainable:
        setting = f"trainable {work.trainable}"
        rules.append(Unoffered(setting, setting, f"trainable {listed(offers.trainable)}", every))
    if work.kind not in offers.workloads:
        rules.append(Unoffered(work.kind, work.kind, listed(offers.workloads), every))
    if work.precision not in offers.precisions:
        rules.append(Unoffered(f"precision {work.precision}", f"precision {work.precision}", listed(offers.precisions), every))
    return rules


def _offloads(layouts: Layouts, scenario: Scenario) -> Iterator[Unoffered]:
    """What lies in the host's memory, by pipelines or none."""
    offers = scenario.software.offers
    for piped, offered, text in ((False, offers.offload, "without pipelines"), (True, offers.offload_with_pipelines, "with pipelines")):
        for state in OFFLOADED:
            if getattr(scenario.parallel, f"offload_{state}") > 0 and state not in offered:
                setting = f"offload_{state} {text}"
                yield Unoffered(setting, setting, f"offload of {listed(offered)} there", (layouts.pp > 1) == piped)


def _recomputed(layouts: Layouts, scenario: Scenario) -> Iterator[Unoffered]:
    """What selective recomputation makes again, and in how many layers full recomputation runs."""
    offers, chosen = scenario.software.offers, scenario.parallel.recompute_modules
    if chosen and offers.recompute_modules is not None:
        known = [entries()[name] for offered in offers.recompute_modules for name in named(offered)]  # some have two names
        for module in named(chosen):
            if entries()[module] not in known:
                setting = f"recompute_modules {module}"
                yield Unoffered(setting, setting, listed(offers.recompute_modules), np.ones(len(layouts), bool))
    if scenario.parallel.recompute_layers is not None and not offers.recompute_layers:
        yield Unoffered("recompute_layers", "recompute_layers", "full recomputation of all layers", np.ones(len(layouts), bool))


def _overlapped(layouts: Layouts, scenario: Scenario) -> Iterator[Unoffered]:
    """Experts' exchanges beside another micro-batch's passes, for which a framework pairs passes of its own."""
    offers = scenario.software.offers
    if not (scenario.software.experts.expert_overlap and scenario.model.num_experts):
        return
    for code, name in enumerate(RECOMPUTE):
        if name in offers.recompute and name not in offers.recompute_with_overlap:
            setting = f"recompute {name} with expert_overlap"
            yield Unoffered(setting, setting, f"{listed(offers.recompute_with_overlap)} there", layouts.recompute == code)
    if not offers.overlap_without_chunks:
        setting = "expert_overlap in a pipeline without chunks"
        yield Unoffered(setting, setting, "it at vpp > 1", (layouts.pp > 1) & (layouts.chunks == 1))


def _degrees(layouts: Layouts, offers: Offers, cp_kind: str) -> Iterator[Unoffered]:
    others = f"dp{''.join(f', {other}' for other in offers.parallelisms if other != 'etp')}"
    for name in ("tp", "cp", "pp", "ep"):
        if name not in offers.parallelisms:
            yield Unoffered(f"{name} > 1", f"{name} > 1", others, getattr(layouts, name) > 1)
    if cp_kind not in offers.cp_kinds and "cp" in offers.parallelisms:
        yield Unoffered(f"cp_kind {cp_kind}", f"cp_kind {cp_kind}", f"cp_kind {listed(offers.cp_kinds)}", layouts.cp > 1)
    instead = f"cp beside dp{''.join(f', {other}' for other in offers.cp_beside)}"
    for name in ("tp", "pp"):
        if {"cp", name} <= set(offers.parallelisms) and name not in offers.cp_beside:
            setting = f"cp > 1 with {name} > 1"
            yield Unoffered(setting, setting, instead, (layouts.cp > 1) & (getattr(layouts, name) > 1))
    if "etp" not in offers.parallelisms:
        yield Unoffered("etp other than tp", "etp other than tp", "etp = tp", (layouts.expert_tp != layouts.tp) & (layouts.ep > 1))


def _copied_keys(layouts: Layouts, scenario: Scenario) -> Iterator[Unoffered]:
    """Ranks that trade heads for parts of the sequence, more of them than there are keys."""
    if scenario.cp_kind == "ulysses" and not scenario.software.offers.cp_replicates_keys:
        setting = "cp_kind ulysses over more ranks than key-value heads"
        more = (layouts.cp > 1) & (local_keys(scenario.model, layouts.tp) < layouts.cp)
        yield Unoffered(setting, setting, "it where cp divides a rank's key-value heads", more)


def _stages(layouts: Layouts, offers: Offers) -> Iterator[Unoffered]:
    """ZeRO stages, which change nothing where a replica is alone, and what they share their shards with."""
    shared, hybrid = layouts.dp * layouts.cp > 1, layouts.shard_group != 0
    for piped, stages, text in ((False, offers.zero, "without pipelines"), (True, offers.zero_with_pipelines, "with pipelines")):
        for stage in sorted({0, 1, 2, 3} - set(stages)):
            where = (layouts.zero == stage) & shared & ((layouts.pp > 1) == piped)
            yield Unoffered(f"zero {stage} {text}", f"zero {stage} {text}", f"zero {listed(stages)} there", where)
    for stage in sorted({1, 2, 3} - set(offers.shard_group)):
        setting, instead = f"shard_group under zero {stage}", f"it under zero {listed(offers.shard_group)}"
        yield Unoffered(setting, setting, instead, hybrid & (layouts.zero == stage))


def _plus_plus(layouts: Layouts, scenario: Scenario) -> Iterator[Unoffered]:
    """What ZeRO++ sends less of."""
    offered, precision = scenario.software.offers.zero_plus_plus, scenario.software.precision
    asked = {
        "hpz": ("zero_hpz_partition_size", scenario.parallel.zero_hpz_partition_size > 1),
        "quantized_weights": ("zero_quantized_weights", precision.zero_quantized_weights),
        "quantized_gradients": ("zero_quantized_gradients", precision.zero_quantized_gradients),
    }
    for name, (setting, wanted) in asked.items():
        if wanted and name not in offered:
            yield Unoffered(setting, setting, f"of ZeRO++ {listed(offered)}", np.ones(len(layouts), bool))


def _modes(layouts: Layouts, offers: Offers) -> Iterator[Unoffered]:
    for name in PIPELINE_SCHEDULES:
        if name not in offers.schedules:
            where = (layouts.schedule == SCHEDULES.index(name)) & (layouts.pp > 1)
            yield Unoffered(f"schedule {name}", name, listed(offers.schedules), where)
    for code, name in enumerate(RECOMPUTE):
        if name not in offers.recompute:
            yield Unoffered(f"recompute {name}", f"recompute {name}", listed(offers.recompute), layouts.recompute == code)
    for value in (True, False):
        if value not in offers.sequence_parallel:
            setting = "sequence_parallel" if value else "tp > 1 without sequence_parallel"
            instead = "tp > 1 without it" if value else "tp > 1 with it"
            yield Unoffered(setting, setting, instead, (layouts.tp > 1) & (layouts.sequence_parallel == value))


def listed(values: Sequence[Any]) -> str:
    """The values in words."""
    return ", ".join(map(str, values)) or "none"


def settled(layouts: Layouts, offers: Offers) -> Layouts:
    """The layouts with ``AUTO`` replaced in zero and recompute.

    zero is 1, recompute selective; where the framework does not offer these, the highest stage, and the least mode.
    """
    alone, piped = (_nearest(USUAL_ZERO, sorted(stages, reverse=True)) for stages in (offers.zero, offers.zero_with_pipelines))
    mode = _nearest(USUAL_RECOMPUTE, sorted(map(RECOMPUTE.index, offers.recompute)))
    return replace(
        layouts,
        zero=np.where(layouts.zero == AUTO, np.where(layouts.pp > 1, piped, alone), layouts.zero),
        recompute=np.where(layouts.recompute == AUTO, mode, layouts.recompute),
    )


def usual_sequence_parallel(offers: Offers) -> bool:
    """What an automatic sequence_parallel is wherever tp > 1: on, where the framework offers it."""
    return True in offers.sequence_parallel


def _nearest(usual: int, offered: Sequence[int]) -> int:
    """The usual value where it is offered or nothing is, else the first that is."""
    return usual if usual in offered or not offered else offered[0]
