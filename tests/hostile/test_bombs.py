"""Small inputs that would become huge: bounded memory, an end, and an error that says what is the matter.

Each runs in a process of its own that may have so much memory and time; without the bound it dies of MemoryError, or is killed.
"""

import gzip
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from aegis_store import EventStore, StoreFull, StoreUnavailable
from aegis_store.target import Target

_MIB = 1024 * 1024
_MEMORY_BYTES = 512 * _MIB  # less than what these unpack to; 70 of it is the process itself
_FOR_DECODED_BYTES = 1536 * _MIB  # small lists take 24 times the room of their text, and a line has up to 20 MiB
_TIME_S = 20

HEADER = b'{"format":"aegis-store","version":1,"written_at":"2026-11-26T00:00:00+00:00","policy":null}\n'
SESSION = (
    b'{"session":{"session_id":"%s","tenant":"t","owner":"o","status":"running","max_events":null,"hold":false,"first_seq":1,'
    b'"last_seq":0,"removed_bytes":0,"created_at":null,"updated_at":null,"ended_at":null,"last_event_at":null,"removed_at":null,'
    b'"removed_reason":null,"metadata":{}}}\n'
)
HOOK = b'{"session_id": "s", "hook_event_name": "t", "x": '
STATE = b'{"version": 1, "sessions": [], "events": ['

Bomb = tuple[bytes, bytes, int] | tuple[bytes, bytes, int, bytes]


def run_limited(
    directory: Path, *arguments: str, stdin: Path | None = None, memory_bytes: int = _MEMORY_BYTES
) -> "subprocess.CompletedProcess[str]":
    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (_TIME_S, _TIME_S))

    with open(stdin or "/dev/null", "rb") as given:
        return subprocess.run(
            [sys.executable, "-c", "from aegis_store.cli import main; main()", *arguments],
            cwd=directory,
            stdin=given,
            capture_output=True,
            text=True,
            preexec_fn=limits,
            timeout=2 * _TIME_S,
        )


def bomb(file: Path, start: bytes, piece: bytes, mib: int, end: bytes = b"") -> None:
    """So many MiB of the same, between a start and an end, packed."""
    block = gzip.compress(piece * (_MIB // len(piece)), compresslevel=9)
    file.write_bytes(gzip.compress(start) + block * mib + gzip.compress(end))
    assert file.stat().st_size < 2 * _MIB


def needs(piece: bytes) -> int:
    return _FOR_DECODED_BYTES if piece == b"[]," else _MEMORY_BYTES


def _some(bombs: Iterable[str]) -> list[ParameterSet]:
    """Those that were not taken well once, always; the others with `-m torture`."""
    once = {"a number without end", "lists without end", "ids without end", "white space before the end"}
    return [pytest.param(what, marks=[] if what in once else [pytest.mark.torture]) for what in bombs]


LINES: dict[str, tuple[Bomb, str]] = {
    "a first line without end": ((b"", b" ", 600), "the line is longer than 20,971,520 bytes (line 1)"),
    "white space without end": ((HEADER, b" " * 1023 + b"\n", 100), "neither a session nor an event"),
    "a number without end": ((HEADER + b'{"event":{"seq":', b"9", 19), "a whole number has over 4,300 digits"),
    "lists without end": ((HEADER + b'{"event":{"payload":', b"[", 19), "it is nested too deeply"),
    "objects without end": ((HEADER + b'{"event":{"payload":', b'{"a":', 19), "it is nested too deeply"),
    "small lists without end": ((HEADER + b'{"event":{"payload":[', b"[],", 19, b"1]}}\n"), "has no event_id"),
    "ids without end": ((HEADER, SESSION % (b"x" * 1_000_000), 600), "session_id must be 512 bytes at the most"),
    "names without end": ((HEADER + b'{"event":{', b'"a":1,', 19), "'a' stands twice"),
}


@pytest.mark.parametrize("what", _some(LINES))
def test_a_file_of_lines_that_unpacks_to(tmp_path: Path, what: str) -> None:
    made, told = LINES[what]
    bomb(tmp_path / "bomb.jsonl.gz", *made)
    done = run_limited(tmp_path, "import", "bomb.jsonl.gz", memory_bytes=needs(made[1]))
    assert (done.returncode, len(done.stderr.splitlines())) == (7, 1)
    assert told in done.stderr
    assert not (tmp_path / "aegis.db").exists()


STATES: dict[str, tuple[Bomb, str]] = {
    "white space before the end": ((b"", b" ", 600), "it ends too early (at its start)"),
    "a text without end": ((STATE + b'"', b"x", 600), "an item is longer than 20,971,520 characters"),
    "a number without end": ((STATE, b"9", 600), "a whole number has over 4,300 digits"),
    "a float without end": ((STATE + b"1.", b"9", 600), "an item is longer than 20,971,520 characters"),
    "lists without end": ((STATE, b"[", 600), "it is nested too deeply"),
    "objects without end": ((STATE, b'{"a":', 600), "it is nested too deeply"),
    "a list without end in an item": ((STATE + b"[", b"[],", 600), "an item is longer than 20,971,520 characters"),
    "parts without end": ((b"{", b'"a":1,', 600), "it stands twice"),
}


@pytest.mark.parametrize("what", _some(STATES))
def test_a_state_file_that_unpacks_to(tmp_path: Path, what: str) -> None:
    made, told = STATES[what]
    bomb(tmp_path / "bomb.json.gz", *made)
    done = run_limited(tmp_path, "import-aegis", "bomb.json.gz", memory_bytes=needs(made[1]))
    assert (done.returncode, len(done.stderr.splitlines())) == (7, 1)
    assert told in done.stderr
    assert not (tmp_path / "aegis.db").exists()


ROOM_BYTES = 3 * _MIB


@pytest.mark.parametrize("name", ["bomb.json.gz", "bomb.jsonl.gz"])
def test_what_unpacks_to_more_than_there_is_room_for_leaves_some(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(ROOM_BYTES, 0, ROOM_BYTES))
    taken = [0]

    def look(_done: int, _size: int) -> None:
        taken.append(sum(file.stat().st_size for file in (tmp_path / "temporary").rglob("*.db")))

    if name == "bomb.json.gz":
        bomb(tmp_path / name, STATE + b"{}", b',{"sessionId":"s","payload":"%b"}' % (b"x" * 1000), 60)
    else:
        sessions = b"".join(SESSION % (b"%0100d" % number) for number in range(15_000))
        (tmp_path / name).write_bytes(gzip.compress(HEADER + sessions, compresslevel=1))
    before = path.read_bytes()
    with EventStore.open(path, maintain_every=None) as store, pytest.raises(StoreFull) as caught:
        store.import_aegis(tmp_path / name, on_bytes=look) if name == "bomb.json.gz" else store.import_lines(tmp_path / name)
    assert f"it may take {ROOM_BYTES * 9 // 10:,} bytes, nine tenths of what was free" in str(caught.value)
    assert str(tmp_path / "temporary") in caught.value.store
    assert max(taken) <= ROOM_BYTES * 9 // 10
    assert list((tmp_path / "temporary").iterdir()) == []
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "arguments", ["append s t --create", "append s t --create --jsonl", "append s t --create --file /dev/zero"]
)
def test_an_input_without_end_is_not_read_without_end(tmp_path: Path, arguments: str) -> None:
    done = run_limited(tmp_path, *arguments.split(), stdin=Path("/dev/zero"), memory_bytes=_FOR_DECODED_BYTES)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "is longer than 67,108,864 bytes" in done.stderr


def test_lines_without_end_take_no_room_before_they_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_bytes(b"{}\n" * (21 * _MIB))
    done = run_limited(tmp_path, "append", "s", "t", "--create", "--jsonl", "--file", "lines.jsonl")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "line 1 has no `payload`" in done.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (HOOK + b"9" * 30_000_000 + b"}", "a whole number has over 4,300 digits"),
        (HOOK + b"[" * 30_000_000, "is nested too deeply"),
        (HOOK + b"[" + b"[]," * 9_000_000 + b"1]}", "over the limit of"),
        (b"{" + b"".join(b'"%d":1,' % n for n in range(300_000)) + b'"x":1,"x":1}', "the name 'x' stands twice"),
    ],
    ids=["a long number", "depth", "small lists", "a name that stands twice among many"],
)
def test_a_hook_event_that_would_be_huge_is_set_aside(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "event.json").write_bytes(content)
    done = run_limited(tmp_path, "record", "--lenient", stdin=tmp_path / "event.json", memory_bytes=_FOR_DECODED_BYTES)
    assert (done.returncode, len(done.stderr.splitlines())) == (0, 1)
    assert "an event was set aside" in done.stderr
    assert told in done.stderr


