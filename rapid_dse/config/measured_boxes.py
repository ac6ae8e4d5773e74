"""What a framework's profile knows of the measured runs behind it: where they lie, and how far predictions of unseen ones were off."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rapid_dse.config.fields import Count, Frozen

Architecture = Literal["volta", "ampere", "ada", "hopper", "blackwell", "cdna3", "cdna4"]
Error = Annotated[float, Field(gt=0, lt=5)]
# How requests come. In a closed loop of requests of one length many may start and end together, for how many steps no load tells; mixed
# are loads whose requests differ in length, and open loops.
Sent = Literal["mixed", "one_length", "at_once", "batch"]
Least = Annotated[float, Field(gt=0, le=1e16)]
Span = tuple[Least, Least]  # the least and the largest


class MeasuredRuns(Frozen):
    """Measured runs of one framework that share chip, cluster, precision, kind of model, and whether tensor parallelism crosses nodes.

    Attributes:
        chip, architecture, cluster: ``hw.name``, ``hw.architecture`` and ``cluster.name``; ``reference``: a cluster that nobody named.
        precision: ``workload.precision``; bf16 stands for fp16 too, which run at the same speed.
        experts: mixtures of experts; else dense models.
        tp_over_nodes: tensor-parallel groups of more GPUs than a node has.
        runs, models: how many there are, and of how many models.
        error: the relative error of step time within which 68 % of them lay, each predicted by a fit that had not seen its model.
        zero: stages of the runs on which any has an effect (dp · cp > 1); schedule: those of the runs with pipelines; recompute: modes.
        tp, cp, pp, micro_batch, gpus, nodes, seq_len: the least and the largest of each; parameters: of the models' sizes.
    """

    chip: str
    architecture: Architecture | None = None
    cluster: str
    precision: Literal["bf16", "fp8", "fp32", "tf32"]
    experts: bool = False
    tp_over_nodes: bool = False
    runs: Count
    models: Count
    error: Error
    zero: tuple[Annotated[int, Field(ge=0, le=3)], ...] = ()
    recompute: Annotated[tuple[str, ...], Field(min_length=1)]
    schedule: tuple[str, ...] = ()
    tp: Span
    cp: Span
    pp: Span
    micro_batch: Span
    gpus: Span
    nodes: Span
    seq_len: Span
    parameters: Span

    @model_validator(mode="after")
    def _spans_rise(self) -> Self:
        for name in SPANS:
            least, largest = getattr(self, name)
            if least > largest:
                raise ValueError(f"{name}: [{least:g}, {largest:g}]; expected the least first")
        return self


class ServedRuns(Frozen):
    """Measured loads of one inference framework that share chip, precision and kind of model.

    Attributes:
        chip, architecture: ``hw.name`` and ``hw.architecture``; precision: ``workload.precision``, bf16 standing for fp16 too.
        experts, latent: mixtures of experts; latent attention. pools: prompts and tokens on engines of their own.
        loads, models: how many there are, and of how many models.
        errors: the relative error to expect of the time between tokens (of rates, or of requests' times, where that was not measured) of a
            model that the fit has not seen, by how requests come: of the loads' own errors within which 68 % lay, each model counting
            alike, leaning on what all frameworks' loads have told. error: of all of them, where a profile does not tell them apart.
        gpus: of an engine; concurrency: requests under way on an engine, where a load says so; prompt, generated: tokens; parameters: of
            the models' sizes; the least and the largest of each.
    """

    chip: str
    architecture: Architecture | None = None
    precision: str
    experts: bool = False
    latent: bool = False
    pools: bool = False
    loads: Count
    models: Count
    error: Error
    errors: Mapping[Sent, Error] = {}
    gpus: Span
    concurrency: Span = (1.0, 1.0)
    prompt: Span
    generated: Span
    parameters: Span


ROUNDED = 1e-9  # by how much a bound may be off: files have ten digits of it
SPANS = ("tp", "cp", "pp", "micro_batch", "gpus", "nodes", "seq_len", "parameters")


def alike(precision: str) -> str:
    """The precision that stands for this one in ``MeasuredRuns``: fp16 runs as fast as bf16."""
    return "bf16" if precision == "fp16" else precision
