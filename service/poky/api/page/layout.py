"""What all pages share: the frame, the style, the script that reads the page anew, the policy."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape
from typing import Final

from poky.http import Answer

_STYLE: Final = """
:root { color-scheme: light dark; --line: #c9ced6; --soft: #f3f5f8; --text: #16191d;
  --quiet: #555d68; --link: #0a58b5; --good: #156b2c; --bad: #b3161b; --back: #fff;
  --one: #0a58b5; --two: #b35900 }
@media (prefers-color-scheme: dark) { :root { --line: #3b424c; --soft: #1d2127; --text: #e8eaed;
  --quiet: #a8b0bb; --link: #8ab8ff; --good: #6fd38a; --bad: #ff9a94; --back: #14171b;
  --one: #8ab8ff; --two: #ffb066 } }
* { box-sizing: border-box }
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  margin: 0 auto; max-width: 76rem; padding: 1rem }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem }
h3 { font-size: 1rem; margin: 1rem 0 .2rem }
header { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; align-items: baseline }
a { color: var(--link) } a:focus-visible { outline: 3px solid var(--link) }
nav a { margin-right: .8rem }
.quiet { color: var(--quiet) } .good { color: var(--good) } .bad { color: var(--bad) }
.state { border: 2px solid; border-radius: .5rem; padding: .6rem 1rem; margin: 1rem 0;
  background: var(--soft) }
.state h2 { margin: 0 } .state ul { margin: .4rem 0 0; padding-left: 1.2rem }
.state li, .state p { color: var(--text) } .state .what { font-weight: 600; color: var(--bad) }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)) }
figure { margin: 0; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem }
figcaption { font-weight: 600 } svg { width: 100%; height: 5.6rem; display: block }
svg path { fill: none; stroke-width: 1.5; vector-effect: non-scaling-stroke; stroke: var(--one) }
svg .two { stroke: var(--two); stroke-dasharray: 4 2 } svg .grid { stroke: var(--line) }
.axis { display: flex; justify-content: space-between; margin: 0; font-size: .8rem;
  color: var(--quiet) }
.legend { margin: .2rem 0 0; font-size: .9rem } .key { margin-right: .8rem }
.key.one b { color: var(--one) } .key.two b { color: var(--two) }
.wide { overflow-x: auto } .wide:focus-visible { outline: 3px solid var(--link) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top } td { overflow-wrap: anywhere }
th { font-weight: 600; color: var(--quiet) } th, .number { white-space: nowrap }
.number { text-align: right } .number + :not(.number) { padding-left: 1rem }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: .4rem; padding: .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0 }
img { max-width: 100%; border: 1px solid var(--line) }
input, button { font: inherit; padding: .2rem .5rem }
footer { margin-top: 2rem; font-size: .9rem }
@media (max-width: 40rem) { td:not(.number) { min-width: 6.5rem } }
@media print { body { max-width: none } nav, form, footer, #gone { display: none }
  figure, tr { break-inside: avoid } }
"""
# The page is replaced by what the same address says now, unless it is being read with the keyboard.
_SCRIPT: Final = """
const gone = document.getElementById('gone');
let since = null;
const again = async () => {
  const main = document.querySelector('main');
  try {
    const answer = await fetch(location.href, {headers: {Accept: 'text/html'},
      signal: AbortSignal.timeout(4000)});
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
    if (!main.contains(document.activeElement) && !String(getSelection())) {
      main.replaceWith(page.querySelector('main'));
      document.title = page.title;
    }
    since = null;
    gone.textContent = '';
  } catch {
    since ??= new Date().toLocaleTimeString();
    const what = `This instance has not answered since ${since}.`;
    if (!gone.textContent.startsWith(what)) gone.textContent = what +
      ' What is below is from before. Look at its log: journalctl -u poky@PORT.';
  }
  setTimeout(again, 2000);
};
setTimeout(again, 2000);
"""


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


_POLICY: Final = (
    f"default-src 'none'; style-src {_source(_STYLE)}; script-src {_source(_SCRIPT)};"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'"
)


def page(title: str, head: str, body: str) -> Answer:
    """A page: ``head`` and ``body`` are HTML, ``title`` is text."""
    html = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<p id="gone" class="bad" role="status"></p>
<main>
{head}
{body}
<footer class="quiet"><nav aria-label="More"><a href="/">Overview</a><a href="/metrics">Metrics</a>
<a href="/status?verbose">Status</a><a href="/help">Help</a></nav></footer>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""
    return Answer(
        "200 OK",
        [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Cache-Control", "no-store"),
            ("Vary", "Accept"),
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Security-Policy", _POLICY),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
        ],
        html.encode(),
    )


def table(
    name: str, columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str, right: str = ""
) -> str:
    """A table of cells that are HTML; ``right``: the columns that are numbers, by their names."""
    numbers = {index for index, column in enumerate(columns) if column in right.split(", ")}

    def row(tag: str, cells: Sequence[str], scope: str = "") -> str:
        made = [
            f"<{tag}{scope}{' class=number' if index in numbers else ''}>{cell}</{tag}>"
            for index, cell in enumerate(cells)
        ]
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(row("td", cells) for cells in rows)
    if not body:
        return f'<p class="quiet">{empty}</p>'
    head = row("th", [escape(column) for column in columns], " scope=col")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}"><table>'
        f"<thead>{head}</thead><tbody>{body}</tbody></table></div>"
    )


def size_of(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def ago(seconds: float) -> str:
    """A time span for people."""
    for most, one, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < most:
            return f"{max(seconds, 0) / one:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"
