"""What the schema knows of a run: layout, workload, backend, search."""

import re
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, field_validator, model_validator

from rapid_dse.config.effects import COMMAND, TRAINED, Only, Where
from rapid_dse.config.fields import WHOLE, Count, CountOrZero, Degree, Frozen, Share, ShareOrPercent, ShareOrZero, Tokens
from rapid_dse.config.hardware import KvPrecision, Parallelism, Precision
from rapid_dse.config.lora_names import ALL_LINEAR, HUGGING_FACE_MODULES, MEGATRON_MODULES, LoraTarget
from rapid_dse.config.model_kinds import NOT_SERVED, ONE_PASS
from rapid_dse.config.recompute_entries import ModuleSum
from rapid_dse.config.schedule_names import ScheduleName

RECOMPUTE = ("none", "selective", "full")
ORDER: tuple[Parallelism, ...] = ("tp", "cp", "ep", "dp", "pp")

# Rows of the busiest rank's experts over the mean, of routers that a balancing loss trains; little above the least that pairs of runs show,
# of one recipe with routing as it is learned and forced to be even. Mixtral 8x22B 1.07 to 1.08 (Megatron-MoE-ModelZoo), Olmo-core's 64
# experts 1.20 (Ai2, 2026); Qwen3, early in training, 1.67 to 1.83 (ModelZoo at four lengths of sequences; Megatron Bridge's cards).
LEARNED_IMBALANCE = 1.1

EVENT_DRIVEN = ("hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened")

# Where settings have an effect; what is said elsewhere is in effects.py.
INFERENCE = Only(Where("workload.kind", ("inference",)), refused=True)
TRAINING = Only(Where("workload.kind", ("training",)), refused=True)
LENGTH = Only(Where("workload.kind", ("training",)), Where("model.kind", ONE_PASS), refused=True)
SIMULATED = Only(Where("backend.name", EVENT_DRIVEN), Where("search.refine"))
REFINED = Only(Where("search.refine"))
EXPERTS = Only(Where("model.num_experts"))
EVERYWHERE = Only()
LORA = Only(Where("workload.trainable", ("lora",)), refused=True)
STUDY = Only(Where("search.name", ("optuna",)))

# YAML reads the bare words none and null alike.
_NoneWord = BeforeValidator(lambda value: "none" if value is None else value)


GemmSharding = Literal["row", "column", "2d", "2.5d"]  # how one product is divided over tp GPUs: parallel/product_grid.py


class Pool(Frozen):
    """One of the two pools of a disaggregated system: the layout of its engines, and how many engines (``workers``) it has.

    null: 1; of ``etp`` what makes etp · ep the GPUs of a stage.
    """

    tp: Degree | None = None  # tensor parallelism of an engine of the pool
    pp: Degree | None = None  # its pipeline stages
    attention_dp: Degree | None = None  # copies of attention in it
    etp: Degree | None = None
    ep: Degree | None = None  # expert parallelism in it
    workers: Degree | None = None


