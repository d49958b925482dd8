"""The documents as a site: every one has its place, and every link within leads to a heading.

`make docs` builds it, and refuses the same; here no generator is needed.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def navigation() -> dict[str, list[str]]:
    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, list[str]] = module.NAVIGATION
    return found


def test_every_document_is_in_the_navigation_once() -> None:
    listed = [name for names in navigation().values() for name in names]
    there = {
        str(path.relative_to(DOCS).with_suffix(""))
        for path in PAGES
        if not re.match(r"0\d+-", path.name) and path != DOCS / "README.md"
    }
    assert sorted(listed) == sorted(there)


def test_the_first_page_leads_to_every_document() -> None:
    linked = {*re.findall(r"\]\(([\w/-]+)\.md\)", (DOCS / "README.md").read_text())}
    assert linked == {name for names in navigation().values() for name in names}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and Sphinx make them."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    found: set[str] = set()
    for title in re.findall(r"(?m)^#{1,4} (.+)$", text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_lead_to_headings(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        if not link.startswith("http"):
            target = (page.parent / link) if link else page
            assert anchor in anchors(target), f"{link}#{anchor}"
