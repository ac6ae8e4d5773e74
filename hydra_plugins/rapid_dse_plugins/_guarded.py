"""What is asked of a file before Hydra loads it: the underscore keeps Hydra's plugin discovery from importing this."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from rapid_dse.common.bounded_files import MOST_BYTES_OF_OPTION, require_few_aliases, require_file
from rapid_dse.sweep.plain_files import HEADER


def require_sound(folder: str, name: str) -> None:
    """Raises ``ValueError`` where the file is none that can be loaded within a bounded time and memory."""
    path = Path(folder, name)
    require_file(path, most=MOST_BYTES_OF_OPTION)
    try:
        require_few_aliases(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no text in UTF-8; allowed: YAML") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def loaded(source: ConfigSource, name: str) -> ConfigResult | None:
    """What Hydra's own source of files gives of one of them; None where that has to say what is wrong, or libyaml is missing."""
    path, loader = Path(source.path, name), _loader()
    if loader is None or not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        found = yaml.load(text, Loader=loader)
    except yaml.YAMLError:
        return None
    if not isinstance(found, dict | list | None):
        return None
    header = ConfigSource._get_header_dict(text[:HEADER])
    config = OmegaConf.create({} if found is None else found)
    return ConfigResult(config=config, path=source.full_path(), provider=source.provider, header=header)


@cache
def _loader() -> Any:
    """OmegaConf's loader on libyaml's parser, which takes a seventh of the time; None where PyYAML comes without it."""
    if not yaml.__with_libyaml__:
        return None
    from yaml.cyaml import CParser

    class OnLibyaml(CParser, get_yaml_loader()):  # type: ignore[misc]
        def __init__(self, stream: str) -> None:
            CParser.__init__(self, stream)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)

    return OnLibyaml
