"""One composed configuration, validated: the scenario that a table of layouts is priced under."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ValidationError, model_validator
from pydantic_core import ErrorDetails

from rapid_dse.config.cluster import Cluster
from rapid_dse.config.effects import COMMAND, Only, Where, require_no_refused
from rapid_dse.config.fields import Frozen, Unit
from rapid_dse.config.hardware import PRECISION_BYTES, WEIGHTS_ALONE, FlashKernelName, Hardware
from rapid_dse.config.host_link import OFFLOADED
from rapid_dse.config.lora_names import ALL_LINEAR
from rapid_dse.config.model import Model
from rapid_dse.config.parts import group_of, keys_of, parts_of
from rapid_dse.config.run import Backend, Debug, Parallel, Search, Workload
from rapid_dse.config.sample_lengths import with_lengths, with_loop
from rapid_dse.config.software import Software
from rapid_dse.config.units import shortened

SWEPT = Only(Where(COMMAND, ("sweep",)))


BLOCK_SCALED = ("blackwell", "cdna4")  # architectures whose tensor cores scale blocks of 32 elements


class Scenario(Frozen):
    """Everything a trial depends on. A table of layouts shares all of it but ``parallel`` and the columns of ``Layouts``."""

    hw: Hardware
    cluster: Cluster = Cluster(name="reference")
    model: Model
    parallel: Parallel = Parallel()
    workload: Workload = Workload()
    software: Software
    backend: Backend = Backend()
    search: Annotated[Search, SWEPT] = Search()
    debug: Annotated[Debug, SWEPT] = Debug()

    @model_validator(mode="after")
    def _lengths_are_the_models(self) -> Self:
        # a model that says how long its samples are settles what the workload then holds
        self.__dict__["workload"] = with_lengths(self.model, self.workload)
        self.__dict__["software"] = with_loop(self.model, self.workload, self.software)
        return self

    @model_validator(mode="after")
    def _cluster_takes_memory(self) -> Self:
        memory, taken = self.hw.memory, self.cluster.memory_taken
        if taken and memory.usable > memory.capacity - taken:
            if taken >= memory.capacity:
                raise ValueError(f"cluster.memory_taken={taken:.10g}: {self.hw.name} has {memory.capacity:.10g} bytes; allowed: less")
            memory = memory.model_copy(update={"usable": memory.capacity - taken})
            self.__dict__["hw"] = self.hw.model_copy(update={"memory": memory})
        return self

    @model_validator(mode="after")
    def _inference_drops_nothing(self) -> Self:
        drops = self.model.of_kind.streams and self.model.drops_out(self.software.kernels.dropout)
        if self.workload.kind == "inference" and drops:
            self.__dict__["model"] = self.model.model_copy(update={"dropout": False})
        return self

    @model_validator(mode="after")
    def _chip_has_precision(self) -> Self:
        self.hw.peak_flops(self.stored_precision)
        return self

    @model_validator(mode="after")
    def _checkpoints_have_a_way(self) -> Self:
        if self.software.host.async_checkpoint and self.hw.host is None:
            raise ValueError(
                "software.async_checkpoint=true needs hw.host, the GPU's way to its host's memory; allowed: false, or hw.host.*"
            )
        return self

    @model_validator(mode="after")
    def _training_has_precision(self) -> Self:
        work, recipe = self.workload, self.software.precision.fp8_recipe
        if work.kind == "training" and work.precision in WEIGHTS_ALONE:
            raise ValueError(f"workload.precision={work.precision}: for inference alone; allowed in training: bf16, fp16, fp8, fp4, fp32")
        if not self.model.of_kind.decodes and work.precision in WEIGHTS_ALONE:
            raise ValueError(f"workload.precision={work.precision}: for models that decode; allowed: bf16, fp16, fp8, fp4, fp32, tf32")
        if work.kind == "training" and work.precision == "fp8" and recipe == "mxfp8" and self.hw.architecture not in BLOCK_SCALED:
            raise ValueError(
                f"software.fp8_recipe=mxfp8: {self.hw.name} has no products that scale blocks; allowed: another recipe, or a chip of "
                f"{', '.join(BLOCK_SCALED)}"
            )
        return self

    @model_validator(mode="after")
    def _positions_hold_the_request(self) -> Self:
        most, work = self.model.max_position_embeddings, self.workload
        if work.kind == "inference" and most is not None:
            longest = int(((work.prompt_len or 0) + (work.decode_len or 0)) * (1.0 + work.length_spread))
            if longest > most:
                spread = f", with workload.length_spread={work.length_spread:g} up to" if work.length_spread else " are"
                raise ValueError(
                    f"workload.prompt_len={work.prompt_len} and workload.decode_len={work.decode_len}{spread} {longest} tokens; "
                    f"allowed: up to model.max_position_embeddings={most} together"
                )
        return self

    @model_validator(mode="after")
    def _node_is_one_fact(self) -> Self:
        self.hw.require_one_node()
        return self

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> Self:
        require_no_refused(self)
        return self

    @model_validator(mode="after")
    def _adapters_have_modules(self) -> Self:
        has = self.model.linear_modules
        for name in self.workload.lora_targets:
            if name not in (*has, ALL_LINEAR):
                raise ValueError(f"workload.lora_targets: {name} is no module of {self.model.name}; it has {', '.join(has)}")
        return self

    @model_validator(mode="after")
    def _host_is_known(self) -> Self:
        for state in OFFLOADED:
            share = getattr(self.parallel, f"offload_{state}")
            if share > 0 and self.hw.host is None:
                raise ValueError(
                    f"parallel.offload_{state}={share:g}: hw.host is null; allowed: 0, or link_bandwidth and memory_bandwidth of hw.host"
                )
        return self

    @model_validator(mode="after")
    def _flash_kernel_runs(self) -> Self:
        wanted, built = self.software.kernels.flash_kernel, self.hw.attention_kernels
        if wanted is None or wanted == self.attention_kernel:
            return self
        if self.software.kernels.attention != "flash":
            raise ValueError(
                f"software.flash_kernel={wanted}: software.attention=unfused has none; allowed: null, or software.attention=flash"
            )
        if PRECISION_BYTES[self.workload.precision] > 2:
            raise ValueError(f"software.flash_kernel={wanted}: takes 16-bit operands; allowed under {self.workload.precision}: null")
        runs = ", ".join(built) if built else "null alone, with unfused attention"
        raise ValueError(f"software.flash_kernel={wanted}: not built for {self.hw.name}; allowed: {runs}")

    @property
    def stored_precision(self) -> str:
        """The precision of the workload; of requests on a chip without products of 4-bit floats that of 4-bit weights alone, which are
        widened to 16 bits on their way to the tensor cores."""
        four_bits = self.workload.kind == "inference" and self.model.of_kind.decodes and self.workload.precision == "fp4"
        return "int4" if four_bits and self.hw.tensor_flop_per_sm_clock.fp4 is None else self.workload.precision

    @property
    def cp_kind(self) -> Literal["ring", "ulysses"]:
        """What context-parallel ranks exchange: what is asked for; else the ring, or what the framework offers where it has none."""
        offered = self.software.offers.cp_kinds
        return self.parallel.cp_kind or ("ring" if "ring" in offered or not offered else offered[0])

    @property
    def narrow(self) -> Literal["fp8", "fp4"] | None:
        """What a training step's products run in below 16 bits; attention, router and head stay in 16 bits; None: in none."""
        precision = self.workload.precision
        return "fp8" if precision == "fp8" else "fp4" if precision == "fp4" else None

    @property
    def keeps_narrow(self) -> bool:
        """Whether weights and inputs of products are kept in fewer than 16 bits; NVFP4 is Transformer Engine's alone."""
        return self.narrow == "fp4" or (self.narrow == "fp8" and self.software.precision.keeps_fp8)

    @property
    def attention_kernel(self) -> FlashKernelName | Literal["fused_softmax", "unfused"]:
        """The kernels that compute attention.

        Flash kernels and the kernel of Megatron's fused softmax take 16-bit operands (their documentation: fp16 and bf16): under fp32
        and TF32 attention is batched products with PyTorch's own softmax between them, and its scores are written to memory. So they
        are on a chip that has none of the framework's flash kernels.
        """
        software = self.software
        if PRECISION_BYTES[self.workload.precision] > 2:
            return "unfused"
        wanted = (software.kernels.flash_kernel,) if software.kernels.flash_kernel else software.kernels.flash_kernels
        built = [kernel for kernel in self.hw.attention_kernels if kernel in wanted]
        if software.kernels.attention == "flash" and built:
            return built[0]
        return "fused_softmax" if software.kernels.fused_softmax else "unfused"


