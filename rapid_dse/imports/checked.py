"""An imported option, validated by the schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from rapid_dse.config.model import Model
from rapid_dse.config.scenario import explain
from rapid_dse.imports.reader import RUN


def checked_model(option: Mapping[str, Any]) -> Model:
    """The model of an option; ``ValueError`` with the key that is wrong, its value and what is allowed."""
    try:
        return Model.model_validate({key: value for key, value in option.items() if key != RUN})
    except ValidationError as error:
        raise ValueError(explain(error, "model")) from None
