"""Where ``conf/`` and ``sweeps/`` lie: a checkout's, else those that travel in the wheel."""

from __future__ import annotations

from functools import cache
from pathlib import Path

GUARDED_SCHEME = "rapid-dse-folder"  # of folders on Hydra's search path whose files are looked at before they are loaded


@cache
def home() -> Path:
    """The folder that holds ``conf/`` and ``sweeps/``: the checkout (it has a pyproject.toml too), else the package's own copy."""
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "conf" / "config.yaml").is_file():
        return checkout
    return package / "_data"


def search_paths(cwd: Path) -> list[Path]:
    """Folders in which Hydra looks for options beside ``home()/conf``, in order; ``sweeps/`` is a group of ``home()`` and of ``cwd``.

    A user's own ``conf/`` and ``sweeps/`` come last: they add options, and what the program ships keeps its meaning.
    """
    paths = [home()]
    if cwd.resolve() != home():
        paths += [cwd / "conf"] if (cwd / "conf").is_dir() else []
        paths += [cwd] if (cwd / "sweeps").is_dir() else []
    return paths
