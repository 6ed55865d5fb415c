"""Mutants of a Python source: the same text with one small fault in it.

A fault is one that a slip of the pen makes: another comparison, a condition that is dropped or turned round, a number
one higher, a statement or a `raise` left out, an exception that is not caught, None returned, a name misspelt; in SQL
and in regular expressions, another operator or bound. What only words an error, docstrings, annotations, decorators,
assertions and f-strings stay as they are.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Add,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
}
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|CREATE TABLE|PRAGMA)\b")
_SQL_SLIPS = (
    (r" <= ", " < "),
    (r" < ", " <= "),
    (r" - ", " + "),
    (r" AND ", " OR "),
    (r"\bmax\(", "min("),
    (r" ORDER BY \w+", ""),
    (r"PRIMARY KEY \(issuer, nonce\)", "PRIMARY KEY (nonce)"),
    (r"\bON\b$", "OFF"),
    (r"= FULL\b", "= OFF"),
)
_ONLY_WORDS = re.compile("(Error|^TypeVar)$")
_BOUND = re.compile(r"(?<=[{,])\d+(?=[,}])")


@dataclass(frozen=True, slots=True)
class Mutant:
    """The fault of kind `kind` at `line` (from 1): `before` became `after`. `source`: the whole text with it."""

    line: int
    kind: str
    before: str
    after: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """All mutants of a source, by line; each once."""
    found = {}
    for node in _open_to_faults(ast.parse(source)):
        for kind, after in _slips(node):
            if mutant := _put(source, node, kind, after):
                found.setdefault(mutant.source, mutant)
    return sorted(found.values(), key=lambda each: each.line)


def _open_to_faults(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that the docstring of this file leaves out."""
    if isinstance(node, ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom) or _is_text(node):
        return
    yield node
    for name, value in ast.iter_fields(node):
        only_words = isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and _ONLY_WORDS.search(_name(node)))
        if name in ("annotation", "returns", "decorator_list") or only_words:
            continue
        if isinstance(node, ast.Assign) and _name(node.targets[0]).startswith("__"):
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.AST):
                yield from _open_to_faults(each)


def _is_text(node: ast.AST) -> bool:
    """A docstring, or any text that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Call):
        return _name(node.func)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _slips(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in the place of a node, and the kind of the fault."""
    match node:
        case ast.Compare():
            for place, operator in enumerate(node.ops):
                for other in _COMPARISONS[type(operator)]:
                    yield "comparison", _with(node, ops=[*node.ops[:place], other(), *node.ops[place + 1 :]])
        case ast.BoolOp():
            yield "boolean", _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
            for place in range(len(node.values)):
                rest = node.values[:place] + node.values[place + 1 :]
                yield "condition dropped", rest[0] if len(rest) == 1 else _with(node, values=rest)
        case ast.UnaryOp(op=ast.Not()):
            yield "boolean", node.operand
        case ast.BinOp() | ast.AugAssign():
            if type(node.op) in _ARITHMETIC:
                yield "arithmetic", _with(node, op=_ARITHMETIC[type(node.op)]())
            if isinstance(node, ast.AugAssign):
                yield "statement removed", ast.Pass()
        case ast.Constant():
            yield from _other_constants(node)
        case ast.Return(value=value) if value is not None and not _is_none(value):
            yield "return", ast.Return(ast.Constant(None))
        case ast.Raise():
            yield "raise removed", ast.Pass()
        case ast.If() | ast.IfExp():
            for value in (True, False):
                yield "condition", _with(node, test=ast.Constant(value))
        case ast.comprehension():
            for place in range(len(node.ifs)):
                yield "condition dropped", _with(node, ifs=node.ifs[:place] + node.ifs[place + 1 :])
        case ast.ExceptHandler():
            yield "not caught", _with(node, body=[ast.Raise()])
        case ast.Expr(value=ast.Call() | ast.Await()):
            yield "statement removed", ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript() | ast.Tuple(elts=[ast.Attribute(), *_])]):
            yield "statement removed", ast.Pass()
        case ast.Call(func=ast.Name(id=name)) if name in _CALLS:
            yield "call", _with(node, func=ast.Name(_CALLS[name]))


def _other_constants(node: ast.Constant) -> Iterator[tuple[str, ast.AST]]:
    value = node.value
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, int | float):
        yield "constant", ast.Constant(value + 1)
    elif isinstance(value, str) and _SQL.search(value):
        for pattern, other in _SQL_SLIPS:
            for found in re.finditer(pattern, value):
                yield "SQL", ast.Constant(value[: found.start()] + other + value[found.end() :])
    elif isinstance(value, str) and (bounds := list(_BOUND.finditer(value))):
        for found in bounds:
            yield "pattern", ast.Constant(f"{value[: found.start()]}{int(found[0]) + 1}{value[found.end() :]}")
    elif isinstance(value, str) and " " not in value:
        yield "constant", ast.Constant(value + "x")


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _put(source: str, node: ast.AST, kind: str, after: ast.AST) -> Mutant | None:
    """The source with `after` in the place of `node`, in as few characters as that takes."""
    if isinstance(node, ast.If):  # its test alone, so that the branches stay as they are written
        node, after = node.test, after.test  # type: ignore[attr-defined]
    if isinstance(node, ast.comprehension):
        return _put_comprehension(source, node, kind, after)
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    start = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
    end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
    text = ast.unparse(ast.fix_missing_locations(after))
    indent = " " * node.col_offset  # type: ignore[attr-defined]
    shown = text.replace("\n", "\n" + indent) if isinstance(node, ast.stmt | ast.ExceptHandler) else f"({text})"
    raw = source.encode()
    changed = (raw[:start] + shown.encode() + raw[end:]).decode()
    before = ast.unparse(node)
    return None if before == text else Mutant(node.lineno, kind, before, text, changed)  # type: ignore[attr-defined]


def _put_comprehension(source: str, node: ast.comprehension, kind: str, after: ast.AST) -> Mutant | None:
    """A comprehension's own clause has no place of its own in the tree, but each of its conditions has."""
    dropped = next(each for each in node.ifs if each not in after.ifs)  # type: ignore[attr-defined]
    return _put(source, dropped, kind, ast.Constant(True))