class Parallel(Frozen):
    """One layout.

    ``dp`` auto is what the other degrees leave of hw.num_gpus; ``sequence_parallel`` null is tp > 1; ``schedule`` null is 1f1b where
    pp > 1 (interleaved_1f1b where vpp > 1 too), none where pp = 1. ``zero`` auto is 1, ``recompute`` auto selective; where the framework
    does not offer these (software.offers), the highest stage and the least mode that it does; ``sequence_parallel`` null likewise.
    ``shard_group`` is how many GPUs share one copy of what ZeRO shards
    (hybrid sharding); the copies of several such groups are kept equal by an all-reduce of their gradients. null: all of dp · cp.
    ``zero_hpz_partition_size``: ZeRO++'s hpZ: so many neighbours hold a second copy of the weights, from which backward passes gather.
    ``cp_kind``: what context-parallel ranks exchange around attention: keys and values go round a ring, or heads are traded for parts of
    the sequence and back by all-to-alls (ulysses). null: ring, or what the framework offers where it has none (software.offers).
    ``etp`` is how many GPUs share an expert, of the same ranks as tp, cp and dp; null: tp where tp · ep divides tp · cp · dp, else 1.
    ``stage_layers`` are the layers of each pipeline stage, first to last, that add up to num_hidden_layers: [10,12,12,10], in tables the
    text 10,12,12,10; null is the framework's own split. A stage's vpp chunks share them as evenly as they go.
    ``recompute_modules``: what selective recomputation makes again in place of the framework's own, a sum such as layernorm+moe_act
    (Megatron Core's --recompute-modules); null: ``software.selective_recompute``. ``recompute_layers``: how many layers of each pipeline
    stage full recomputation runs again, the others keeping all (Megatron Core's --recompute-num-layers of the method block); null: all.
    ``offload_activations``, ``offload_optimizer``, ``offload_weights``: the share, 0 to 1, of what layers keep for the backward pass, of
    the optimizer's states, and of the layers' weights that lies in the host's memory.

    Of inference: an engine has tp · attention_dp · cp · pp GPUs, and ``dp`` engines serve alike. ``attention_dp`` copies of attention, each
    cut over tp, share the engine's requests; null: 1. Experts cut the same GPUs another way: etp · ep = tp · attention_dp · cp, an expert
    over ``etp`` GPUs; null: what makes it so. ``prefill`` and ``decode`` are pools of engines of their own, in place of the degrees above.
    """

    tp: Degree = 1  # tensor parallelism: GPUs that share each matrix product
    cp: Degree = 1  # context parallelism: GPUs that share each sequence
    cp_kind: Annotated[Literal["ring", "ulysses"] | None, TRAINING] = None  # what context-parallel ranks exchange
    dp: Degree | Literal["auto"] = "auto"
    pp: Degree = 1  # pipeline stages
    ep: Degree = 1  # expert parallelism: groups that share the experts
    vpp: Annotated[Degree, TRAINING] = 1  # chunks of layers that each pipeline stage holds
    zero: Annotated[Annotated[int, WHOLE, Field(ge=0, le=3)] | Literal["auto"], TRAINING] = "auto"
    sequence_parallel: Annotated[bool | None, TRAINING] = None
    micro_batch_size: Annotated[Degree, TRAINING] = 1  # sequences of a micro-batch
    recompute: Annotated[Annotated[Literal["none", "selective", "full", "auto"], _NoneWord], TRAINING] = "auto"
    recompute_modules: Annotated[ModuleSum | None, TRAINING] = None
    recompute_layers: Annotated[Count | None, TRAINING] = None
    schedule: Annotated[ScheduleName | None, TRAINING] = None
    shard_group: Annotated[Degree | None, TRAINING] = None
    zero_hpz_partition_size: Annotated[Degree, TRAINING] = 1  # GPUs that share a second copy of the weights (ZeRO++); 1: there is none
    etp: Annotated[Degree | None, EXPERTS] = None
    order: Annotated[tuple[Parallelism, ...], NOT_SERVED] = ORDER  # which parallelism has neighbouring GPUs, inner to outer
    stage_layers: Annotated[tuple[CountOrZero, ...] | None, TRAINING] = None
    offload_activations: Annotated[ShareOrZero, TRAINING] = 0.0
    offload_optimizer: Annotated[ShareOrZero, TRAINING] = 0.0
    offload_weights: Annotated[ShareOrZero, TRAINING] = 0.0
    attention_dp: Annotated[Degree | None, INFERENCE] = None
    gemm_sharding: Annotated[GemmSharding, Only(Where("model.kind", ("gemm",)), refused=True)] = "row"  # of one product over tp
    prefill: Annotated[Pool, INFERENCE] = Pool()
    decode: Annotated[Pool, INFERENCE] = Pool()

    @field_validator("stage_layers", mode="before")
    @classmethod
    def _counted(cls, layers: Any) -> Any:
        # Tables write the split as one text, of one stage as one number.
        if isinstance(layers, str):
            parts = [part.strip() for part in layers.split(",")]
            if not all(part.isascii() and part.isdigit() for part in parts):
                raise ValueError(f"{layers!r} is no split; allowed: layers of each stage, as [10,12,12,10]")
            return [int(part) for part in parts]
        return (layers,) if isinstance(layers, int) and not isinstance(layers, bool) else layers

    @field_validator("order", mode="before")
    @classmethod
    def _listed(cls, order: Any) -> Any:
        # Tables of results write the order as one text.
        return [part.strip() for part in order.split(",")] if isinstance(order, str) else order

    @field_validator("order")
    @classmethod
    def _a_permutation(cls, order: tuple[str, ...]) -> tuple[str, ...]:
        if sorted(order) != sorted(ORDER):
            raise ValueError(f"{list(order)} is no order; allowed: each of {', '.join(ORDER)} once, inner to outer")
        return order


