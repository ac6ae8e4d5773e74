"""Lets an option of a group be a file: ``model=./config.json``, ``hw=./chip.yaml``."""

from __future__ import annotations

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource

SCHEME = "rapid-dse-file"


class FileOptions(ConfigSource):  # type: ignore[misc]
    """A source of options that are paths; on the search path of this program alone."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """The file as an option of its group; ``ValueError`` where it is none."""
        from hydra_plugins.rapid_dse_plugins import _file_source  # heavy: only where a file is read

        return _file_source.load(config_path, self)

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return False

    def is_config(self, config_path: str) -> bool:
        group, _, option = config_path.partition("/")
        if not option:
            return False
        from rapid_dse.imports.file_options import is_file_option

        return is_file_option(group, option)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []
