"""Folders of options and of named sweeps whose files are looked at before they are loaded."""

from __future__ import annotations

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.plugins.config_source import ConfigResult


class GuardedFolders(FileConfigSource):  # type: ignore[misc]
    """A folder of YAML files, which others may have written: no file is loaded that is none, is huge, or expands to more than it holds."""

    @staticmethod
    def scheme() -> str:
        return "rapid-dse-folder"  # as of rapid_dse.sweep.places, which every Hydra program would import

    def load_config(self, config_path: str) -> ConfigResult:
        """The option; ``ValueError`` where its file is not to be loaded."""
        from hydra_plugins.rapid_dse_plugins import _guarded  # only where this program composes

        name = self._normalize_file_name(config_path)
        _guarded.require_sound(self.path, name)
        return _guarded.loaded(self, name) or super().load_config(config_path)
