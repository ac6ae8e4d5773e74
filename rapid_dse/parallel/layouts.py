"""Layouts as columns: how tp, cp, ep, dp and pp divide the GPUs, which divisions are legal, and why others are not.

This is the one place that knows the algebra of parallel degrees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import Distinct, FoundAlike
from rapid_dse.common.lazy_rows import LazyRows, derived
from rapid_dse.config.run import RECOMPUTE
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.parallel import schedules
from rapid_dse.parallel.context_rules import context_rules
from rapid_dse.parallel.expert_rules import adapter_rules, grid_rules, tokens_rule, width_rules
from rapid_dse.parallel.kind_rules import kind_rules, loop_rules
from rapid_dse.parallel.offered import unoffered
from rapid_dse.parallel.pipeline_rules import recompute_rules, schedule_rules, split_rules
from rapid_dse.parallel.zero_rules import zero_rules
from rapid_dse.parallel.zero_stages import Sharding

IntColumn = NDArray[np.int64]
BoolColumn = NDArray[np.bool_]

AUTO_SCHEDULE = -1  # until resolved: none at pp = 1, interleaved_1f1b where vpp > 1, else 1f1b
RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL = range(len(RECOMPUTE))

# Key of the configuration behind each column, in the order in which results list them.
KEYS: dict[str, str] = {
    "num_gpus": "hw.num_gpus",
    "global_batch_size": "workload.global_batch_size",
    "tp": "parallel.tp",
    "cp": "parallel.cp",
    "dp": "parallel.dp",
    "pp": "parallel.pp",
    "ep": "parallel.ep",
    "vpp": "parallel.vpp",
    "zero": "parallel.zero",
    "sequence_parallel": "parallel.sequence_parallel",
    "micro_batch_size": "parallel.micro_batch_size",
    "recompute": "parallel.recompute",
    "schedule": "parallel.schedule",
    "shard_group": "parallel.shard_group",
    "etp": "parallel.etp",
}
# The same for the columns of ``Engines``, the layouts of inference; pools of disaggregated systems last.
POOLS, POOL_DEGREES = ("prefill", "decode"), ("tp", "pp", "attention_dp", "etp", "ep", "workers")
SERVING_KEYS: dict[str, str] = {
    "num_gpus": "hw.num_gpus",
    **{name: f"parallel.{name}" for name in ("tp", "attention_dp", "cp", "dp", "pp", "ep", "etp")},
    **{name: f"workload.{name}" for name in ("batch_size", "concurrency", "request_rate", "num_prompts")},
    **{f"{pool}_{name}": f"parallel.{pool}.{name}" for pool in POOLS for name in POOL_DEGREES},
}
COLUMN_OF = {key: name for name, key in {**KEYS, **SERVING_KEYS}.items()}
CODES: dict[str, Sequence[str]] = {"recompute": RECOMPUTE, "schedule": SCHEDULES}
WHOLE_GROUP = 0  # the shard_group of layouts whose shards lie on all of dp · cp
USUAL_ETP = 0  # the etp of layouts that leave it to tp and ep (``expert_tp``)
# Columns that a table may leave out, with the value that they then have, which stands for null.
OPTIONAL: dict[str, int] = {"shard_group": WHOLE_GROUP, "etp": USUAL_ETP}
BEHIND_NULL: dict[str, str] = {"shard_group": "shards", "etp": "expert_tp"}  # properties with the number that such a column comes to

_DTYPES: Mapping[str, type] = {"sequence_parallel": np.bool_, "request_rate": np.float64}


@dataclass(frozen=True)
class Layouts(LazyRows):
    """One row a layout; every column has shape ``(n_layouts,)``.

    ``dp`` 0 stands for auto until ``resolved``; ``recompute`` and ``schedule`` index ``RECOMPUTE`` and ``SCHEDULES``;
    ``shard_group`` is how many GPUs share one copy of what ZeRO shards, 0 (``WHOLE_GROUP``) for all of dp · cp (``shards``).
    ``etp`` is how many GPUs share an expert, 0 (``USUAL_ETP``) for what tp and ep make of it (``expert_tp``).
    """

    num_gpus: IntColumn
    global_batch_size: IntColumn
    tp: IntColumn
    cp: IntColumn
    dp: IntColumn
    pp: IntColumn
    ep: IntColumn
    vpp: IntColumn
    zero: IntColumn
    sequence_parallel: BoolColumn
    micro_batch_size: IntColumn
    recompute: IntColumn
    schedule: IntColumn
    shard_group: IntColumn
    etp: IntColumn

    # Key of the configuration behind each column that tells layouts apart; values of columns that a table may leave out.
    keys: ClassVar[Mapping[str, str]] = KEYS
    optional: ClassVar[Mapping[str, int]] = OPTIONAL

    def take(self, rows: NDArray[Any] | slice) -> Self:
        """The layouts at ``rows`` (indices, a mask or a slice)."""
        if isinstance(rows, np.ndarray) and rows.dtype == bool:  # what is left out is to be forgotten
            return type(self)(*(getattr(self, name)[rows] for name in self.names()))
        return self if len(self) == 1 and isinstance(rows, np.ndarray) and len(rows) == 1 else self.at_rows(rows)

    @property
    def alike(self) -> Distinct:
        """Finds which layouts are alike in some columns; properties of one number a layout count as columns."""
        return Distinct(self, self._found_alike)

    @cached_property
    def _found_alike(self) -> FoundAlike:
        return FoundAlike()

    @derived
    def shards(self) -> IntColumn:
        """GPUs that share one copy of what ZeRO shards, ``(n_layouts,)``: ``shard_group``, or all of dp · cp."""
        shard_count: IntColumn = np.where(self.shard_group == WHOLE_GROUP, self.dp * self.cp, self.shard_group)
        return shard_count

    @derived
    def expert_tp(self) -> IntColumn:
        """GPUs that share an expert, ``(n_layouts,)``: ``etp``, or tp where tp · ep divides tp · cp · dp, else 1."""
        etp: IntColumn = np.where(self.etp == USUAL_ETP, self.usual_expert_tp, self.etp)
        return etp

    @property
    def usual_expert_tp(self) -> IntColumn:
        """``expert_tp`` where ``etp`` leaves it open, ``(n_layouts,)``."""
        return np.where(self.dp * self.cp % self.ep == 0, self.tp, 1)

    @derived
    def expert_shards(self) -> IntColumn:
        """GPUs that share one copy of what ZeRO shards of a GPU's experts, ``(n_layouts,)``; of all copies those among ``shards``."""
        return np.asarray(np.maximum(1, self.tp * self.shards // (self.expert_tp * self.ep)), np.int64)

    @derived
    def expert_copies(self) -> IntColumn:
        """GPUs that hold the same part of the same experts, ``(n_layouts,)``."""
        return np.asarray(np.maximum(1, self.tp * self.cp * self.dp // (self.expert_tp * self.ep)), np.int64)

    @derived
    def gathers_rows(self) -> BoolColumn:
        """Whether the GPUs that share an expert have tokens of their own, which all of them need, ``(n_layouts,)``.

        Without sequence parallelism a tensor-parallel group's ranks have the same tokens.
        """
        return np.asarray(self.sequence_parallel | (self.tp == 1), np.bool_)

    @cached_property
    def sharding(self) -> Sharding:
        """What ZeRO shards."""
        return Sharding.of(self.zero)

    @property
    def sharded_passes(self) -> IntColumn:
        """``zero`` as far as passes transfer something for it, ``(n_layouts,)``."""
        return self.sharding.in_passes

    @derived
    def chunks(self) -> IntColumn:
        """Chunks of layers that a stage holds, ``(n_layouts,)``: ``vpp``, or what the schedule has at vpp 1."""
        return np.asarray(np.maximum(self.vpp, schedules.CHUNKS.take(self.schedule)), np.int64)

    @derived
    def stage_map(self) -> IntColumn:
        """Which chunks a stage holds, ``(n_layouts,)``: indices into ``schedules.STAGE_MAPS``."""
        return schedules.MAPS.take(self.schedule)

    @derived
    def pairs_passes(self) -> BoolColumn:
        """Whether forward and backward passes run in pairs (``Schedule.pairs_passes``), ``(n_layouts,)``."""
        return schedules.PAIRS_PASSES.take(self.schedule)

    @derived
    def delays_weights(self) -> BoolColumn:  # whether all weight gradients run by themselves
        return schedules.SPLITS_BACKWARD.take(self.schedule) & ~self.pairs_passes

    @derived
    def overlaps_sends(self) -> BoolColumn:
        """Whether the schedule sends messages to other stages beside computation, ``(n_layouts,)``."""
        return schedules.OVERLAPS_SENDS.take(self.schedule)

    @derived
    def crossings(self) -> IntColumn:
        """How often a micro-batch goes from one rank of the pipeline to another, one way, ``(n_layouts,)``."""
        return schedules.by_map(self.stage_map, lambda count: count.crossings(self.pp, self.chunks))

    @derived
    def head_stage(self) -> IntColumn:
        """The pipeline stage that holds head and loss, ``(n_layouts,)``."""
        return schedules.by_map(self.stage_map, lambda stage: stage.head_stage(self.pp))

    @derived
    def num_micro_batches(self) -> IntColumn:
        """Micro-batches a step, ``(n_layouts,)``; at least 1."""
        per_pass: IntColumn = np.maximum(1, self.dp * self.micro_batch_size)
        micro_batches: IntColumn = np.maximum(1, self.global_batch_size // per_pass)
        return micro_batches

    @derived
    def accumulates(self) -> BoolColumn:
        """Whether a step has several micro-batches, whose gradients are added up, ``(n_layouts,)``."""
        return np.asarray(self.num_micro_batches > 1, np.bool_)

    def rules(self, scenario: Scenario) -> list[Rule]:
        """Every rule with the layouts that break it; see ``rules``."""
        late = [
            Rule(*tokens_rule(self, scenario)),
            *(Rule(*rule) for rule in adapter_rules(self, scenario)),
            *(Rule(*rule) for rule in (*recompute_rules(self, scenario), *loop_rules(self, scenario))),
        ]  # of what enumeration does not know at first
        return [*mathematics(self, scenario), *late, *_offer_rules(self, scenario)]

    @classmethod
    def of(cls, rows: Mapping[str, Sequence[Any] | NDArray[Any]]) -> Self:
        """Layouts from columns under their short names; ``recompute`` and ``schedule`` are codes; ``optional`` ones may be missing."""
        columns = {name: np.full(len(rows["tp"]), value) for name, value in cls.optional.items()} | dict(rows)
        return cls(**{f.name: np.ascontiguousarray(columns[f.name], dtype=_DTYPES.get(f.name, np.int64)) for f in fields(cls)})

    @classmethod
    def concatenate(cls, parts: Sequence[Layouts]) -> Self:
        """All rows of ``parts``, in order."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def resolved(layouts: Layouts) -> Layouts:
    """The same layouts with what is automatic settled.

    dp=auto is what the other degrees leave of the GPUs (0 where nothing comes out); an automatic schedule follows pp and vpp; a
    shard_group of all dp · cp GPUs is ``WHOLE_GROUP``, an etp that null would be ``USUAL_ETP``.
    """
    others = layouts.tp * layouts.cp * layouts.pp
    replicas = np.where(layouts.num_gpus % others == 0, layouts.num_gpus // others, 0)
    by_vpp = np.where(layouts.vpp > 1, schedules.USUAL_INTERLEAVED, schedules.USUAL)
    schedule = np.where(layouts.schedule == AUTO_SCHEDULE, by_vpp, layouts.schedule)
    dp = np.where(layouts.dp == 0, replicas, layouts.dp)
    shard_group = np.where(layouts.shard_group == dp * layouts.cp, WHOLE_GROUP, layouts.shard_group)
    settled = replace(layouts, dp=dp, schedule=np.where(layouts.pp == 1, schedules.NONE, schedule), shard_group=shard_group)
    usual = settled.etp == settled.usual_expert_tp
    return replace(settled, etp=np.where(usual, USUAL_ETP, settled.etp)) if usual.any() else settled


@dataclass(frozen=True)
class Rule:
    """A rule of legality: ``broken`` is a mask ``(n_layouts,)``; ``text`` is shown as a row's reason."""

    text: str
    broken: BoolColumn


def rules(layouts: Layouts, scenario: Scenario) -> list[Rule]:
    """Every rule with the layouts that break it, in the order in which they are reported; dp must be resolved.

    What the mathematics forbid comes first, then what the framework does not offer.
    """
    return layouts.rules(scenario)


def mathematics(layouts: Layouts, scenario: Scenario) -> list[Rule]:
    """The rules that hold whatever the framework."""
    model, seq_len = scenario.model, scenario.workload.seq_len
    tp, cp, dp, pp = (getattr(layouts, name) for name in ("tp", "cp", "dp", "pp"))
    batch, micro_batch = layouts.global_batch_size, layouts.micro_batch_size
    per_pass = np.maximum(1, dp * micro_batch)
    micro_batches = batch // per_pass
    said = model.sample_tokens is None  # the model's own length is filled up (``padded``)
    return [
        Rule("tp must divide num_attention_heads", model.num_attention_heads % tp != 0),
        *(Rule(*rule) for rule in width_rules(layouts, scenario)),
        *(Rule(*rule) for rule in kind_rules(layouts, scenario)),
        Rule("tp · cp · pp · dp must equal hw.num_gpus", (tp * cp * pp).astype(float) * dp != layouts.num_gpus),
        *(Rule(*rule) for rule in context_rules(layouts, scenario)),
        Rule("under sequence parallelism seq_len / cp must divide by tp", said & layouts.sequence_parallel & (seq_len % (cp * tp) != 0)),
        *(Rule(*rule) for rule in split_rules(layouts, scenario)),
        Rule("dp · micro_batch_size must divide global_batch_size", (batch % per_pass != 0) | (micro_batches == 0)),
        *(Rule(*rule) for rule in schedule_rules(layouts, micro_batches)),
        *(Rule(*rule) for rule in grid_rules(layouts, scenario)),
        Rule("train_tokens must be a step's tokens or more", batch * float(seq_len) > (scenario.workload.train_tokens or np.inf)),
        *(Rule(*rule) for rule in zero_rules(layouts, scenario)),
    ]


def _offer_rules(layouts: Layouts, scenario: Scenario) -> list[Rule]:
    software = scenario.software
    return [Rule(rule.rule(software.name), rule.where) for rule in unoffered(layouts, scenario)] if software.enforce else []


def broken_rules(layouts: Layouts, scenario: Scenario) -> tuple[IntColumn, list[str]]:
    """Which rule each layout breaks first.

    Returns:
        ``(n_layouts,)`` indices into the list of texts that comes with it, -1 where the layout is legal.
    """
    return first_broken(rules(layouts, scenario), len(layouts))


def first_broken(rules: Sequence[Rule], n_layouts: int) -> tuple[IntColumn, list[str]]:
    """``broken_rules`` of rules that are at hand."""
    masks = np.stack([rule.broken for rule in rules]) if n_layouts else np.zeros((len(rules), 0), bool)
    first = np.where(masks.any(axis=0), masks.argmax(axis=0), -1)
    return first.astype(np.int64), [rule.text for rule in rules]