@pytest.mark.timeout(10)  # it took hours for the first, and 4 s for the second
@pytest.mark.parametrize("repeated", ["?pass", "://:", ";", "&pass=", "@", "a:"])
def test_hiding_the_password_of_a_long_url_takes_no_time(repeated: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        Target.of(f"x://me:hunter2@host/?password=hunter2&{repeated * 20_000}")
    assert "hunter2" not in caught.value.store


def test_a_file_of_the_spool_without_end_is_set_aside_unread(tmp_path: Path) -> None:
    spool = tmp_path / "aegis.db-spool"
    spool.mkdir(mode=0o700)
    with (spool / "0.json").open("wb") as file:
        file.truncate(1024 * _MIB)
    done = run_limited(tmp_path, "spool", "flush")
    assert (done.returncode, done.stderr) == (7, "")
    assert (spool / "rejected" / "0.json").stat().st_size == 1024 * _MIB
    done = run_limited(tmp_path, "spool", "show", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "longer than an event can make it" in done.stdout


@pytest.mark.parametrize("sessions", [3000, pytest.param(30_000, marks=pytest.mark.torture)])
def test_of_many_sessions_that_are_refused_the_first_thousand_are_named(tmp_path: Path, sessions: int) -> None:
    (tmp_path / "state.json").write_bytes(b'{"version":1,"events":[],"sessions":[' + b"{}," * (sessions - 1) + b"{}]}")
    lines = HEADER + b"".join(SESSION % b"%d" % n for n in range(2500)) + b'{"end":{"sessions":2500,"events":0}}\n'
    (tmp_path / "export.jsonl").write_bytes(lines)
    for arguments, refused in ((("import-aegis", "state.json"), sessions), (("import", "export.jsonl"), 2500)):
        done = run_limited(tmp_path, *arguments)  # 30,000 took minutes, when all of one id were counted for each
        assert (done.returncode, done.stderr) == (7, "")
        assert f"{refused:,} sessions refused:" in done.stdout
        assert done.stdout.endswith(f"... and {refused - 1000:,} more.\n")
    report = json.loads(run_limited(tmp_path, "import", "export.jsonl", "--json").stdout)
    assert (len(report["refused"]), report["more_refused"]) == (1000, 1500)
