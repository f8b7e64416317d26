"""The command `inspect`: its pictures on terminals of every width and kind, refreshed and once."""

import io
import json
import os
import pty
import re
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from aegis_store import EventStore, NewEvent, RetentionPolicy
from aegis_store.cli import glance
from aegis_store.cli.pictures import ASCII, UNICODE, Painter, Span, bar, span, sparkline
from tests.cli.conftest import Run

HOSTILE = "\x1b[31mred\x07\u202e\ud83d end"
NAMES = ("\u202edlrow", "日本語のセッション" * 9, "👩\u200d👩\u200d👧 family 🇩🇪", "x" * 400, "<b>&amp;", "run-42")
WAIT_S = 60
BLOCKS = "█▉▊▋▌▍▎▏░▁▂▃▄▅▆▇·│…"


@pytest.fixture
def filled(path: Path) -> Path:
    """A store with a budget, a session at its cap, names of every kind, prunes behind it, and free pages."""
    with EventStore.open(path, durability="process", maintain_every=None) as store:
        for name in NAMES:
            store.create_session(name, metadata={"note": HOSTILE}, max_events=20 if name == "run-42" else None)
            for type_ in ("hook", "日本語", "\u202eevil", "t" * 300):
                store.append_many(name, [NewEvent(type=type_, payload={"text": HOSTILE + "y" * 40 * n}) for n in range(12)])
        for number in range(40):
            store.create_session(f"ended-{number}", status="failed")
            store.append(f"ended-{number}", "hook", "x" * 4000)
        store.set_retention_policy(RetentionPolicy(max_total_bytes=400_000))
        store.prune()
    return path


@pytest.mark.parametrize("width", [20, 40, 80, 120, 160, 240])
def test_no_line_is_wider_than_the_terminal(filled: Path, width: int) -> None:
    painter = Painter(Console(file=io.StringIO(), width=width))
    with EventStore.open(filled, read_only=True) as store:
        panels = [glance.of_session(store.session_overview(name)) for name in NAMES]
        panels.append(glance.of_store(store.overview(), str(filled), "0"))
    for shown in panels:
        assert max(line.cell_len for line in painter.lines(shown)) <= width


@pytest.mark.parametrize("width", [40, 80, 160])
def test_what_is_printed_fits_the_terminal(run: Run, filled: Path, width: int) -> None:
    done = run("inspect", NAMES[1], COLUMNS=str(width))
    assert (done.returncode, done.stderr) == (0, "")
    assert width // 2 < max(map(cell_len, done.stdout.splitlines())) <= width


@pytest.mark.parametrize("width", [40, 57, 70, 80])
def test_the_times_of_the_last_events_are_whole_however_narrow_the_terminal(run: Run, filled: Path, width: int) -> None:
    last = run("inspect", "run-42", COLUMNS=str(width)).stdout.partition("Last events\n")[2]
    assert len(re.findall(r"^ +(?:39|4\d)  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:  .+|\n    \S.+)$", last, re.MULTILINE)) == 10


@pytest.mark.parametrize("session", [(), (NAMES[0],), (NAMES[2],)], ids=["store", "bidi", "emoji"])
def test_nothing_that_a_store_holds_reaches_the_terminal_as_anything_but_letters(
    run: Run, filled: Path, session: tuple[str, ...]
) -> None:
    done = run("inspect", *session)
    assert done.returncode == 0
    assert all(character.isprintable() for character in done.stdout.replace("\n", ""))


