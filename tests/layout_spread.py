"""Layouts of every parallelism and schedule, alone and mixed, with scenarios that block: what the backends are held to each other on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from generated import ONE, scenario

from rapid_dse.config import Scenario
from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.parallel.enumeration import grid
from rapid_dse.parallel.layouts import Layouts, broken_rules

# A profile that hides nothing: each transfer is waited for.
BLOCKING: dict[str, Any] = {f"software__{name}_overlap": 0 for name in ("tp", "tp_backward", "cp", "dp", "pp", "parameter_gather")}


@dataclass(frozen=True)
class Case:
    """A layout under a chip and a model, with a schedule by name."""

    changes: tuple[tuple[str, int], ...]
    schedule: str = "1f1b"
    hw: str = "h100"
    model: str = "llama3_1_8b"
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return "-".join([self.hw, self.schedule, *(f"{key}{value}" for key, value in self.changes), *(str(v) for _, v in self.settings)])

    def degree(self, name: str) -> int:
        """A column's value, 1 where the case does not set it."""
        return dict(self.changes).get(name, 1)

    def scenario(self, backend: str, **more: Any) -> Scenario:
        """The scenario under a backend, blocking unless ``more`` says otherwise."""
        return scenario(self.hw, self.model, backend__name=backend, **(BLOCKING | dict(self.settings) | more))

    def layouts(self) -> Layouts:
        """The one layout; it must be legal."""
        columns = ONE | {key: [value] for key, value in self.changes} | {"schedule": [SCHEDULES.index(self.schedule)]}
        found = grid(columns)
        rule, texts = broken_rules(found, self.scenario("analytical"))
        assert rule[0] < 0, f"{self}: {texts[rule[0]]}"
        return found


def case(
    schedule: str = "1f1b", hw: str = "h100", model: str = "llama3_1_8b", settings: dict[str, Any] | None = None, **changes: int
) -> Case:
    """A case; recompute is 0 none, 1 selective, 2 full."""
    return Case(tuple(changes.items()), schedule, hw, model, tuple((settings or {}).items()))


LAYERS = {"model__num_hidden_layers": 16}


def _alone() -> list[Case]:
    tensor = [case(num_gpus=n, tp=n, sequence_parallel=sp, global_batch_size=4) for n in (2, 8) for sp in (0, 1)]
    context = [case(num_gpus=n, cp=n, global_batch_size=4, recompute=r) for n, r in ((2, 0), (8, 1))]
    context += [case(num_gpus=16, cp=16, global_batch_size=4, recompute=2, settings=LAYERS)]
    data = [case(num_gpus=n, zero=zero, global_batch_size=2 * n) for n in (4, 16) for zero in range(4)]
    piped = [case(name, num_gpus=pp, pp=pp, global_batch_size=m) for name in ("gpipe", "1f1b", "zero_bubble")
             for pp, m in ((2, 8), (4, 16), (8, 8))]  # fmt: skip
    chunked = [case("interleaved_1f1b", num_gpus=4, pp=4, vpp=v, global_batch_size=m) for v, m in ((2, 8), (4, 16), (8, 16))]
    bent = [case(name, num_gpus=pp, pp=pp, global_batch_size=m) for name in ("zb_v", "dualpipe_v", "zb_2p") for pp, m in ((2, 8), (8, 16))]
    return [case(num_gpus=1, global_batch_size=2), *tensor, *context, *data, *piped, *chunked, *bent]


TIED = {"model__tie_word_embeddings": True}


