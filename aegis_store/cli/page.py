"""The panels of `inspect` as one page for a browser, which needs nothing else: no scripts, no fonts, no other files.

Made as a tree of elements, so that whatever an event says is text and never markup. The page says itself that nothing may be
loaded or run but its own style.
"""

import base64
import hashlib
import xml.etree.ElementTree as Tree
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from aegis_store.cli.pictures import Bar, Cells, Fact, Panel, Row, Spark
from aegis_store.cli.terminal import count, printable, when_utc
from aegis_store.draft import Draft, path_of

_STYLE: Final = """
:root { color-scheme: light dark; --page: #f6f7f9; --panel: #fff; --text: #1c2128; --soft: #5c6672; --line: #dde1e7;
  --plain: #1f7a8c; --full: #c0392b; --gone: #c98a1b; --spark: #3a8f5c; --track: #e6e9ee; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --panel: #1d2127; --text: #e4e7eb; --soft: #98a2ae;
  --line: #323840; --plain: #49b6cc; --full: #ef6a5a; --gone: #e0a94a; --spark: #5fbf85; --track: #2b3037; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.5rem; background: var(--page); color: var(--text); font: 14px/1.5 system-ui, sans-serif; }
header, main, footer { max-width: 76rem; margin: 0 auto; }
h1 { margin: 0 0 1rem; font-size: 1.4rem; overflow-wrap: anywhere; }
main { columns: 2 26rem; column-gap: 1rem; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.2rem;
  margin: 0 0 1rem; break-inside: avoid; }
section.wide { column-span: all; overflow-x: auto; }
h2 { margin: 0 0 .6rem; font-size: 1rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(5rem, max-content) 1fr; gap: .35rem 1rem; margin: 0; }
dt { color: var(--soft); overflow-wrap: anywhere; max-width: 14rem; }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: .8rem; margin-top: .3rem; border-radius: 3px; }
svg.spark { height: 3rem; }
.track { fill: var(--track); } .plain { fill: var(--plain); } .full { fill: var(--full); } .gone { fill: var(--gone); }
.spark rect { fill: var(--spark); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td { padding: .2rem 1rem .2rem 0; vertical-align: top; border-top: 1px solid var(--line); white-space: nowrap; }
td:first-child { text-align: right; color: var(--soft); }
td:last-child { white-space: normal; overflow-wrap: anywhere; font-family: ui-monospace, monospace; font-size: 12px; }
footer { color: var(--soft); margin-top: 1rem; }
"""


def write(file: Path, title: str, panels: Sequence[Panel]) -> int:
    """Write the page into a new file, mode 0600, which has its name once it is complete; its size in bytes.

    Raises `InvalidInput` if the name is taken, `StoreFull` and `FileUnavailable` for the disk; nothing is left of it then.
    """
    content = made(title, panels, datetime.now(UTC)).encode()
    draft = Draft(path_of(file))
    try:
        draft.write(content)
        draft.publish()
    finally:
        draft.discard()
    return len(content)


def made(title: str, panels: Sequence[Panel], at: datetime) -> str:
    """The page."""
    html = Element("html", lang="en")
    head = SubElement(html, "head")
    SubElement(head, "meta", charset="utf-8")
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": policy})
    SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    _text(head, "title", f"{title} - Aegis Store")
    SubElement(head, "style").text = _STYLE
    body = SubElement(html, "body")
    _text(SubElement(body, "header"), "h1", title)
    main = SubElement(body, "main")
    for panel in panels:
        _add_panel(main, panel, has_title=panel.title != title)
    _text(body, "footer", f"Written by aegis-store inspect, {when_utc(at)}")
    return "<!DOCTYPE html>\n" + Tree.tostring(html, encoding="unicode", method="html") + "\n"


def _text(parent: Element, tag: str, text: str, **attributes: str) -> Element:
    made = SubElement(parent, tag, attributes)
    made.text = printable(text)
    return made


def _add_panel(main: Element, panel: Panel, *, has_title: bool) -> None:
    section = SubElement(main, "section", {"class": "wide"} if panel.is_wide else {})
    if has_title:
        _text(section, "h2", panel.title)
    named = [row for row in panel.rows if not isinstance(row, Cells)]
    if named:
        names = SubElement(section, "dl")
        for row in named:
            _text(names, "dt", row.name)
            _add_drawn(_text(names, "dd", row.text), row)
    cells = [row for row in panel.rows if isinstance(row, Cells)]
    if cells:
        table = SubElement(section, "table")
        for line in cells:
            tr = SubElement(table, "tr")
            for cell in line.cells:
                _text(tr, "td", cell)


def _add_drawn(parent: Element, row: Row) -> None:
    """The drawing of a row; its words stand beside it, so that it is not read out."""
    if isinstance(row, Fact | Cells):
        return
    svg = SubElement(parent, "svg", {"aria-hidden": "true", "preserveAspectRatio": "none"})
    if isinstance(row, Spark):
        svg.set("class", "spark")
        svg.set("viewBox", f"0 0 {len(row.counts)} 100")
        most = max(row.counts, default=0) or 1
        for number, each in enumerate(row.counts):
            height = max(each / most * 100, 3 if each else 1)
            drawn = _rect(svg, str(number + 0.05), "0.9", y=f"{100 - height:.2f}", height=f"{height:.2f}")
            _text(drawn, "title", count(each))
        return
    if isinstance(row, Bar):
        if row.of_all:
            _rect(svg, "0", "100%", kind="track")
        _rect(svg, "0", _percent(row.part), kind=row.kind)
    else:
        _rect(svg, "0", "100%", kind="track")
        start, width = min(row.start, 0.995), max(row.end - row.start, 0.005)
        _rect(svg, _percent(start), _percent(width), kind=row.kind)


def _percent(part: float) -> str:
    return f"{min(max(part, 0), 1) * 100:.2f}%"


def _rect(svg: Element, x: str, width: str, *, y: str = "0", height: str = "100%", kind: str = "plain") -> Element:
    return SubElement(svg, "rect", {"x": x, "y": y, "width": width, "height": height, "class": kind})
