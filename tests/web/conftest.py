"""A real Chromium, the page as its command serves it, and what every page is held to: no error, no request beyond this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402
from program import done, start  # noqa: E402

expect.set_options(timeout=20_000)
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
WIDTHS, SCHEMES = (1400, 800, 390), ("light", "dark")
SHOTS = ROOT / "output" / "web"
GRID = (
    *("-m", "hw=h100,a100", "model=llama3_1_8b", "hw.num_gpus=16,32", "workload.global_batch_size=128", "workload.train_tokens=1e12"),
    *("parallel.tp=1,2,4,8", "parallel.pp=1,2,3", "parallel.zero=0,1", "parallel.recompute=none,full", "parallel.micro_batch_size=1,4"),
)
Opened = Callable[..., Page]


def chromium() -> str | None:
    """The system's Chromium."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium, or CHROMIUM=its path")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=list(FLAGS), headless=True)
        yield found
        found.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results/small, results/serving and results/<script>."""
    where = tmp_path_factory.mktemp("web")
    done(where, *GRID, "search.study=small")
    serving = ("workload=inference", "hw=h100", "model=llama3_1_8b", "hw.num_gpus=8", "parallel.tp=1,2,4,8")
    done(where, "-m", *serving, "workload.concurrency=1,4,16,64", "search.study=serving")
    shutil.copytree(where / "results" / "small", where / "results" / "<script>alert(1)</script>".replace("/", "|"))
    return where


@pytest.fixture(scope="session")
def address(folder: Path) -> Iterator[str]:
    """The page's address with its token, as the command prints it."""
    server = start(folder, "results", "--allow-runs", "--json", module="rapid_dse.explore")
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line, server.communicate()[1]
    yield json.loads(line)["address"]
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()
        raise


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Opened]:
    """Opens a path of the page, or a file; at the end nothing was logged as an error, and nothing asked for beyond this machine."""
    contexts, wrong = [], []

    def log(text: str) -> None:
        wrong.append(text)

    def asks(route: Any) -> None:
        if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
            route.continue_()
        else:
            log(f"asked for {route.request.url}")
            route.abort()

    def open_page(path: str, width: int = 1400, scheme: str = "light", refuses: bool = False, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.route("**/*", asks)
        page.on("pageerror", lambda error: log(str(error)))
        page.on("dialog", lambda dialog: (log(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "console", lambda message: log(message.text) if message.type == "error" and not (refuses and " 40" in message.text) else None
        )
        if path.startswith("/"):
            page.goto(address)
        answer = page.goto(address.split("/?")[0] + path if path.startswith("/") else path)
        assert answer is None or answer.status in (0, 200) or refuses, (path, answer.status)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong, wrong