def _mixed() -> list[Case]:
    schedules = (("gpipe", 1), ("1f1b", 1), ("zero_bubble", 1), ("interleaved_1f1b", 2))
    full = [case(name, num_gpus=64, tp=8, sequence_parallel=1, pp=4, vpp=v, global_batch_size=16, zero=zero)
            for (name, v) in schedules for zero in (0, 3)]  # fmt: skip
    rings = [case(name, num_gpus=64, tp=2, sequence_parallel=1, cp=4, pp=4, vpp=v, global_batch_size=16, recompute=2,
                  settings=LAYERS) for name, v in schedules]  # fmt: skip
    uneven = [case(name, model=model, num_gpus=12, pp=6, global_batch_size=m, zero=zero) for name in ("gpipe", "1f1b", "zero_bubble")
              for model, m, zero in (("llama3_1_8b", 24, 2), ("llama2_7b", 16, 3))]  # fmt: skip
    others = [
        case(num_gpus=64, tp=16, sequence_parallel=1, pp=2, global_batch_size=8),
        case(num_gpus=32, tp=8, sequence_parallel=0, pp=2, global_batch_size=16),
        case(num_gpus=32, tp=2, sequence_parallel=1, pp=16, global_batch_size=32, recompute=2, settings=LAYERS),
        case(num_gpus=64, tp=8, sequence_parallel=1, cp=2, pp=2, global_batch_size=32, zero=3, settings=LAYERS),
        case(num_gpus=64, tp=8, sequence_parallel=1, pp=8, micro_batch_size=2, global_batch_size=16),
        case(num_gpus=16, tp=8, sequence_parallel=1, pp=2, global_batch_size=8, settings={"software__tp_backward_overlap": 0.2}),
        case(num_gpus=16, tp=8, pp=2, global_batch_size=8, settings={"software__tp_backward_overlap": 0.3}),
        case(hw="a100", num_gpus=64, tp=4, sequence_parallel=1, cp=2, pp=2, global_batch_size=32, zero=2, settings=LAYERS),
        case(hw="mi300x", num_gpus=32, tp=8, sequence_parallel=1, pp=2, global_batch_size=16),
        case(hw="gb200", num_gpus=144, tp=8, sequence_parallel=1, cp=2, pp=3, global_batch_size=36),
        case(hw="v100", num_gpus=32, tp=4, pp=2, global_batch_size=16, settings={"workload__precision": "fp16"}),
        case(num_gpus=16, cp=2, global_batch_size=16, zero=3, settings={"software__reduce_each_micro_batch": True}),
        case(num_gpus=32, tp=4, pp=4, global_batch_size=16, settings={"software__host_layer": 0.02}),
        case(num_gpus=32, tp=4, pp=4, global_batch_size=16, settings={"software__host_layer": 0.008, "software__launch_norm": 3}),
        case(num_gpus=16, zero=0, global_batch_size=32, settings={"cluster__name": "slow", "cluster__all_reduce_wait": 1e-3}),
        case(num_gpus=16, zero=2, global_batch_size=32, settings={"software__host_layer": 0.04}),
        case(num_gpus=16, zero=3, global_batch_size=32, settings={"software__host_layer": 0.04}),
        case(num_gpus=64, tp=8, pp=4, global_batch_size=16, settings={"parallel__order": ["tp", "pp", "cp", "ep", "dp"]}),
        case(num_gpus=16, tp=2, global_batch_size=32, zero=0, settings={"cluster__name": "rings", "cluster__trees": False}),
    ]
    # hybrid sharding: shards inside a node, over two nodes, over cp and dp, and none at all
    others += [case(num_gpus=32, zero=zero, shard_group=shards, global_batch_size=64) for zero in (1, 2, 3) for shards in (8, 16)]
    others += [
        case(num_gpus=64, tp=2, cp=2, pp=2, zero=3, shard_group=8, sequence_parallel=1, global_batch_size=32),
        case(num_gpus=16, zero=1, shard_group=1, global_batch_size=32),
    ]
    # one table for embedding and head, whose gradient first and last stage sum
    tied = [case(name, num_gpus=32, tp=tp, pp=4, vpp=v, global_batch_size=16, zero=zero, settings=TIED)
            for name, v, tp, zero in (("1f1b", 1, 4, 1), ("interleaved_1f1b", 2, 2, 0), ("zero_bubble", 1, 8, 2))]  # fmt: skip
    # chunks of unequal layers, by remainder and by what Megatron-LM leaves out for embedding and head (8 · 8 chunks of 126 layers)
    splits = (
        ("llama3_1_405b", 1, 16, 7, 32),
        ("gpt3_175b", 1, 16, 4, 32),
        ("llama3_1_8b", 1, 8, 3, 16),
        ("llama3_1_70b", 8, 8, 3, 8),
        ("llama2_7b", 1, 6, 2, 24),
        ("llama3_1_405b", 1, 8, 8, 16),
    )
    chunked = [case("interleaved_1f1b", model=model, num_gpus=tp * pp, tp=tp, sequence_parallel=int(tp > 1), pp=pp, vpp=v,
                    global_batch_size=m) for model, tp, pp, v, m in splits]  # fmt: skip
    return [*full, *rings, *uneven, *chunked, *_own_splits(), *others, *tied, *_bent()]


