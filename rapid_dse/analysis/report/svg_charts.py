"""Pictures as inline SVG: stacked bars, points, a heat map. Each has a title and a description; texts are escaped by the XML writer."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten

import numpy as np
from markupsafe import Markup

from rapid_dse.analysis.report.svg_scales import Scale, Values, scale_of
from rapid_dse.sweep import figures

WIDTH = 720.0
_BAR, _GAP = 26.0, 34.0  # height of a bar, and from a bar's end to the next one's start
_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 78.0, 34.0, 14.0, 36.0, 370.0  # of a picture of points
_LANE, _CUT = 18.0, 24.0  # height of a lane, and the gap where time is left out
_CELL, _WIDE, _LEAST = 34.0, 76.0, 320.0  # height and width of a cell of a heat map, and the least width of one
_FEW = 1000  # dots, which are larger then
_LETTERS = 54  # of a label: so many of 24 pixels, which they have on a narrow page, are no wider than a picture
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Frame:
    """What a picture is called: ``name`` is unique on the page; ``title`` and ``text`` are read to those who don't see it."""

    name: str
    title: str
    text: str


@dataclass(frozen=True)
class StackedBar:
    """A bar of parts that add up; ``mark``: a value of the same unit that a line is drawn at, and what it is."""

    label: str
    parts: Mapping[str, float]
    mark: tuple[float, str] | None = None


@dataclass(frozen=True)
class Axis:
    """What an axis shows, how its values are written, and the unit in which numbers stand beside it."""

    title: str
    worded: Callable[[float], str]
    unit: float = 1.0

    def tick(self, value: float) -> str:
        """The number that stands beside the axis."""
        return figures.amount(value / self.unit) if value >= 1e4 * self.unit else f"{value / self.unit:.4g}"


@dataclass(frozen=True)
class LaneSpans:
    """A row of spans: ``label`` stands before it, ``text`` says what is in it; begin and end of the spans of each kind, ``(n_spans,)``."""

    label: str
    text: str
    spans: Mapping[str, tuple[Values, Values]]


@dataclass(frozen=True)
class Cloud:
    """Points of one kind, ``(n_points,)`` each; ``kind`` is their class in the style sheet."""

    kind: str
    x: Values
    y: Values


@dataclass(frozen=True)
class Marked:
    """A point that stands out, with what it is; ``label``: written beside it."""

    kind: str
    x: float
    y: float
    text: str
    label: str = ""


def printable(text: str) -> str:
    """A text in which what XML cannot hold has a stand-in."""
    return _NOT_XML.sub("\ufffd", text)


def _picture(frame: Frame, height: float, width: float = WIDTH) -> ET.Element:
    ids = f"{frame.name}-title", f"{frame.name}-text"
    top = ET.Element("svg", {"viewBox": f"0 0 {width:.0f} {height:.0f}", "role": "img", "aria-labelledby": " ".join(ids)})
    for tag, at, text in (("title", ids[0], frame.title), ("desc", ids[1], frame.text)):
        ET.SubElement(top, tag, {"id": at}).text = printable(text)
    return top


def _add(parent: ET.Element, tag: str, kind: str, text: str = "", **numbers: float) -> ET.Element:
    element = ET.SubElement(parent, tag, {"class": kind} | {name: f"{value:.1f}" for name, value in numbers.items()})
    element.text = printable(text) or None
    return element


def _titled(parent: ET.Element, text: str) -> None:
    ET.SubElement(parent, "title").text = printable(text)


def _done(top: ET.Element) -> Markup:
    return Markup(ET.tostring(top, encoding="unicode"))