_AMOUNTS = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def _amount(value: Any) -> Any:
    """Tokens of a run as people write them: 15T is 15e12, 300B is 300e9."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMBT])", value.strip()) if isinstance(value, str) else None
    return value if match is None else float(match[1]) * _AMOUNTS[match[2]]


class Workload(Frozen):
    """What is asked for. ``seq_len``, ``global_batch_size`` (sequences), ``train_tokens`` (of the whole run, as 15T; null: a step alone),
    ``packing`` and ``trainable`` with what stands beside it are training's; all else but the precision is inference's.

    At most one of ``batch_size`` (a static batch: so many requests start and end together), ``concurrency`` (closed loop: so many requests
    are under way, each that ends is followed by the next) and ``request_rate`` (open loop: requests arrive at random, so many a second),
    each of the whole system; none: all requests at once, of which as many run as fit. ``prompt_len`` and ``decode_len`` are mean tokens of
    a request, those that come from ``prefix_hit`` (the share of the prompt that is found in a cache of prefixes) included; lengths are
    uniform in mean · (1 ± ``length_spread``). ``num_prompts`` requests are sent in all: the burst that opens the run and the tail that
    ends it count; null: the steady state, in a closed loop with the burst of ten for each request under way. ``kv_precision`` null: the
    framework's default. ``draft_tokens`` are proposed at each step of speculative decoding, and each is accepted with
    ``draft_acceptance`` where those before it were.

    ``packing`` is the mean of the squared lengths of the documents that are packed into a sequence over its squared length; attention goes
    over each document by itself. 1: a sequence is one document; of four equal ones it is 1/4.

    ``trainable`` lora: all weights are frozen, and low-rank adapters beside the modules of ``lora_targets`` are trained (Hu et al., arXiv
    2106.09685), of rank ``lora_rank``. Frozen weights have no gradients and no optimizer states. The targets are Hugging Face's modules
    (PEFT's target_modules; all-linear: all of them) or Megatron Core's (linear_qkv: one adapter for queries, keys and values); in tables
    the text q_proj,v_proj.

    ``expert_imbalance`` is the rows of the busiest rank's experts over the mean (1: balanced); null: in training what routers that learn
    have at least (``LEARNED_IMBALANCE``), in inference what comes of tokens that favour some experts (``EVENNESS`` of
    simulate/inference/products.py). ``expert_capacity`` is how many times the mean an expert takes at most: tokens beyond that are dropped,
    and experts with fewer are filled up; null: none is dropped.
    """

    kind: Literal["training", "inference"] = "training"  # what is run
    seq_len: Annotated[Tokens, LENGTH] = 8192
    global_batch_size: Annotated[Count, TRAINING] = 1024
    train_tokens: Annotated[Annotated[float, BeforeValidator(_amount), Field(ge=1, le=1e18)] | None, TRAINING] = None
    precision: Precision = "bf16"  # of matrix products
    packing: Annotated[Share, TRAINING] = 1.0  # squared lengths packed into a sequence over its squared length
    trainable: Annotated[Literal["full", "lora"], TRAINING] = "full"  # all weights, or low-rank adapters beside frozen ones
    lora_rank: Annotated[Count, LORA] = 16  # columns between an adapter's two matrices
    lora_targets: Annotated[tuple[LoraTarget, ...], LORA] = (ALL_LINEAR,)  # modules that have an adapter
    expert_imbalance: Annotated[Annotated[float, Field(ge=1, le=1e6)] | None, EXPERTS] = None
    expert_capacity: Annotated[Annotated[float, Field(ge=0.01, le=1e6)] | None, EXPERTS] = None
    batch_size: Annotated[Count | None, INFERENCE] = None
    concurrency: Annotated[Count | None, INFERENCE] = None
    request_rate: Annotated[Annotated[float, Field(ge=1e-6, le=1e9)] | None, INFERENCE] = None
    prompt_len: Annotated[Tokens | None, INFERENCE] = None
    decode_len: Annotated[Tokens | None, INFERENCE] = None
    length_spread: Annotated[float, Field(ge=0, le=1), INFERENCE] = 0.0
    num_prompts: Annotated[Count | None, INFERENCE] = None
    kv_precision: Annotated[KvPrecision | None, INFERENCE] = None
    draft_tokens: Annotated[Annotated[int, WHOLE, Field(ge=1, le=64)] | None, INFERENCE] = None
    draft_acceptance: Annotated[Annotated[float, Field(ge=0, le=1)] | None, INFERENCE] = None
    prefix_hit: Annotated[float, Field(ge=0, lt=1), INFERENCE] = 0.0

    @field_validator("lora_targets", mode="before")
    @classmethod
    def _listed(cls, targets: Any) -> Any:
        # Tables write them as one text.
        return [part.strip() for part in targets.split(",")] if isinstance(targets, str) else targets

    @field_validator("lora_targets")
    @classmethod
    def _of_one_library(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        mine, megatrons = (
            [library for library in targets if library in names] for names in ((ALL_LINEAR, *HUGGING_FACE_MODULES), MEGATRON_MODULES)
        )
        if not targets:
            raise ValueError("[] adapts nothing; allowed: all-linear, or modules such as [q_proj,v_proj]")
        if (mine and megatrons) or (ALL_LINEAR in targets and len(targets) > 1):
            raise ValueError(
                f"{','.join(targets)} adapts a product twice; allowed: all-linear alone, modules of Hugging Face alone (as q_proj), "
                "or of Megatron Core alone (as linear_qkv)"
            )
        return tuple(sorted(set(targets)))

    @model_validator(mode="after")
    def _drafts_are_accepted(self) -> Self:
        if self.draft_tokens is not None and self.draft_acceptance is None:
            raise ValueError(f"draft_tokens={self.draft_tokens} needs draft_acceptance, the share of drafts that are accepted: 0 to 1")
        if self.draft_acceptance is not None and self.draft_tokens is None:
            raise ValueError(f"draft_acceptance={self.draft_acceptance:g} needs draft_tokens, the drafts of a step: 1 to 64")
        return self

    @model_validator(mode="after")
    def _has_lengths(self) -> Self:
        if self.kind == "inference":
            for name in ("prompt_len", "decode_len"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name} is null; inference needs it: tokens of a request, as 1024")
        return self

    @property
    def document_len(self) -> float:
        """Tokens of each of as many equal documents as make attention over them what it is: ``packing`` of a sequence."""
        return self.packing * self.seq_len

    @property
    def trains_all(self) -> bool:
        """Whether every weight is trained; else adapters alone are."""
        return self.trainable == "full"

    @property
    def lengths(self) -> tuple[int, int]:
        """Mean tokens of a request: its prompt, and what is generated. Of inference alone."""
        assert self.prompt_len is not None
        assert self.decode_len is not None
        return self.prompt_len, self.decode_len

    def expert_load(self, ep: NDArray[np.int64]) -> NDArray[np.float64]:
        """Rows of the busiest rank's experts over the mean, by the number of ranks that the experts are spread over; a rank that holds
        them all has the mean."""
        if self.expert_capacity is not None:
            return np.full(len(ep), self.expert_capacity)
        usual = LEARNED_IMBALANCE if self.kind == "training" else 1.0
        return np.where(ep > 1, usual if self.expert_imbalance is None else self.expert_imbalance, 1.0)


class AstraSim(Frozen):
    """``binary``: the user's own ASTRA-sim; null: the environment's ASTRA_SIM_BIN. ``timeout`` in seconds."""

    binary: str | None = None
    timeout: Annotated[float, Field(ge=1e-3, le=1e7)] = 600.0


class Artifacts(Frozen):
    """What a run leaves under output/.

    ``persist``: ASTRA-sim's traces, network and system files, and what each link carried; ``graphs``: drawings of the graphs;
    ``pictures``: pictures of the runs and text dumps of the traces; ``timeline``: a Chrome trace, of a single analytical trial too.
    """

    persist: Annotated[bool, SIMULATED] = False
    graphs: Annotated[bool, SIMULATED] = False
    pictures: Annotated[bool, SIMULATED] = False
    timeline: Annotated[bool, Only(Where("backend.name", EVENT_DRIVEN), Where(COMMAND, ("trial",)), Where("search.refine"))] = False

    @property
    def wanted(self) -> bool:
        """Whether anything is to be kept."""
        return self.persist or self.graphs or self.pictures or self.timeline


class Backend(Frozen):
    """How a trial is priced.

    ``streams``: communication streams of a rank; above 1, transfers that hide behind others have streams of their own. null: 1 where
    the network follows ASTRA-sim's rules (congestion_aware, congestion_unaware), else as many as the software profile hides.
    """

    # closed forms, or a simulated network
    name: Literal["analytical", "hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened"] = "analytical"
    engine: Annotated[Literal["builtin", "astrasim"], SIMULATED] = "builtin"  # what runs the event-driven network
    # whose rules its links follow: ASTRA-sim's with or without congestion, fair shares of links, or none that wait
    network: Annotated[Literal["congestion_aware", "congestion_unaware", "fair", "ideal"], SIMULATED] = "congestion_aware"
    streams: Annotated[Annotated[int, WHOLE, Field(ge=1, le=4)] | None, SIMULATED, TRAINED] = None
    astrasim: Annotated[AstraSim, Only(Where("backend.engine", ("astrasim",)))] = AstraSim()
    artifacts: Artifacts = Artifacts()


class Search(Frozen):
    """How a space is searched. ``study`` null: the sweep's name, else hw-model-<hash of the base configuration>.

    ``space`` is what a sweep file sweeps: a key or group, and its values (a list, or "all"); ``zip: {key: list, key: list}`` pairs them.
    Of an Optuna study: ``n_trials`` is its total; ``batch`` trials are asked together and told together, ``enqueue`` layouts that are
    known to be good go first; ``prune`` leaves out what cannot meet the constraints and what a lower bound proves beaten (null: the
    latter with event-driven backends alone).
    ``constraints`` hold beside fits, which always holds; ``headroom`` is the share of usable memory that must stay free beside the peak.
    ``trust``, of the command line alone (``--trust``), lets files set where results go, the storage, what is run, and read the environment.
    Of the ranked table: ``top`` rows; ``best_per`` is a key of whose values the best row each is shown; ``each`` gives every layout a
    line, where else one stands for all that no prediction can tell apart.
    """

    name: Literal["grid", "optuna"] = "grid"  # every combination, or an Optuna study
    study: str | None = None
    space: dict[str, Any] = {}  # noqa: RUF012 pydantic copies it
    n_trials: Annotated[Count, STUDY] = 100
    sampler: Annotated[Literal["tpe", "nsga2", "nsga3", "cmaes", "random", "brute_force"], STUDY] = "tpe"  # which sampler proposes trials
    objectives: tuple[str, ...] = ("step_time_s",)  # result columns that rank; a leading - maximises
    constraints: tuple[str, ...] = ("fits",)
    seed: Annotated[int, WHOLE, Field(ge=0, le=2**32 - 1), STUDY] = 0  # of the sampler
    batch: Annotated[Count, STUDY] = 10
    enqueue: Annotated[CountOrZero, STUDY] = 4
    prune: Annotated[bool | None, STUDY] = None
    storage: Annotated[str | None, STUDY] = None  # database URL of the study; null: a journal in the study's folder
    jobs: Annotated[int, WHOLE, Field(ge=-1, le=2**20)] = -1  # processes; -1: as many as pay
    launcher: Literal["loky", "dask", "ray"] = "loky"  # what runs the processes
    launcher_address: str | None = None  # scheduler that dask or ray connects to; null: one on this machine
    refine: CountOrZero = 0  # so many of the best rows are priced again
    # by this backend
    refine_backend: Annotated[Literal["hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened"], REFINED] = "hybrid"
    fail_fast: bool = False  # whether the first row with an error ends the sweep
    trust: Annotated[bool, EVERYWHERE] = False
    results_dir: str = "results"  # folder of the studies
    headroom: ShareOrPercent = 0.0
    top: Count = 20
    best_per: str | None = None
    each: bool = False


class Debug(Frozen):
    """``hw_snapshots`` writes each distinct resolved hardware under dbg_hw_conf/."""

    hw_snapshots: bool = False