def _bent() -> list[Case]:
    """Two chunks a stage in a V, and stages that run on into their next step, mixed with all else."""
    found: list[Case] = []
    for name in ("zb_v", "dualpipe_v", "zb_2p"):
        found += [
            *(case(name, num_gpus=64, tp=8, sequence_parallel=1, pp=4, global_batch_size=16, zero=zero) for zero in (0, 3)),
            case(name, num_gpus=32, tp=4, pp=4, global_batch_size=16, settings=TIED),
            case(
                name,
                num_gpus=64,
                tp=2,
                sequence_parallel=1,
                cp=4,
                pp=4,
                global_batch_size=32,
                micro_batch_size=2,
                recompute=2,
                settings=LAYERS,
            ),
            case(name, num_gpus=12, pp=6, global_batch_size=24, zero=2),
            case(name, num_gpus=32, tp=4, pp=4, global_batch_size=16, settings={"software__host__host_layer": 0.008}),
            case(name, num_gpus=4, pp=4, global_batch_size=12, settings={"parallel__stage_layers": [6, 11, 8, 7]}),
            case(name, num_gpus=64, tp=8, sequence_parallel=1, pp=2, ep=4, global_batch_size=16, zero=2, settings=SHARED),
        ]
    # nothing hides behind weight gradients that run by themselves
    hides = {"software__tp_backward_overlap": 0.8}
    late = ("zero_bubble", "zb_v", "zb_2p")
    return found + [case(name, num_gpus=32, tp=8, sequence_parallel=1, pp=4, global_batch_size=8, settings=hides) for name in late]


def _own_splits() -> list[Case]:
    """Splits that a user has written, stages without layers as a framework's balance leaves them, chunks of embedding or loss alone."""
    own = [case(name, num_gpus=4, pp=4, global_batch_size=12, settings={"parallel__stage_layers": [6, 11, 8, 7]})
           for name in ("gpipe", "1f1b", "zero_bubble")]  # fmt: skip
    emptied = {"software__pipeline_split": "balanced", "model__num_hidden_layers": 6}
    return [
        *own,
        case("interleaved_1f1b", num_gpus=4, pp=4, vpp=3, global_batch_size=8, settings={"parallel__stage_layers": [5, 11, 9, 7]}),
        case("interleaved_1f1b", num_gpus=4, pp=4, vpp=2, global_batch_size=8, settings={"model__num_hidden_layers": 6}),
        case("1f1b", num_gpus=8, pp=8, global_batch_size=16, settings={"model__num_hidden_layers": 6}),
        *(case(name, num_gpus=16, tp=2, sequence_parallel=1, pp=8, global_batch_size=16, settings=emptied) for name in ("1f1b", "gpipe")),
        case("zero_bubble", num_gpus=16, pp=8, zero=3, global_batch_size=16, settings=emptied),
        case("1f1b", num_gpus=4, pp=4, global_batch_size=8, settings=emptied | {"parallel__stage_layers": [3, 0, 3, 0]}),
    ]


# Experts that nobody trains, small enough for every parallelism: 8 of them, 2 a token, and a shared one.
MIXTURE = {"model__num_experts": 8, "model__num_experts_per_tok": 2, "model__moe_intermediate_size": 3584}
SHARED = MIXTURE | {"model__n_shared_experts": 1}


LATENT: tuple[dict[str, int], ...] = (
    {"num_gpus": 8, "ep": 8},
    {"num_gpus": 8, "tp": 2, "ep": 8, "etp": 1, "sequence_parallel": 1, "recompute": 2},
    {"num_gpus": 8, "cp": 2, "ep": 4},
    {"num_gpus": 16, "pp": 2, "ep": 8},
)