def stacked_bars(frame: Frame, bars: Sequence[StackedBar], terms: Sequence[str], worded: Callable[[float], str]) -> Markup:
    """A bar a row, its parts in the order of ``terms``; all bars have one scale.

    On a narrow page the picture shrinks, with larger letters; names that then would be wider than it end in dots.
    """
    values = [worded(sum(bar.parts.values())) for bar in bars]
    labels = [
        f"{shorten(bar.label, _LETTERS - 2 - len(value), placeholder=' …')}: {value}" for bar, value in zip(bars, values, strict=True)
    ]
    most = max([sum(bar.parts.values()) for bar in bars] + [bar.mark[0] for bar in bars if bar.mark])
    pixels = (WIDTH - 2) / most
    top = _picture(frame, len(bars) * (_BAR + _GAP) + 12)
    top.set("class", "bars")
    for at, bar in enumerate(bars):
        y, x = at * (_BAR + _GAP) + _GAP - 2, 0.0
        _add(top, "text", "label", labels[at], x=0, y=y - 8)
        for term in (term for term in terms if bar.parts.get(term, 0) > 0):
            part = _add(top, "rect", f"term term{terms.index(term)}", x=x, y=y, width=bar.parts[term] * pixels, height=_BAR)
            _titled(part, f"{term}: {worded(bar.parts[term])}")
            x += bar.parts[term] * pixels
        if bar.mark:
            line = _add(top, "line", "limit", x1=bar.mark[0] * pixels, x2=bar.mark[0] * pixels, y1=y - 5, y2=y + _BAR + 5)
            _titled(line, bar.mark[1])
    return _done(top)


def counted_bars(frame: Frame, counts: Mapping[str, int]) -> Markup:
    """A bar for each of several counts above 0."""
    bars = [StackedBar(name, {"rows": count}) for name, count in counts.items()]
    return stacked_bars(frame, bars, ("rows",), lambda value: f"{value:,.0f}")


def scatter(
    frame: Frame, axes: tuple[Axis, Axis], sets: Sequence[Cloud], marked: Sequence[Marked], limit: float | None
) -> tuple[Markup, str]:
    """Points, each pixel once, under those that stand out; ``limit``: a value of the vertical axis that a line is drawn at. On a narrow
    page the picture shrinks, with larger letters; what its axes show is the text that stands beside it."""
    xs = np.concatenate([*(points.x for points in sets), [mark.x for mark in marked]])
    ys = np.concatenate([*(points.y for points in sets), [mark.y for mark in marked], [] if limit is None else [limit]])
    across = scale_of(xs, _LEFT, WIDTH - _RIGHT)
    up = scale_of(ys, _HEIGHT - _BOTTOM, _TOP)
    top = _picture(frame, _HEIGHT)
    top.set("class", "points")
    _draw_axes(top, axes, across, up)
    for points in sets:
        pixels = np.unique(np.rint(np.stack([across.place(points.x), up.place(points.y)], axis=1)).astype(np.int64), axis=0)
        dots = _add(top, "path", f"dots {points.kind}" + " few" * (len(pixels) < _FEW))
        dots.set("d", "".join(f"M{x} {y}h0" for x, y in pixels.tolist()))
    if limit is not None:
        y = float(up.place(np.array([limit]))[0])
        _add(top, "line", "limit", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y)
        _add(top, "text", "end", f"usable {axes[1].worded(limit)}", x=WIDTH - _RIGHT, y=y - 5)
    for mark in marked:
        x, y = float(across.place(np.array([mark.x]))[0]), float(up.place(np.array([mark.y]))[0])
        _titled(_add(top, "circle", mark.kind, cx=x, cy=y, r=6 if mark.kind == "winner" else 4), mark.text)
        if mark.label:
            right = x > WIDTH * 0.7
            _add(top, "text", "end" if right else "label", mark.label, x=x - 9 if right else x + 9, y=y + 4)
    names = [f"{axis.title}{', logarithmic' if scale.logarithmic else ''}" for axis, scale in zip(axes, (across, up), strict=True)]
    return _done(top), f"across: {names[0]}; up: {names[1]}"


