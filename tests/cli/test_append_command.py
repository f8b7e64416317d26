"""The command `append`, as a user runs it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aegis_store import EventStore
from tests.cli.conftest import Run


@pytest.fixture
def filled(path: Path) -> Path:
    """A store with the session `run-1`, which has no event."""
    with EventStore.open(path) as store:
        store.create_session("run-1")
    return path


def events(path: Path, session_id: str = "run-1") -> list[tuple[str, Any]]:
    with EventStore.open(path, read_only=True) as store:
        return [(event.type, event.payload) for event in store.read(session_id).events]


def refused(done: "subprocess.CompletedProcess[str]", *words: str, code: int = 2) -> None:
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
    assert all(word in done.stderr for word in words), done.stderr


def jsonl(*lines: Any) -> bytes:
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


def test_a_payload_comes_from_an_argument_from_a_file_and_from_stdin(run: Run, filled: Path, tmp_path: Path) -> None:
    (tmp_path / "payload.json").write_bytes(b'\xef\xbb\xbf{"from":\r\n"a file"}')
    assert run("append", "run-1", "note", '{"from": "an argument"}').stdout == "1 event in session run-1: seq 1\n"
    assert run("append", "run-1", "note", "--file", "payload.json").returncode == 0
    assert run("append", "run-1", "note", stdin=b'{"from": "stdin"}\n').returncode == 0
    assert events(filled) == [("note", {"from": origin}) for origin in ("an argument", "a file", "stdin")]


def test_what_is_stored_equals_what_was_given(run: Run, filled: Path) -> None:
    payload = {"-0.0": -0.0, "cut emoji": "\ud83d", "nul": "\0", "deep": [[[[]]]], "int": 10**400, "true": True, "one": 1.0}
    assert run("append", "run-1", "note", stdin=json.dumps(payload).encode()).returncode == 0
    ((_, stored),) = events(filled)
    assert repr(stored) == repr(payload)


def test_with_json_the_event_is_printed_as_it_is_stored(run: Run, filled: Path) -> None:
    options = ("--event-id", "e-1", "--run-id", "r-1", "--payload-ref", "s3://x", "--occurred-at", "2026-11-25T13:00:00+01:00")
    printed = json.loads(run("append", "run-1", "note", "[1]", *options, "--json").stdout)
    given = {"session_id": "run-1", "seq": 1, "event_id": "e-1", "run_id": "r-1", "payload_ref": "s3://x", "payload": [1]}
    assert {name: printed[name] for name in given} == given
    assert printed["occurred_at"] == "2026-11-25T12:00:00+00:00"
    assert printed == json.loads(run("events", "run-1", "--json").stdout)


def test_an_event_id_makes_it_harmless_to_repeat(run: Run, filled: Path) -> None:
    for _ in range(2):
        assert run("append", "run-1", "note", "1", "--event-id", "e-1").stdout.endswith("seq 1\n")
    refused(run("append", "run-1", "note", "2", "--event-id", "e-1"), "'e-1'", "other content", code=1)
    assert events(filled) == [("note", 1)]


def test_an_expected_seq_that_is_not_the_last_is_told(run: Run, filled: Path) -> None:
    assert run("append", "run-1", "note", "1", "--expected-seq", "0").returncode == 0
    refused(run("append", "run-1", "note", "2", "--expected-seq", "0"), "is at seq 1, not at 0", code=1)


def test_no_session_and_no_store_is_created_unless_it_is_asked_for(run: Run, filled: Path, tmp_path: Path) -> None:
    refused(run("append", "nobody", "note", "1"), "'nobody'", code=3)
    refused(run("append", "nobody", "note", "1", "--db", "new.db"), "there is no such file", code=5)
    assert not (tmp_path / "new.db").exists()
    assert run("append", "somebody", "note", "1", "--create", "--db", "new.db").returncode == 0
    assert run("append", "somebody", "note", "2", "--create", "--db", "new.db").returncode == 0
    assert events(tmp_path / "new.db", "somebody") == [("note", 1), ("note", 2)]


def test_appending_prunes_nothing(run: Run, filled: Path) -> None:
    run("append", "run-1", "note", "1")
    with EventStore.open(filled, prune_on_open=False) as store:
        store.set_status("run-1", "completed")
    run("append", "run-1", "note", "2")
    assert events(filled) == [("note", 1), ("note", 2)]


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        (b"", "stdin is no JSON (it is empty)"),
        (b"text", "column 1: a value is missing"),
        (b'{"a": 1,\n "b" 2}', "line 2, column 6: a colon is missing"),
        (b'["a" "b"]', "column 6: a comma or the closing bracket is missing"),
        (b'{"a": ', "at its end: a value is missing"),
        (b'{"a": 1', "at its end: a comma or the closing bracket is missing"),
        (b'["a', "column 2: a text begins that has no closing quote"),
        (b'"a\nb"', "line 1, column 3: a line break or control character stands in a text"),
        (b'"C:\\q"', "there is no such escape: write a backslash twice"),
        (b'"\\u12"', "the escape \\u needs four hexadecimal digits"),
        (b"NaN", "NaN is not JSON"),
        (b"1e999", "inf"),
        (b"\xff", "no UTF-8"),
        (b"{} {}", "the document has ended, and more follows"),
        (b"[" * 300 + b"]" * 300, "200 levels"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "over 4,300 digits"),
        (b'"' + b"x" * 1_100_000 + b'"', "over the limit of 1,048,576"),
    ],
)
def test_a_payload_that_cannot_be_stored_is_told_in_one_line(run: Run, filled: Path, payload: bytes, word: str) -> None:
    refused(run("append", "run-1", "note", stdin=payload), word)
    assert events(filled) == []


@pytest.mark.parametrize(
    ("payload", "problem", "advice"),
    [
        ("{bad", "column 2: a name in double quotes is missing", "the shell takes double quotes away"),
        ("{bad: 1}", "a name in double quotes is missing", "put single quotes around it all"),
        ("text", "a value is missing", "a text needs double quotes, and single ones for the shell"),
        ('{"a": }', "column 7: a value is missing", None),
    ],
)
def test_the_advice_fits_what_the_shell_did_to_a_payload(
    run: Run, filled: Path, payload: str, problem: str, advice: str | None
) -> None:
    done = run("append", "run-1", "note", payload)
    refused(done, f"PAYLOAD is no JSON ({problem}" if problem.startswith("column") else problem, advice or problem)
    assert (";" in done.stderr) == (advice is not None)


def test_lines_come_in_in_order_as_one_batch(run: Run, filled: Path) -> None:
    lines = jsonl({"type": "a", "payload": 1}, {"payload": None, "event_id": "e"}, {"type": "c", "payload": [3]})
    done = run("append", "run-1", "note", "--jsonl", stdin=b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n\r\n"))
    assert (done.returncode, done.stdout) == (0, "3 events in session run-1: seq 1 to 3\n")
    assert events(filled) == [("a", 1), ("note", None), ("c", [3])]


def test_what_events_prints_can_be_appended_to_another_session_with_its_times_and_ids(run: Run, filled: Path) -> None:
    run("append", "run-1", "note", '"\\ud83d"', "--event-id", "e-1", "--occurred-at", "2001-02-03T04:05:06Z")
    copied = run("append", "run-2", "--jsonl", "--create", "--json", stdin=run("events", "run-1", "--json").stdout.encode())
    original, copy = (json.loads(run("events", name, "--json").stdout) for name in ("run-1", "run-2"))
    assert json.loads(copied.stdout) == copy
    for name in ("type", "payload", "event_id", "occurred_at"):
        assert copy[name] == original[name]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b'{"payload": 1, "event-id": "e"}', "'event-id'"),
        (b'{"type": "t"}', "no `payload`"),
        (b'{"payload": 1}', "no `type`"),
        (b"[1]", "must be an object"),
        (b'{"type": "t", "payload": 1', "is no JSON"),
        (b'{"type": "t", "payload": 1, "occurred_at": "yesterday"}', "'yesterday'"),
        (b'{"type": "t", "payload": 1, "occurred_at": 5}', "not 5"),
    ],
)
def test_a_line_that_cannot_be_taken_is_named_and_nothing_is_appended(run: Run, filled: Path, line: bytes, word: str) -> None:
    given = jsonl({"type": "t", "payload": 1}) + b"\n" + line + b"\n" + jsonl({"type": "t", "payload": 2})
    refused(run("append", "run-1", "--jsonl", stdin=given), "line 3", word)
    assert events(filled) == []


def test_a_line_that_the_store_refuses_is_named_by_its_place_and_nothing_is_appended(run: Run, filled: Path) -> None:
    lines = [{"type": "t", "payload": number, "event_id": "same"} for number in range(2)]
    refused(run("append", "run-1", "--jsonl", stdin=jsonl(*lines)), "events[1]", "'same'", code=1)
    refused(run("append", "run-1", "--jsonl", stdin=jsonl(lines[0], {"type": "", "payload": 1})), "events[1].type")
    assert events(filled) == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("run-1",), "TYPE"),
        (("run-1", "t", "1", "--file", "aegis.db"), "--file"),
        (("run-1", "t", "1", "--jsonl"), "PAYLOAD"),
        (("run-1", "--jsonl", "--event-id", "e"), "--event-id"),
        (("run-1", "t", "1", "--occurred-at", "2026-11-25T12:00:00"), "2026-11-25T12:00:00Z"),
        (("run-1", "t", "1", "--occurred-at", "noon"), "'noon'"),
        (("run-1", "t", "--file", "missing.json"), "missing.json"),
        (("run-1", "t", "1", "--expected-seq", "-1"), "0 or more"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_told_in_one_line(
    run: Run, filled: Path, arguments: tuple[str, ...], word: str
) -> None:
    refused(run("append", *arguments), word)
    assert events(filled) == []


def test_a_file_that_is_not_there_or_is_a_directory_is_named_in_one_sentence(run: Run, filled: Path, tmp_path: Path) -> None:
    refused(run("append", "run-1", "note", "--file", "nowhere.json"), "'nowhere.json' does not exist (see --help)")
    refused(run("append", "run-1", "note", "--file", str(tmp_path)), "is a directory (see --help)")
