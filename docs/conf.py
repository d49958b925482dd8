"""The documents as a site, by Sphinx: make docs. They are files first; each has its place here."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://git.example.org/poky"

project = "Poky"
copyright = "the Poky authors"
extensions = ["myst_parser"]
root_doc = "README"
source_suffix = {".md": "markdown"}
exclude_patterns = ["performance.json"]
html_theme = "furo"
html_title = "Poky"
html_show_sphinx = False
html_copy_source = False
myst_heading_anchors = 4
# The words of headings are those of the files: no quotes are made of them.
myst_enable_extensions: list[str] = []
suppress_warnings = ["misc.highlighting_failure"]

# Every document is in one place. Decisions are listed by their own index.
NAVIGATION = {
    "To learn": ["tutorial"],
    "To do": [
        "operations",
        "upkeep",
        "backup",
        "failover",
        "shards",
        "moving-from-poky1",
        "clients",
    ],
    "To look up": ["http-api", "client", "configuration", "metrics", "sql", "glossary"],
    "To understand": [
        *("architecture", "cache", "security", "reliability", "performance", "scale"),
        "decisions/README",
    ],
}

# A link to a file outside of docs/.
_OUT = re.compile(r"(?<=\]\()((?:\.\./)+[^)#\s]+)")


def _toctree(caption: str, documents: list[str]) -> str:
    names = "\n".join(f"/{name}" for name in documents)
    return f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{names}\n```\n"


def _read(app: Any, name: str, source: list[str]) -> None:
    """Add the navigation, and lead links out of docs/ to the file in the repository."""
    here = (ROOT / "docs" / name).parent

    def lead(link: re.Match[str]) -> str:
        target = (here / link[0]).resolve()
        if target.is_relative_to(ROOT / "docs") or not target.exists():
            return link[0]  # Sphinx says if it is not there
        return f"{REPOSITORY}/blob/main/{target.relative_to(ROOT)}"

    source[0] = _OUT.sub(lead, source[0])
    if name == root_doc:
        source[0] += "".join(_toctree(*each) for each in NAVIGATION.items())
    elif name == "decisions/README":
        found = sorted(path.stem for path in here.glob("0*.md"))
        source[0] += _toctree("Decisions", [f"decisions/{each}" for each in found])


def setup(app: Any) -> None:
    """Have Sphinx read the files through `_read`."""
    app.connect("source-read", _read)
