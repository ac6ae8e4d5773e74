"""What the schema knows of a framework, in parts: what kernels fuse, what the host costs, what overlaps, what is kept, how it serves."""

from typing import Annotated, Self

from pydantic import model_validator

from rapid_dse.config.effects import TRAINED, Only, Where
from rapid_dse.config.measured_boxes import MeasuredRuns, ServedRuns
from rapid_dse.config.model_kinds import DECODED
from rapid_dse.config.parts import InParts
from rapid_dse.config.software.expert_settings import ExpertSettings
from rapid_dse.config.software.fitted import FREE, FREE_MEMORY, FREE_SERVING
from rapid_dse.config.software.host_settings import HostSettings
from rapid_dse.config.software.kernel_settings import KernelSettings, LibraryGeneration
from rapid_dse.config.software.memory_settings import MemorySettings
from rapid_dse.config.software.offers import Offers
from rapid_dse.config.software.overlap_settings import OverlapSettings
from rapid_dse.config.software.pipeline_settings import PipelineSettings
from rapid_dse.config.software.precision_settings import PrecisionSettings
from rapid_dse.config.software.serving_settings import ServingSettings

__all__ = ["FREE", "FREE_MEMORY", "FREE_SERVING", "LibraryGeneration", "Offers", "Software"]


class Software(InParts):
    """A framework's profile. Every number holds across models, sizes and chips; ``calibrate`` fits those that ``FREE`` lists.

    A file groups its keys in parts (``kernels: {attention: flash}``); overrides, tables and rows name them flat (``software.attention``).
    """

    name: str  # the option that the profile comes from
    # the measured runs behind it, which say how far its predictions may be trusted
    measured: Annotated[tuple[MeasuredRuns, ...], TRAINED] = ()
    served: Annotated[tuple[ServedRuns, ...], Only(Where("workload.kind", ("inference",))), DECODED] = ()  # the same of measured requests
    # Parameters of ``FREE`` and ``FREE_SERVING`` that single kernels or steps on one GPU have told alone, or that runs do not agree on:
    # fits of whole runs leave them as they are.
    known: tuple[str, ...] = ()
    # What its jobs can be launched with. What it does not offer is illegal; enforce=false prices it, and ``outside`` says so.
    offers: Offers = Offers()
    enforce: bool = True  # whether what the framework does not offer is refused; false: it is priced
    kernels: KernelSettings = KernelSettings()
    host: HostSettings = HostSettings()
    overlap: OverlapSettings = OverlapSettings()
    experts: ExpertSettings = ExpertSettings()
    precision: PrecisionSettings = PrecisionSettings()
    memory: MemorySettings = MemorySettings()
    pipeline: PipelineSettings = PipelineSettings()
    serving: ServingSettings = ServingSettings()

    @model_validator(mode="after")
    def _known_are_free(self) -> Self:
        names = [parameter.name for parameter in (*FREE, *FREE_SERVING)]
        for name in self.known:
            if name not in names:
                raise ValueError(f"known has {name}, which no fit changes; expected some of {', '.join(names)}")
        return self

    @property
    def peak_logit_bytes(self) -> float:
        """Bytes a logit that is alive at the peak, as ``logit_bytes`` says or by how the loss runs."""
        if self.memory.logit_bytes is not None:
            return self.memory.logit_bytes
        return {"whole": 10.0, "in_place": 6.0}.get(self.kernels.loss, 4.0)

    @property
    def update_traffic(self) -> float:
        """HBM bytes a parameter of clipping and the optimizer's step, with the states that ``optimizer_bytes`` says."""
        return self.kernels.optimizer_traffic * (2 * self.precision.optimizer_bytes + 10) / 34