def test_the_store_is_told_by_status_budget_cap_time_type_session_and_removal(run: Run, filled: Path) -> None:
    shown = run("inspect").stdout
    titles = [line for line in shown.splitlines() if line and not line.startswith(" ")][1:]
    assert [re.sub(r"\(since.*", "(since)", title) for title in titles] == [
        "Sessions by status",
        "Events appended",
        "Types of the newest 260 events (since)",
        "Busiest sessions of the newest 260 events",
        "Removed, and why",
    ]
    assert re.search(r"budget +█+[█▏▎▍▌▋▊▉]?░+ +[0-9]+%, [0-9]+ KiB of 391 KiB\n", shown)
    assert re.search(r"at the cap +█*[█▏▎▍▌▋▊▉]?░+ +2%, 1 of 46 sessions\n", shown)
    assert re.search(r"failed +█+ +40\n", shown)
    assert re.search(r"last hour +328 events, at most [0-9]+ a minute, since [0-9:]{5} UTC\n", shown)
    assert re.search(r"hook +[█▏▎▍▌▋▊▉]+ +60 \(23%\), ", shown)
    assert re.search(r"terminal_grace +█+ +40 events\n", shown)
    assert re.search(r"otherwise +[█▏▎▍▌▋▊▉]+ +28 events: caps, deletions\n", shown)
    assert re.search(r"prune +[0-9: -]{19} UTC, api: 40 events, 156 KiB, done\n", shown)


def test_room_that_is_worth_it_is_told_with_the_command_to_run(run: Run, filled: Path) -> None:
    shown = run("inspect").stdout
    (command,) = re.findall(r"^ +aegis-store (reclaim --db .*)$", shown, re.MULTILINE)
    assert re.search(r"to reclaim +[█▏▎▍▌▋▊▉]+░+ +[0-9]+% of the file\n", shown)
    assert run(*command.split()).returncode == 0
    assert "to reclaim" not in run("inspect").stdout


def test_what_caps_removed_is_told_where_no_prune_has_run(run: Run, path: Path) -> None:
    with EventStore.open(path) as store:
        store.create_session("s", max_events=1)
        for _ in range(3):
            store.append("s", "t", 1)
    assert re.search(r"Removed, and why\n  otherwise +█+ +2 events: caps, deletions\n", run("inspect").stdout)


def test_a_store_whose_events_are_old_says_that_none_came(run: Run, path: Path, shell: sqlite3.Connection) -> None:
    with EventStore.open(path) as store:
        store.create_session("s")
        store.append("s", "t", 1)
    shell.execute("DROP TRIGGER event_guards_update")
    shell.execute("UPDATE event SET recorded_at = recorded_at - 3 * 86400000000")
    shell.execute("UPDATE session SET created_at = created_at - 3 * 86400000000")
    assert "  last hour  none\n  last day   none\n" in run("inspect").stdout


def test_an_empty_store_is_told_in_few_words(run: Run, path: Path) -> None:
    shown = run("inspect").stdout
    assert [line for line in shown.splitlines() if not line.startswith("  ")] == ["aegis.db"]
    assert "sessions    0\n" in shown


def test_a_session_is_told_by_cap_life_types_sizes_and_last_events(run: Run, filled: Path) -> None:
    shown = run("inspect", "run-42").stdout
    assert re.search(r"cap +█+ +100%, 20 of 20 events \(its own\)\n", shown)
    assert re.search(r"removed +░+ +seq 1 to 28, max_events\n", shown)
    assert re.search(r"retained +█+ +seq 29 to 48\n", shown)
    assert re.search(r"(first|last) event +│ +[0-9: -]{19} UTC\n", shown)
    assert re.search(r"now +│ +[0-9: -]{19} UTC\n", shown)
    assert re.search(r"t{30,}… +█+ +12 \(60%\), ", shown)
    assert re.search(r"up to 256 B +█*[█▏▎▍▌▋▊▉]? +[0-9]+\n", shown)
    last = shown.partition("Last events\n")[2].splitlines()
    assert [line.split()[0] for line in last] == [str(seq) for seq in range(39, 49)]


def test_a_session_that_ended_without_events_left_has_a_life(run: Run, filled: Path) -> None:
    shown = run("inspect", "ended-3").stdout
    assert re.search(r"removed +░+ +seq 1 to 1, terminal_grace\n", shown)
    assert re.search(r"ended +│ +[0-9: -]{19} UTC\n", shown)
    assert "Last events" not in shown


