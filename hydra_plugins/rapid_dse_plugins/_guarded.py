"""What is asked of a file before Hydra loads it: the underscore keeps Hydra's plugin discovery from importing this."""

from __future__ import annotations

from pathlib import Path

from rapid_dse.common.bounded_files import require_few_aliases, require_file

MOST_BYTES = 1 << 20


def require_sound(folder: str, name: str) -> None:
    """Raises ``ValueError`` where the file is none that can be loaded within a bounded time and memory."""
    path = Path(folder, name)
    require_file(path, most=MOST_BYTES)
    try:
        require_few_aliases(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no text in UTF-8; allowed: YAML") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
