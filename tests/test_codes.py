"""Codes of problem details: what the code gives, the table, the document and the docs agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from poky import http, store
from poky.api import ROUTES, openapi
from poky.api.codes import CODES
from poky.config import Config

ROOT = Path(__file__).parent.parent


def given(function: str, path: Path) -> set[str]:
    """The codes that calls of ``function`` give, which must be written out there."""
    codes = set()
    for node in ast.walk(ast.parse(path.read_text())):
        name = getattr(node, "func", None)
        if isinstance(node, ast.Call) and isinstance(name, ast.Name) and name.id == function:
            code = node.args[1]
            if isinstance(code, ast.Constant):
                codes.add(code.value)
    return codes


def test_every_refusal_has_a_code_of_the_table_and_every_code_is_given() -> None:
    codes = {
        package: set().union(
            *(
                given(function, path)
                for path in (ROOT / "service" / "poky" / package).rglob("*.py")
                for function in ("refuse", "problem")
            )
        )
        for package in ("http", "api")
    }
    assert codes["http"] == set(http.CODES)
    assert codes["api"] <= set(CODES)
    assert codes["http"] | codes["api"] | set(store.CODES) == set(CODES)


def test_no_code_has_two_meanings() -> None:
    assert not set(http.CODES) & set(store.CODES)
    for code in CODES:
        assert re.fullmatch("[a-z]+(_[a-z]+)*", code)
        assert CODES[code].endswith(".")


def test_the_document_names_every_code() -> None:
    problem = openapi.document(Config(), ROUTES)["components"]["schemas"]["Problem"]
    assert problem["properties"]["code"] == {"enum": sorted(CODES)}
    assert "code" in problem["required"]


def test_docs_list_every_code_with_its_meaning() -> None:
    rows = re.findall(
        r"^\| `([a-z_]+)` \| ([0-9, ]+) \| (.*) \|$",
        (ROOT / "docs/http-api.md").read_text(),
        re.MULTILINE,
    )
    assert {code: meaning for code, _, meaning in rows} == CODES
    assert [code for code, *_ in rows] == sorted(CODES)
