"""What can be changed in a module, one thing at a time."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A change: where, and what it says."""

    line: int
    says: str
    source: str
    node: int  # its number in a walk through the tree
    change: int  # its number among those of the node

    @property
    def text(self) -> str:
        """The module's text with it."""
        tree = ast.parse(self.source)
        node = list(ast.walk(tree))[self.node]
        new = list(_changes(node))[self.change](node)
        if new is not node:
            _replace(tree, node, new)
        return ast.unparse(ast.fix_missing_locations(tree))


def mutants(source: str) -> Iterator[Mutant]:
    """Every change of operators, constants, conditions and calls."""
    tree = ast.parse(source)
    skipped = _not_code(tree)
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in skipped:
            continue
        for index, change in enumerate(_changes(node)):
            before, after = ast.unparse(node), ast.unparse(change(copy.deepcopy(node)))
            if before != after:
                says = f"{_short(before)}  ->  {_short(after)}"
                yield Mutant(getattr(node, "lineno", 0), says, source, number, index)


def _not_code(tree: ast.AST) -> set[int]:
    """Docstrings, annotations and what is written for people: log lines and sentences."""
    found: set[int] = set()
    for node in ast.walk(tree):
        below: list[ast.AST] = []
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            below.append(node)
        if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation:
            below.append(node.annotation)
        if isinstance(node, ast.FunctionDef) and node.returns:
            below.append(node.returns)
        if isinstance(node, ast.Expr) and ast.unparse(node).startswith("log."):
            below.append(node)
        if isinstance(node, ast.JoinedStr):
            below.append(node)
        for each in below:
            found |= {id(inner) for inner in ast.walk(each)}
    return found


def _changes(node: ast.AST) -> Iterator[Callable[[ast.AST], ast.AST]]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARE:
        yield lambda twin: _with(twin, ops=[_COMPARE[type(twin.ops[0])](), *twin.ops[1:]])
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        yield lambda twin: _with(twin, op=_ARITHMETIC[type(twin.op)]())
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield lambda twin: _with(twin, op=other())
        yield lambda twin: twin.values[0]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield lambda twin: twin.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield lambda twin: _with(twin, value=not twin.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield lambda twin: _with(twin, value=twin.value + 1)
    elif isinstance(node, ast.If):
        yield lambda twin: _with(twin, test=ast.Constant(value=True))
        yield lambda twin: _with(twin, test=ast.Constant(value=False))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield lambda twin: ast.Pass()
    elif isinstance(node, ast.Return) and node.value is not None:
        yield lambda twin: _with(twin, value=ast.Constant(value=None))
    elif isinstance(node, ast.Raise):
        yield lambda twin: ast.Pass()


def _with(node: ast.AST, **fields: object) -> ast.AST:
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list):
                value[:] = [new if each is old else each for each in value]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
