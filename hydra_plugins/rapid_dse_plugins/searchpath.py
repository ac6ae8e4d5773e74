"""Lets Hydra find ``sweeps/``, options that are files, and a user's own ``conf/`` and ``sweeps/`` in the current folder."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from hydra_plugins.rapid_dse_plugins.file_source import SCHEME


class RapidDseSearchPath(SearchPathPlugin):  # type: ignore[misc]
    """Appends to the search path of this program alone; other Hydra programs in the environment keep theirs."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from rapid_dse.sweep.places import GUARDED_SCHEME, home, search_paths

        main = next((item for item in search_path.get_path() if item.provider == "main"), None)
        if main is None or Path(main.path.removeprefix("file://")) != home() / "conf":
            return
        main.path = f"{GUARDED_SCHEME}://{home() / 'conf'}"
        for path in search_paths(Path.cwd()):
            search_path.append(provider="rapid_dse", path=f"{GUARDED_SCHEME}://{path}")
        search_path.append(provider="rapid_dse", path=f"{SCHEME}://.")
