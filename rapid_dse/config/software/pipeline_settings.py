"""How a framework splits a model over pipeline stages, and what a send costs it."""

from typing import Annotated, Literal

from rapid_dse.config.effects import TRAINED
from rapid_dse.config.fields import Seconds
from rapid_dse.config.model_kinds import NOT_SERVED
from rapid_dse.config.parts import SchemaPart


class PipelineSettings(SchemaPart):
    """The split of layers over stages, and the cost of a send with its receive."""

    # how layers are dealt out to stages: the ends counted as layers; balanced by parameters; evenly
    pipeline_split: Annotated[Literal["megatron", "balanced", "even"], NOT_SERVED] = "megatron"
    send_receive: Annotated[Seconds, TRAINED] = 2e-5  # host and synchronisation cost of one pipeline send with its receive
