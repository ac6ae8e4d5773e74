"""Launch scripts as fields: flags with their values, what SLURM and torchrun are told, variables of the environment that matter."""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_ASSIGNMENT = re.compile(r"^(?:export\s+|declare\s+(?:-\w+\s+)*|readonly\s+|local\s+)?([A-Za-z_]\w*)(\+?)=(.*)$", re.DOTALL)
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?:\[[@*]\])?(?::?[-=]([^{}]*))?\}|\$([A-Za-z_]\w*)")
_ARITHMETIC = re.compile(r"\$\(\(([^()]*(?:\([^()]*\)[^()]*)*)\)\)")
_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}
_SBATCH = re.compile(r"^#SBATCH\s+(.*)$", re.MULTILINE)
ENVIRONMENT = "env:"  # what stands before a variable's name
SBATCH = "sbatch:"


def fields_of(text: str) -> dict[str, Any]:
    """The flags of a script as ``--name: value`` (True where none follows; underscores are hyphens; the last one counts), ``env:NAME`` and
    ``sbatch:name``.

    Variables that the script sets are put in, with their defaults where they have any (``${NODES:-4}``), and plain sums are done.
    """
    fields: dict[str, Any] = {}
    for line in _SBATCH.findall(text):
        fields |= {f"{SBATCH}{name.lstrip('-')}": value for name, value in _flags(shlex.split(line, comments=True))}
    variables: dict[str, str] = {}
    words: list[str] = []
    for statement in _statements(text):
        assigned = _ASSIGNMENT.match(statement)
        if assigned is None or _is_command(assigned[3]):
            words += _split(_filled(statement, variables))
            words.append("\n")
            continue
        name, more, value = assigned.groups()
        content = " ".join(_split(_filled(value.strip().strip("()") if value.strip().startswith("(") else value, variables)))
        variables[name] = f"{variables.get(name, '')} {content}".strip() if more else content
    fields |= {f"{ENVIRONMENT}{name}": value for name, value in variables.items() if name.isupper() and not value.startswith("-")}
    fields |= dict(_flags(words))
    return fields


def _is_command(value: str) -> bool:
    """Whether what follows an equals sign is a value and then a command (``NCCL_DEBUG=INFO torchrun …``)."""
    stripped = value.strip()
    if not stripped or stripped[0] in "\"'($`":
        return False
    return len(stripped.split()) > 1


def _statements(text: str) -> Iterator[str]:
    """Lines with their continuations; arrays and quoted texts over several lines as one; comments left out."""
    joined = re.sub(r"\\\s*\n", " ", text)
    unfinished = ""
    for line in joined.splitlines():
        bare = re.sub(r"(^|\s)#.*$", "", line) if unfinished.count('"') % 2 == 0 else line
        unfinished = f"{unfinished} {bare}".strip() if unfinished else bare.strip()
        if unfinished and unfinished.count('"') % 2 == 0 and _closed(unfinished):
            yield unfinished
            unfinished = ""
    if unfinished:
        yield unfinished


def _closed(text: str) -> bool:
    opened = re.search(r"=\(", text)
    return opened is None or text.count("(") <= text.count(")")


def _filled(text: str, variables: Mapping[str, str]) -> str:
    """The text with variables in place of their names and sums done; what is not set stays as it is."""
    for _ in range(8):
        before = text
        text = _VARIABLE.sub(lambda match: _value(match, variables), text)
        text = _ARITHMETIC.sub(lambda match: _summed(match, variables), text)
        if text == before:
            return text
    return text


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    name, default, plain = match.groups()
    assigned = variables.get(name or plain)
    return assigned if assigned is not None else default if default is not None else match[0]


def _summed(match: re.Match[str], variables: Mapping[str, str]) -> str:
    text = re.sub(r"\b[A-Za-z_]\w*\b", lambda name: variables.get(name[0], name[0]), match[1])
    try:
        return str(_number(ast.parse(text.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return match[0]


def _number(node: ast.expr) -> int:
    """What a sum of whole numbers comes to."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return int(_OPERATIONS[type(node.op)](_number(node.left), _number(node.right)))
    raise ValueError("no sum of whole numbers")


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=False)
    except ValueError:  # a quote that nothing closes
        return text.split()


def _flags(words: list[str]) -> Iterator[tuple[str, Any]]:
    """Flags with the words that follow each."""
    name: str | None = None
    values: list[str] = []
    for word in [part for whole in words for part in ([whole] if whole == "\n" else whole.split() or [""])] + ["\n"]:
        starts = bool(re.match(r"^--?[A-Za-z]", word))
        if (starts or word == "\n") and name is not None:
            yield name, True if not values else values[0] if len(values) == 1 else " ".join(values)
            name, values = None, []
        if starts:
            flag, equals, value = word.partition("=")
            name, values = flag.replace("_", "-"), [value] if equals else []
        elif name is not None and not (values and _ends(word)):
            values.append(word)


def _ends(word: str) -> bool:
    """Whether a word stands behind a flag's values: the program that is launched, its variables, a pipe."""
    return word.endswith((".py", ".sh")) or word.startswith(("$", "|", ">", "&", ";", "2>"))


def quoted(value: Any) -> str:
    """A value as a shell takes it; ``$NAME`` at its start stays a variable."""
    text = str(value)
    return f'"{text}"' if re.fullmatch(r"\$[A-Z_]+[\w:.]*", text) else shlex.quote(text)
