"""The page as an application: its addresses, its files, and how answers and messages become HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rapid_dse import __version__
from rapid_dse.analysis.report.study_page import environment_of
from rapid_dse.explorer import row_views, study_views
from rapid_dse.explorer.launched_sweeps import Launches
from rapid_dse.explorer.page_guard import Access, Guard
from rapid_dse.explorer.run_views import WhatIfPages
from rapid_dse.explorer.study_shelf import Shelf
from rapid_dse.explorer.web_answers import Asking, NotListed, WebAnswer, asked

REPORT = "rapid_dse.analysis.report"
# Files that the page may ask for: the package and the file of each name, and its type.
FILES = {
    "icon.svg": ("rapid_dse.explorer", "static/icon.svg", "image/svg+xml"),
    "explore.css": ("rapid_dse.explorer", "static/explore.css", "text/css"),
    "explore.js": ("rapid_dse.explorer", "static/explore.js", "text/javascript"),
    "htmx.js": ("rapid_dse.explorer", "static/htmx.min.js", "text/javascript"),
    "report.css": (REPORT, "report.css", "text/css"),
    "uplot.css": (REPORT, "browser/uPlot.min.css", "text/css"),
    "uplot.js": (REPORT, "browser/uPlot.iife.min.js", "text/javascript"),
    "cloud.js": (REPORT, "browser/cloud.js", "text/javascript"),
    "pictures.js": (REPORT, "browser/pictures.js", "text/javascript"),
}
MOST_BYTES = 100_000  # of what a form sends
View = Callable[[Asking], WebAnswer]


def application(shelf: Shelf, launches: Launches, access: Access) -> Guard:
    """The page of a folder of studies, for whoever has the token."""
    pages = WhatIfPages(shelf, launches)
    queried, chosen = study_views.OF_QUERY, study_views.CHOSEN

    def of(view: Callable[[Shelf, Asking], WebAnswer]) -> View:
        return lambda asking: view(shelf, asking)

    routes = [
        _get("/", of(study_views.studies_page), ()),
        _get("/study", of(study_views.study_page), queried, chosen),
        _get("/rows", of(study_views.rows_part), queried, chosen),
        _get("/points", of(study_views.points_part), queried, chosen),
        _get("/nearest", of(row_views.row_at_place), (*queried, "at_x", "at_y"), chosen),
        _get("/pictures", of(study_views.pictures_page), ("study", "by")),
        _get("/row", of(row_views.row_part), ("study", "key")),
        _get("/explain", of(row_views.explain_part), ("study", "key", "against")),
        _get("/difference", of(row_views.difference_page), ("study", "a", "b")),
        _get("/launch-file", of(row_views.launch_part), ("study", "key", "to")),
        _get("/what-if", pages.form, ("overrides",)),
        _get("/runs", pages.runs, ()),
        _get("/run", pages.run, ("number",)),
        _post("/trial", pages.trial, ("overrides",)),
        _post("/count", pages.count, ("overrides",)),
        _post("/launch", pages.launch, ("overrides",)),
        _post("/cancel", pages.cancel, ("number",)),
        Route("/static/{name}", _static, methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused})
    app.router.redirect_slashes = False
    return Guard(app, access)


def _get(path: str, view: View, names: tuple[str, ...], prefix: str | None = None) -> Route:
    async def answer(request: Request) -> Response:
        return await _answered(request, view, request.query_params.multi_items(), (names, prefix))

    return Route(path, answer, methods=["GET"])


def _post(path: str, view: View, names: tuple[str, ...]) -> Route:
    async def answer(request: Request) -> Response:
        body = b""
        try:
            async for part in request.stream():
                body += part
                if len(body) > MOST_BYTES:
                    return _page(
                        request, "message", {"title": "Too long", "message": f"allowed: a form of at most {MOST_BYTES:,} bytes"}, 413
                    )
        except ClientDisconnect:
            return _Unheard()
        pairs = parse_qsl(body.decode(errors="replace"), keep_blank_values=True)
        return await _answered(request, view, [*request.query_params.multi_items(), *pairs], (names, None))

    return Route(path, answer, methods=["POST"])


async def _answered(request: Request, view: View, pairs: list[tuple[str, str]], allowed: tuple[tuple[str, ...], str | None]) -> Response:
    """What a view says, as HTTP; what is wrong in a request is one line, as of the commands."""
    try:
        answer = await run_in_threadpool(lambda: view(asked(pairs, *allowed)))
    except ValueError as error:
        message = " ".join(str(error).split())
        return _page(request, "message", {"title": "That does not work", "message": message}, 404 if isinstance(error, NotListed) else 400)
    except OSError as error:
        return _page(request, "message", {"title": "That does not work", "message": f"{error.filename}: {error.strerror}"}, 500)
    if answer.redirect:
        return RedirectResponse(answer.redirect, 303)
    if not answer.template:
        return Response(answer.content, media_type="application/octet-stream")
    return await run_in_threadpool(lambda: _page(request, answer.template, answer.context))


def _page(request: Request, template: str, context: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """A template as a whole page, or as the part of one that htmx asks for."""
    layout = "fragment" if request.headers.get("hx-request") == "true" else "base"
    text = _templates().get_template(f"templates/{template}.html.j2").render(
        layout=f"templates/{layout}.html.j2", version=__version__, path=request.url.path, **context
    )  # fmt: skip
    return HTMLResponse(text, status)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _page(request, "message", {"title": error.detail, "message": f"{request.url.path}: no such page"}, error.status_code)


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in FILES:
        raise HTTPException(404)
    package, path, kind = FILES[name]
    return Response(_file(package, path), media_type=kind)


class _Unheard(Response):
    """The answer to whoever has left in the middle of a question: there is nobody to send it to."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends nothing."""


@cache
def _file(package: str, path: str) -> bytes:
    return resources.files(package).joinpath(path).read_bytes()


@cache
def _templates() -> jinja2.Environment:
    environment = environment_of("rapid_dse.explorer", REPORT)
    environment.filters["bytes"] = study_views.size_text
    return environment
