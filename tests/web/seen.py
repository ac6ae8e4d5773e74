"""What a look at a page would find: what is wider than the window, and texts that lie on one another or outside their picture."""

from __future__ import annotations

from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

_OVERLAPS = Path(__file__).with_name("overlaps.js").read_text(encoding="utf-8")
SERIOUS = ("serious", "critical")


def faults(page: Page) -> list[str]:
    """What overlaps, is cut, or is wider than the window."""
    found: list[str] = page.evaluate(_OVERLAPS)
    return found


def axe_faults(page: Page) -> list[str]:
    """What axe finds that is serious."""
    violations = Axe().run(page).response["violations"]
    return [f"{each['id']}: {node['html'][:200]}" for each in violations if each["impact"] in SERIOUS for node in each["nodes"]]
