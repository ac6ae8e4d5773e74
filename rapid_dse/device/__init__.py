"""What an operator costs on a chip: one strategy a file, one contract, chosen by ``hw.operator_model``."""

from rapid_dse.config.hardware import Hardware
from rapid_dse.device.contract import AttentionCall, AttentionKernel, AttentionSizes, Direction, FloatArray, GroupedCall, OperatorModel
from rapid_dse.device.measured import Measured
from rapid_dse.device.roofline import Roofline
from rapid_dse.device.tiled import Tiled

OPERATOR_MODELS: dict[str, type[OperatorModel]] = {"roofline": Roofline, "tiled": Tiled, "measured": Measured}

__all__ = [
    "OPERATOR_MODELS",
    "AttentionCall",
    "AttentionKernel",
    "AttentionSizes",
    "Direction",
    "FloatArray",
    "GroupedCall",
    "OperatorModel",
    "operator_model",
]


def operator_model(hw: Hardware) -> OperatorModel:
    """The model that ``hw.operator_model`` names; ``ValueError`` where none has that name."""
    try:
        model = OPERATOR_MODELS[hw.operator_model]
    except KeyError:
        raise ValueError(f"hw.operator_model={hw.operator_model!r}; allowed: {', '.join(OPERATOR_MODELS)}") from None
    return model(hw)