def _draw_axes(top: ET.Element, axes: tuple[Axis, Axis], across: Scale, up: Scale) -> None:
    floor = _HEIGHT - _BOTTOM
    for value in across.ticks(axes[0].unit):
        x = float(across.place(np.array([value]))[0])
        _add(top, "line", "grid", x1=x, x2=x, y1=_TOP, y2=floor)
        _add(top, "text", "middle", axes[0].tick(value), x=x, y=floor + 24)
    for value in up.ticks(axes[1].unit):
        y = float(up.place(np.array([value]))[0])
        _add(top, "line", "grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y)
        _add(top, "text", "end", axes[1].tick(value), x=_LEFT - 6, y=y + 4)


def heat_map(
    frame: Frame, names: tuple[str, str], cells: Mapping[tuple[int, int], float], worded: Callable[[float], str], descending: bool
) -> Markup:
    """The values of two keys against each other, the best darkest; pairs without a value are left blank.

    ``descending``: whether the best is the largest.
    """
    down, across = (sorted({pair[at] for pair in cells}) for at in (0, 1))
    best, worst = (max, min)[not descending](cells.values()), (min, max)[not descending](cells.values())
    span = worst - best or 1.0
    width = max(_LEAST, _LEFT + _WIDE * len(across))
    top = _picture(frame, (len(down) + 1) * _CELL + 4, width)
    top.set("class", "broad")  # as wide as its cells, whose texts stay legible: its frame scrolls where these are many
    top.set("width", f"{width:.0f}")
    for at, column in enumerate(across):
        _add(top, "text", "middle", f"{names[1]} {column}", x=_LEFT + (at + 0.5) * _WIDE, y=_CELL - 12)
    for line, row in enumerate(down):
        y = (line + 1) * _CELL
        _add(top, "text", "label", f"{names[0]} {row}", x=0, y=y + 21)
        for at, column in enumerate(across):
            value = cells.get((row, column))
            cell = _add(top, "rect", "cell" if value is not None else "blank", x=_LEFT + at * _WIDE, y=y, width=_WIDE - 2, height=_CELL - 2)
            if value is not None:
                cell.set("fill-opacity", f"{0.05 + 0.5 * ((worst - value) / span) ** 2:.2f}")
                _titled(cell, f"{names[0]} {row}, {names[1]} {column}: {worded(value)}")
                _add(top, "text", "middle", worded(value), x=_LEFT + (at + 0.5) * _WIDE - 1, y=y + 21)
    return _done(top)


def lanes(frame: Frame, rows: Sequence[LaneSpans], windows: Sequence[tuple[float, float]], worded: Callable[[float], str]) -> Markup:
    """Spans of time in lanes below each other; ``windows`` are the times that are drawn, one after the other, and what lies between is
    left out. ``worded`` writes a time."""
    wide = (WIDTH - _LEFT - _RIGHT - _CUT * (len(windows) - 1)) / sum(end - start for start, end in windows)
    top = _picture(frame, _TOP + len(rows) * _LANE + _BOTTOM)
    x = _LEFT
    for start, end in windows:
        for at, row in enumerate(rows):
            y = _TOP + (at + 0.5) * _LANE
            for kind, (begins, ends) in row.spans.items():
                drawn = _within(begins, ends, (start, end), (x, wide))
                if drawn:
                    _add(top, "path", f"span {kind}").set("d", "".join(f"M{a:.1f} {y:.1f}H{b:.1f}" for a, b in drawn))
        for time, anchor in ((start, "label"), (end, "end")):
            _add(top, "text", anchor, worded(time), x=x + (time - start) * wide, y=_TOP + len(rows) * _LANE + 17)
        x += (end - start) * wide + _CUT
    for at, row in enumerate(rows):
        y = _TOP + at * _LANE
        _add(top, "text", "end", row.label, x=_LEFT - 6, y=y + _LANE * 0.72)
        _titled(_add(top, "rect", "lane", x=_LEFT, y=y + 1, width=WIDTH - _LEFT - _RIGHT, height=_LANE - 2), row.text)
    return _done(top)


def _within(begins: Values, ends: Values, window: tuple[float, float], scale: tuple[float, float]) -> list[tuple[float, float]]:
    """Where spans are drawn that lie in a window, cut at its ends; a hair narrower, so that neighbours stay apart."""
    (start, end), (left_edge, wide) = window, scale
    first, last = np.maximum(begins, start), np.minimum(ends, end)
    of = last > first
    at, to = left_edge + (first[of] - start) * wide, left_edge + (last[of] - start) * wide
    return list(zip(at.tolist(), np.maximum(at + 0.2, to - 0.4).tolist(), strict=True))