def test_the_json_has_all_that_the_pictures_show(run: Run, filled: Path) -> None:
    found = json.loads(run("inspect", "--json").stdout)
    assert (found["sessions_at_cap"], found["bytes_are_estimates"]) == (1, False)
    assert (sum(found["last_hour"]["counts"]), found["last_hour"]["step_s"], len(found["last_day"]["counts"])) == (328, 60, 24)
    assert {share["name"]: share["events"] for share in found["newest"]["types"]}["hook"] == 60
    assert found["newest"]["sessions"][0]["events"] == 48
    assert found["prunes"][0]["by_reason"] == {"terminal_grace": 40}
    assert found["health"]["budget_used"] > 0
    assert found["file_bytes"] > found["free_bytes"] > 0
    found = json.loads(run("inspect", "run-42", "--json").stdout)
    assert (found["cap"], found["event_count"], found["removed_reason"]) == (20, 20, "max_events")
    assert found["first_event_at"] <= found["last_event_at"] <= found["at"]
    assert sum(each["events"] for each in found["sizes"]["up_to"]) == found["newest"]["events"] == 20
    assert [event["seq"] for event in found["last_events"]] == list(range(39, 49))


# Terminals that show less


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"LANG": "C", "LC_ALL": ""}, {"PYTHONIOENCODING": "ascii"}], ids=str)
def test_without_unicode_bars_are_of_ascii(run: Run, filled: Path, environment: dict[str, str]) -> None:
    for session in ((), ("run-42",)):
        done = run("inspect", *session, COLUMNS="80", **environment)
        assert done.returncode == 0
        assert not set(BLOCKS[:-1]) & set(done.stdout)
        assert re.search(r"[a-z] +#+", done.stdout)
        assert max(map(cell_len, done.stdout.splitlines())) <= 80
        if "PYTHONIOENCODING" in environment:
            assert done.stdout.isascii()


def on_a_terminal(filled: Path, *arguments: str, **environment: str) -> str:
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", "from aegis_store.cli import main; main()", "inspect", *arguments, "--db", str(filled)]
    given = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LANG": "C.UTF-8", "LC_ALL": "", **environment}
    with subprocess.Popen(command, stdout=follower, env={k: v for k, v in given.items() if v}) as process:
        os.close(follower)
        shown = b""
        while not process.poll():
            try:
                shown += os.read(leader, 65536)
            except OSError:  # its end
                break
    os.close(leader)
    return shown.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_a_terminal_gets_colours_unless_it_or_the_user_wants_none(filled: Path, run: Run) -> None:
    assert "\x1b[36m" in on_a_terminal(filled)
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", on_a_terminal(filled, **environment))
    assert "\x1b" not in run("inspect").stdout


# Again and again