def parse(tree: Mapping[str, Any]) -> Scenario:
    """The scenario that a composed configuration describes.

    Raises:
        ValueError: one line with the first key that is wrong, its value, and what is allowed.
    """
    try:
        return Scenario.model_validate(tree)
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def explain(error: ValidationError, prefix: str = "") -> str:
    """One line: the key, its value, what is allowed, and the nearest valid spelling of a key that is unknown.

    ``prefix`` is the key of what was validated, where that was a part of the scenario.
    """
    first = error.errors(include_url=False)[0]
    inside = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "literal["))]
    path = [*prefix.split("."), *inside] if prefix else inside
    path = [part for part in path if part not in ("constrained-int", "constrained-float", "int", "bool", "float")]
    key = without_parts(".".join(path))
    if first["type"] == "extra_forbidden":
        return unknown_key(key, siblings(path))
    if first["type"] == "missing":
        return f"{key} is missing"
    value = first["input"]
    text = "" if isinstance(value, Mapping | BaseModel) or not key else f"={shortened(value)}"
    return f"{key}{text}: {_in_words(first)}".removeprefix(": ")


# What pydantic found wrong, by its type, as this program says it; ``{}`` is the bound.
_WORDS = {
    "greater_than_equal": ("ge", "too small; expected at least {}"),
    "greater_than": ("gt", "too small; expected more than {}"),
    "less_than_equal": ("le", "too large; expected at most {}"),
    "less_than": ("lt", "too large; expected less than {}"),
    "literal_error": ("expected", "expected one of {}"),
}
_KINDS = {
    "bool": "expected true or false",
    "int": "expected a whole number, such as 8",
    "string": "expected text",
    "tuple": "expected a list, such as [a,b]",
    "model": "expected keys with values",
    "dict": "expected keys with values",
}