def _experts() -> list[Case]:
    schedules = (("gpipe", 1), ("1f1b", 1), ("zero_bubble", 1), ("interleaved_1f1b", 2))
    alone = [case(num_gpus=8, ep=ep, global_batch_size=16, zero=zero, settings=MIXTURE) for ep in (1, 2, 8) for zero in (0, 1, 3)]
    rings = [case(num_gpus=16, cp=8, ep=ep, global_batch_size=4, recompute=2, settings=MIXTURE) for ep in (4, 8)]
    split = [case(num_gpus=16, tp=2, ep=8, sequence_parallel=sp, global_batch_size=16, recompute=r, settings=SHARED)
             for sp in (0, 1) for r in (0, 2)]  # fmt: skip
    full = [case(name, num_gpus=64, tp=8, sequence_parallel=1, pp=2, vpp=v, ep=4, global_batch_size=16, zero=zero, settings=SHARED)
            for name, v in schedules for zero in (1, 2)]  # fmt: skip
    others = [
        case(model="mixtral_8x7b", num_gpus=64, tp=4, sequence_parallel=1, cp=2, pp=2, ep=4, global_batch_size=16),
        case(model="qwen3_30b_a3b", num_gpus=64, ep=64, pp=1, global_batch_size=64),
        case(model="mixtral_8x7b", num_gpus=48, cp=4, ep=8, pp=3, global_batch_size=8),
        case(num_gpus=16, cp=2, ep=4, global_batch_size=16, zero=3, settings=MIXTURE | {"software__reduce_each_micro_batch": True}),
        *(case(num_gpus=64, tp=2, ep=4, zero=zero, shard_group=8, global_batch_size=64, settings=MIXTURE) for zero in (1, 3)),
        case(
            num_gpus=32,
            ep=2,
            zero=3,
            shard_group=8,
            global_batch_size=32,
            settings=MIXTURE | {"parallel__order": ["tp", "cp", "dp", "ep", "pp"]},
        ),
        case(num_gpus=32, tp=2, ep=2, global_batch_size=32, settings=MIXTURE | {"parallel__order": ["tp", "cp", "dp", "ep", "pp"]}),
        case(num_gpus=32, cp=2, pp=2, ep=4, global_batch_size=32, settings=MIXTURE | {"parallel__order": ["tp", "cp", "pp", "ep", "dp"]}),
    ]
    # experts on a grid of their own: ep beyond dp · cp, etp below tp, above it, and neither
    folded = [case(num_gpus=16, tp=4, ep=ep, etp=etp, sequence_parallel=1, pp=2, global_batch_size=8, zero=zero, settings=SHARED)
              for ep, etp in ((8, 1), (4, 2), (2, 1)) for zero in (0, 1)]  # fmt: skip
    folded += [case(num_gpus=16, tp=2, cp=2, ep=4, etp=etp, sequence_parallel=1, global_batch_size=8, recompute=2, settings=MIXTURE)
               for etp in (1, 4)]  # fmt: skip
    folded += [
        case(num_gpus=16, tp=1, ep=4, etp=2, global_batch_size=16, settings=MIXTURE),
        case(num_gpus=16, tp=4, ep=4, etp=1, sequence_parallel=1, zero=3, global_batch_size=16, settings=MIXTURE),
        case(num_gpus=32, tp=4, ep=8, etp=1, sequence_parallel=1, zero=1, shard_group=4, global_batch_size=16, settings=MIXTURE),
    ]
    wide = MIXTURE | {"model__num_experts": 16}
    each = [wide | {"software__dispatcher": name} for name in ("allgather", "deepep", "hybridep")]
    each += [wide | {"model__n_shared_experts": 1, "software__expert_overlap": True, "software__ep_overlap": share} for share in (0.2, 1.0)]
    each += [wide | {"workload__expert_imbalance": 1.7}, wide | {"software__cuda_graphs": "full_iteration"}]
    each += [wide | {"software__expert_overlap": True, "software__dispatcher": "deepep"}]
    ways = [case(num_gpus=16, ep=16, global_batch_size=32, settings=settings) for settings in each]
    ways += [case(num_gpus=16, tp=4, ep=8, etp=2, sequence_parallel=1, global_batch_size=8, recompute=2, settings=s) for s in each]
    latent = {"model__num_attention_heads": 16, "model__num_key_value_heads": 16, "model__hidden_size": 896}
    latent |= {"model__num_hidden_layers": 4, "model__first_k_dense_replace": 1, "model__num_experts": 16}
    ways += [case(model="deepseek_v3", global_batch_size=16, settings=latent, **row) for row in LATENT]
    return [*alone, *rings, *split, *full, *others, *folded, *ways]


WINDOWED = LAYERS | {
    "model__sliding_window": 1024,
    "model__layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "workload__seq_len": 16384,
}
DENSE_FIRST = LAYERS | SHARED | {"model__first_k_dense_replace": 3}
EVERY_OTHER = LAYERS | SHARED | {"model__interleave_moe_layer_step": 2}
TWO_KINDS = {"windows": WINDOWED, "dense first": DENSE_FIRST, "every other": EVERY_OTHER}


def _two_kinds() -> list[Case]:
    """Models whose layers are of two kinds, or of four, under every schedule."""
    schedules = (("gpipe", 1), ("1f1b", 1), ("zero_bubble", 1), ("interleaved_1f1b", 2))
    # ZB-H1's formula is exact where stages are alike; those with experts, which wait for their host, are less so (3 % of a step)
    ahead = {"zero_bubble": {"software__routing_norm": None}}
    piped = [case(name, num_gpus=32, tp=8, sequence_parallel=1, pp=4, vpp=v, global_batch_size=8, settings=settings | ahead.get(name, {}))
             for name, v in schedules for settings in TWO_KINDS.values()]  # fmt: skip
    return [
        *piped,
        case(num_gpus=8, ep=4, global_batch_size=16, zero=3, recompute=2, settings=WINDOWED | EVERY_OTHER),
        case(num_gpus=16, cp=8, pp=2, ep=4, global_batch_size=8, recompute=0, settings=WINDOWED | DENSE_FIRST),
        case("interleaved_1f1b", num_gpus=16, pp=4, vpp=2, ep=2, global_batch_size=32, zero=2, settings=DENSE_FIRST),
        case(num_gpus=8, pp=4, global_batch_size=16, settings=DENSE_FIRST | {"software__pipeline_split": "balanced"}),
    ]


SPREAD = [*_alone(), *_mixed(), *_experts(), *_two_kinds()]
EVENT_BACKENDS = ("hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened")