class Watched:
    """`inspect --watch` on a terminal of 80 columns and so many lines."""

    def __init__(self, filled: Path | str, lines: int, *arguments: str) -> None:
        import fcntl
        import termios

        self._leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 80, 0, 0))
        program = "from aegis_store.cli import main; main()"
        command = [sys.executable, "-c", program, "inspect", *arguments, "--watch", "--every", "0.1", "--db", str(filled)]
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "LC_ALL")}
        self.process = subprocess.Popen(
            command, stdout=follower, stderr=subprocess.PIPE, env={**environment, "TERM": "xterm", "LANG": "C.UTF-8"}
        )
        os.close(follower)
        self.shown = ""

    def until(self, pattern: str) -> None:
        self._read(lambda: re.search(pattern, self.shown) is not None)

    def _read(self, is_enough: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not is_enough():
            assert time.monotonic() < deadline_s, self.shown[-2000:]
            if select.select([self._leader], [], [], 1)[0]:
                try:
                    self.shown += os.read(self._leader, 65536).decode(errors="replace")
                except OSError:  # its end
                    return

    def end(self) -> tuple[int, bytes]:
        self.process.send_signal(signal.SIGINT)
        self._read(lambda: False)
        _, errors = self.process.communicate(timeout=WAIT_S)
        os.close(self._leader)
        return self.process.returncode, errors


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_watch_shows_what_comes_until_ctrl_c_and_leaves_the_screen_as_it_was(filled: Path) -> None:
    watched = Watched(filled, 60)
    watched.until("260 retained")
    with EventStore.open(filled, prune_on_open=False, maintain_every=None) as store:
        store.append(NAMES[1], "hook", 1)
    watched.until("261 retained")
    assert "\x1b[?1049h" in watched.shown
    assert "more lines" not in watched.shown
    assert watched.end() == (130, b"aegis-store: interrupted\n")
    assert "\x1b[?1049l" in watched.shown


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_watch_says_what_a_low_terminal_does_not_show(filled: Path) -> None:
    watched = Watched(filled, 12, "run-42")
    watched.until(r"\([0-9]+ more lines: make the terminal larger\)")
    assert watched.end()[0] == 130


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--watch",), "'--watch': it draws on a terminal, and the output is none"),
        (("--watch", "--json"), "'--watch': not together with --json"),
        (("--html", "page.html", "--json"), "'--html': not together with --json"),
        (("--every", "3"), "'--every': it goes with --watch"),
        (("--watch", "--every", "0"), "'--every': must be 0.1 or more, not '0'"),
        (("--watch", "--every", "often"), "'--every': must be a number, not 'often'"),
    ],
    ids=" ".join,
)
def test_what_does_not_go_together_is_refused_in_one_line(
    run: Run, filled: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = run("inspect", *arguments)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert told in done.stderr


# The signs


@pytest.mark.parametrize(
    ("part", "drawn"), [(0, ""), (0.001, "▏"), (0.5, "████"), (0.51, "████▏"), (1, "█" * 8), (7, "█" * 8), (-1, "")]
)
def test_a_bar_is_as_long_as_its_part_and_something_is_never_nothing(part: float, drawn: str) -> None:
    assert bar(part, 8, UNICODE) == drawn


def test_a_bar_of_ascii_has_whole_signs() -> None:
    assert [bar(part, 8, ASCII) for part in (0.001, 0.5, 1)] == ["#", "####", "########"]


def test_a_sparkline_has_a_sign_for_each_number_and_one_of_its_own_for_none() -> None:
    assert sparkline([0, 1, 4, 8, 1000], 10, UNICODE) == "·▁▁▁█"
    assert sparkline(range(9), 10, UNICODE) == UNICODE.heights
    assert sparkline(range(9), 10, ASCII) == ASCII.heights
    assert sparkline([0, 0], 10, UNICODE) == "··"


def test_a_sparkline_without_room_puts_neighbours_together() -> None:
    assert sparkline([1, 1, 0, 0, 4, 4], 3, UNICODE) == "▂·█"
    assert len(sparkline([1] * 60, 20, UNICODE)) == 20


@pytest.mark.parametrize(
    ("start", "end", "kind", "drawn"),
    [(0, 0, "plain", "│"), (1, 1, "plain", "         │"), (0.2, 0.5, "plain", "  ████"), (0, 1, "gone", "░" * 10)],
)
def test_a_span_stands_in_its_place(start: float, end: float, kind: Any, drawn: str) -> None:
    assert span(Span("", start, end, "", kind), 10, UNICODE) == drawn


# The README


def test_the_picture_in_the_readme_is_one_that_is_drawn(run: Run, filled: Path) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    pictured = readme.partition("## At a glance")[2].partition("```text\n")[2].partition("```")[0]
    shown = run("inspect").stdout

    def outline(picture: str) -> list[str]:
        return [re.sub("[0-9,]+|\\(since.*", "", line) for line in picture.splitlines()[1:] if line[:1].strip()]

    assert outline(pictured) == outline(shown)
    assert max(map(len, pictured.splitlines())) <= 80
