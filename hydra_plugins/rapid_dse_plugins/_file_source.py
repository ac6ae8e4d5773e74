"""Reads a file that is an option: the underscore keeps Hydra's plugin discovery from importing this."""

from __future__ import annotations

from hydra.core.default_element import InputDefault
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from rapid_dse.imports.file_options import read_option
from rapid_dse.sweep.places import home


def load(config_path: str, source: ConfigSource) -> ConfigResult:
    """The option behind ``group/path``.

    Raises:
        ValueError: one line, where the file is missing or is no option of the group.
    """
    group, _, option = config_path.partition("/")
    found = read_option(group, option, home())
    defaults: list[InputDefault] = []
    return ConfigResult(
        config=OmegaConf.create(dict(found.option)),
        path=source.full_path(),
        provider=source.provider,
        header={"package": None},
        defaults_list=defaults,
    )
