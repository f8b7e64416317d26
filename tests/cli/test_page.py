"""`inspect --html`: a page that needs nothing else, in which what a store holds is text and nothing but text."""

import os
import re
import shutil
import stat
import struct
import subprocess
import zlib
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from aegis_store import EventStore, NewEvent, RetentionPolicy
from aegis_store.cli import glance, page
from tests.cli.conftest import Run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SCRIPT = '<script>document.title="run"</script>'
HOSTILE = (
    *(SCRIPT, '"><img src=x onerror=document.title="run">', "</style>" + SCRIPT, "</title>" + SCRIPT),
    *("'--><svg/onload=document.title='run'>", "&lt;b&gt;&amp;", "<!--", "]]>" + SCRIPT, "javascript:document.title=1"),
)
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer", "h1", "h2"),
    *("dl", "dt", "dd", "svg", "rect", "table", "tr", "td"),
}
# No link, no source, no handler, no style of an element.
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "class", "aria-hidden"),
    *("preserveaspectratio", "viewbox", "x", "y", "width", "height"),
}
PLAIN = (0x1F, 0x7A, 0x8C)


@pytest.fixture
def hostile(path: Path) -> Path:
    """A store whose ids, types, metadata, payloads, tenants and owners would all like to be markup."""
    with EventStore.open(path, durability="process", maintain_every=None) as store:
        for text in HOSTILE:
            store.create_session(text, tenant=text, owner=text, metadata={text: text + "\x1b[31m\x00\ud83d"}, max_events=8)
            store.append_many(text, [NewEvent(type=kind, payload={kind: text + "\x07\ud83d"}) for kind in HOSTILE[:8]])
            store.append(text, text, text)
        store.create_session("ended", status="failed")
        store.append("ended", SCRIPT, SCRIPT)
        store.set_retention_policy(RetentionPolicy(max_total_bytes=10_000))
        store.prune()
    return path


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.policy = ""
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(written)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.attributes |= set(given)
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given.get("content") or ""
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_of(run: Run, store: Path, *arguments: str) -> str:
    done = run("inspect", *arguments, "--html", "page.html", "--db", str(store))
    assert (done.returncode, done.stderr) == (0, "")
    return (store.parent / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("session", [None, *HOSTILE])
def test_whatever_a_store_holds_is_text_on_the_page(hostile: Path, session: str | None) -> None:
    with EventStore.open(hostile, read_only=True) as store:
        if session is None:
            panels = glance.of_store(store.overview(), SCRIPT, "0")
        else:
            panels = glance.of_session(store.session_overview(session))
    parsed = Parsed(page.made(session or SCRIPT, panels, datetime.now(UTC)))
    assert parsed.open == []
    assert parsed.tags <= TAGS
    assert parsed.attributes <= ATTRIBUTES
    told = [text.strip() for text in parsed.texts]
    assert (session or SCRIPT) in told
    assert HOSTILE[2] in told
    assert all(character.isprintable() or character == "\n" for text in parsed.texts for character in text)


def test_the_page_forbids_all_but_its_own_style(run: Run, hostile: Path) -> None:
    written = page_of(run, hostile)
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/=]{44}'; base-uri 'none'; form-action 'none'", Parsed(written).policy
    )
    assert "url(" not in written
    assert "@import" not in written


def test_the_page_has_the_panels_of_the_terminal(run: Run, hostile: Path) -> None:
    texts = Parsed(page_of(run, hostile)).texts
    for title in ("Sessions by status", "Events appended", "Removed, and why"):
        assert title in texts
    assert any(re.fullmatch(r"[0-9]+%, .* of 9.8 KiB", text) for text in texts)


def test_the_file_is_for_its_owner_alone_and_replaces_nothing(run: Run, hostile: Path) -> None:
    page_of(run, hostile)
    file = hostile.parent / "page.html"
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    file.write_text("mine")
    done = run("inspect", "--html", "page.html", "--db", str(hostile))
    assert (done.returncode, file.read_text()) == (2, "mine")
    assert "stands already, and no file is overwritten" in done.stderr
    assert not list(hostile.parent.glob("*.tmp"))


@pytest.mark.parametrize(
    ("file", "code"), [("missing/page.html", 1), ("", 2), ("\ud83d.html", 2), ("file/page.html", 1), (".", 2)], ids=repr
)
def test_a_file_that_cannot_be_written_is_one_line(run: Run, hostile: Path, file: str, code: int) -> None:
    (hostile.parent / "file").write_text("")
    done = run("inspect", "--html", file, "--db", str(hostile))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
    assert "internal error" not in done.stderr


# In a browser


def browse(file: Path, *arguments: str) -> str:
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=500,700"]
    command += [f"--user-data-dir={file.parent / 'browser'}", *arguments, file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def pixels(png: bytes) -> list[bytes]:
    """The pixels of a PNG of 8 bits a channel, which is what a screenshot is."""
    width, _, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert (depth, kind in (2, 6)) == (8, True)
    size, data, at = 3 if kind == 2 else 4, b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        data += png[at + 8 : at + 8 + length] if png[at + 4 : at + 8] == b"IDAT" else b""
        at += length + 12
    rows, above = zlib.decompress(data), bytearray(width * size)
    found: list[bytes] = []
    for start in range(0, len(rows), width * size + 1):
        line = unfiltered(rows[start], bytearray(rows[start + 1 : start + 1 + width * size]), above, size)
        found += [bytes(line[x : x + 3]) for x in range(0, len(line), size)]
        above = line
    return found


def unfiltered(how: int, line: bytearray, above: bytearray, size: int) -> bytearray:
    for x in range(len(line)):
        a, b, c = (line[x - size], above[x], above[x - size]) if x >= size else (0, above[x], 0)
        nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
        line[x] = (line[x] + (0, a, b, (a + b) // 2, nearest)[how]) & 255
    return line


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_draws_the_bars_and_runs_nothing(run: Run, hostile: Path) -> None:
    page_of(run, hostile)
    file = hostile.parent / "page.html"
    shot = file.with_suffix(".png")
    browse(file, f"--screenshot={shot}")
    seen = pixels(shot.read_bytes())
    assert len(seen) == 500 * 700
    assert seen.count(bytes(PLAIN)) > 5000  # bars, in their colour
    assert len(set(seen)) > 50  # and letters
    document = browse(file, "--dump-dom")
    assert f"<title>{hostile} - Aegis Store</title>" in document
    assert "<script" not in document
    # The same browser runs what is not escaped, and the policy of the page forbids that as well.
    head, body = file.read_text().split("<body>")
    file.write_text(f"{head}<body>{SCRIPT}{body}")
    assert f"<title>{hostile} - Aegis Store</title>" in browse(file, "--dump-dom")
    file.write_text(f"{head.replace('Content-Security-Policy', 'nothing')}<body>{SCRIPT}{body}")
    assert "<title>run</title>" in browse(file, "--dump-dom")


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_runs_nothing_of_a_session_either(run: Run, hostile: Path) -> None:
    page_of(run, hostile, SCRIPT)
    document = browse(hostile.parent / "page.html", "--dump-dom")
    assert "<title>&lt;script&gt;" in document
    assert "<script" not in document
