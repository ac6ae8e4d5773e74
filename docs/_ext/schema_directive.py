"""The directive ``schema-keys``: every key of a section of the configuration, as a list of definitions."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from docutils import nodes
from schema_keys import SECTIONS, Key, keys
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class SchemaKeys(SphinxDirective):
    """``{schema-keys} hw``: the keys of a section, one after the other."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A list of definitions for each part of the section.

        Raises:
            ValueError: where the section does not exist, or a key has no meaning beside its field.
        """
        section = self.arguments[0]
        if section not in SECTIONS:
            raise ValueError(f"schema-keys {section}: no such section; allowed: {', '.join(SECTIONS)}")
        found: list[nodes.Node] = []
        for part, some in groupby(keys(section), key=lambda key: key.part):
            listed = nodes.definition_list()
            listed += [_item(key) for key in some]
            lead = (part.__doc__ or "").split("\n\n")[0]
            found += [nodes.paragraph("", "", nodes.strong("", part.__name__), nodes.Text(": "), *_text(lead)), listed]
        return found


def _item(key: Key) -> nodes.definition_list_item:
    if not key.meaning:
        raise ValueError(f"{key.name} ({key.part.__name__}): say beside the field, or in its class's docstring, what it is")
    facts = [f"{key.kind}; default {key.default}"] + ([f"has an effect with {key.effect}"] if key.effect else [])
    body = nodes.definition("", nodes.paragraph("", "", *_text(key.meaning)), nodes.paragraph("", "", nodes.emphasis("", "; ".join(facts))))
    term = nodes.term("", "", nodes.literal("", key.name))
    term["ids"].append(re.sub(r"[^a-z0-9]+", "-", key.name.lower()).strip("-"))
    return nodes.definition_list_item("", term, body)


def _text(text: str) -> list[nodes.Node]:
    """Running text in which ``literals`` stand."""
    parts = re.split(r"``(.+?)``", " ".join(text.split()))
    return [nodes.literal("", part) if at % 2 else nodes.Text(part) for at, part in enumerate(parts) if part]


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("schema-keys", SchemaKeys)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