def _in_words(error: ErrorDetails) -> str:
    """What is wrong with a value, and what is expected in its place."""
    kind, bounds = error["type"], error.get("ctx", {})
    if kind in _WORDS:
        name, words = _WORDS[kind]
        return words.format(f"{bounds[name]:,}" if isinstance(bounds[name], int) else bounds[name])
    if kind.startswith("float") or kind == "finite_number":
        return "not a valid number; expected a finite one, such as 0.8"
    message = error["msg"].removeprefix("Value error, ")
    return _KINDS.get(kind.split("_")[0], message[0].lower() + message[1:] if message.startswith("Input") else message)


def unknown_key(key: str, allowed: list[str]) -> str:
    """The line for a key that does not exist, with the nearest that does."""
    name = key.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{key}: no such key{hint} (allowed: {', '.join(sorted(allowed))})"


def siblings(path: list[str]) -> list[str]:
    """Names of the keys that stand beside ``path``'s last part in the schema."""
    model: type[BaseModel] = Scenario
    for part in path[:-1]:
        if part.isdigit() or part not in keys_of(model):
            continue
        part_model = _model_in(keys_of(model)[part].annotation)
        if part_model is None:
            break
        model = part_model
    return list(keys_of(model))


@lru_cache(maxsize=4096)
def without_parts(key: str) -> str:
    """The key of a path that may name parts of the schema: ``software.attention`` is the key ``software.attention``."""
    model: type[BaseModel] | None = Scenario
    names: list[str] = []
    for name in key.split("."):
        if model is not None and name in parts_of(model):
            continue
        names.append(name)
        if not name.isdigit():
            model = _model_in(keys_of(model)[name].annotation) if model is not None and name in keys_of(model) else None
    return ".".join(names)


@lru_cache(maxsize=4096)
def path_of(key: str) -> Sequence[str]:
    """The names on the way to a key, those of parts of the schema among them: software, kernels, attention."""
    section, *rest = key.split(".")
    model = _model_in(Scenario.model_fields[section].annotation) if section in Scenario.model_fields else None
    part = group_of(model).get(rest[0]) if model is not None and rest else None
    return [section, *([part] if part else []), *rest]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for arg in get_args(annotation) if (model := _model_in(arg)) is not None), None)


@lru_cache(maxsize=4096)
def known_key(key: str) -> bool:
    """Whether ``key``, dotted, is one of the schema's; indices of lists are any number."""
    model: type[BaseModel] | None = Scenario
    for part in key.split("."):
        if part.isdigit():
            continue
        if model is None or part not in keys_of(model):
            return False
        annotation = keys_of(model)[part].annotation
        if get_origin(annotation) is dict:
            return True  # its names are checked with its values
        model = _model_in(annotation)
    return True


def unit_of(key: str) -> str | None:
    """The SI unit in which the values of a dotted key are, a key of ``units.UNITS``; None where they are no quantity."""
    model: type[BaseModel] | None = Scenario
    unit: str | None = None
    for part in key.split("."):
        if model is None or part not in keys_of(model):
            continue  # an index of a list, or a name in a mapping
        info = keys_of(model)[part]
        unit = _unit_in((info.annotation, *info.metadata))
        model = _model_in(info.annotation)
    return unit


def _unit_in(parts: Iterable[Any]) -> str | None:
    for part in parts:
        inside = part.name if isinstance(part, Unit) else _unit_in((*get_args(part), *getattr(part, "__metadata__", ())))
        if inside is not None:
            return str(inside)
    return None


def canonical(part: BaseModel) -> str:
    """A text of the part that is equal for equal configurations, for hashing."""
    return json.dumps(part.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
