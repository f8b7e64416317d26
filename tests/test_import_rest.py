"""What an import leaves out of a state file, in a file of its own: byte for byte, whole, or not there at all."""

import gzip
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_store import EventStore, FileUnavailable, ImportRejected, InvalidInput, StoreFull
from aegis_store.transfer import json_text
from aegis_store.transfer.aegis_file import staged
from aegis_store.transfer.json_text import JsonText
from tests.test_import_aegis import MEASURED, ROOT, event_record, events_of, session_record

PARTS = {
    "a list": '[{"id": "a", "at": 1779516223248}, {"id": "b"}]',
    "white space": '[ \n\t{ "id" :\r\n "a" } ,1 ]',
    "numbers as they were written": "[1e5, 1.50, -0.0, 0.1E+2, 123456789012345678901234567890, -0]",
    "escapes as they were written": r'["\u0041", "\/", "\u00e9", "\ud83d\ude00", "\ud83d", "\udc00x", "\u0000"]',
    "text beyond ASCII": '["größe 店 🦀 \u2028\u202e"]',
    "names that stand twice": '{"a": 1, "a": 2}',
    "an object": '{"by": {"id": [1, {}]}}',
    "a number": "17",
    "a text": '"saved"',
    "null": "null",
    "an empty list": "[ ]",
    "an empty object": "{ }",
    "deep": "[" * 150 + "]" * 150,
}


@pytest.fixture
def rest(tmp_path: Path) -> Path:
    return tmp_path / "rest.json"


def state_of(*parts: tuple[str, str], sessions: Any = (), events: Any = ()) -> str:
    """The text of a state file, whose other parts stand before, between and after its sessions and events."""
    taken = [("version", "1"), ("sessions", json.dumps(list(sessions))), ("events", json.dumps(list(events)))]
    members = [*parts[:1], taken[0], *parts[1:2], *taken[1:], *parts[2:]]
    return "{ " + " ,\n".join(f"{json.dumps(name)} : {value} " for name, value in members) + "}\n"


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "state.json"
    file.write_bytes(text.encode())
    return file


def rest_of(*parts: tuple[str, str]) -> bytes:
    """The file of the rest that has these parts and no other."""
    content = "{\n" + ",\n".join(f"{json.dumps(name)}: {value}" for name, value in parts) + "\n}\n"
    assert list(json.loads(content)) == [name for name, _ in parts]
    return content.encode()


# What it holds


@pytest.mark.parametrize("value", PARTS.values(), ids=list(PARTS))
def test_a_part_is_in_the_file_byte_for_byte(store: EventStore, tmp_path: Path, rest: Path, value: str) -> None:
    store.import_aegis(written(tmp_path, state_of(("actions", value))), rest=rest)
    assert rest.read_bytes() == rest_of(("actions", value))


def test_every_part_that_is_not_taken_is_in_it_and_no_other(store: EventStore, tmp_path: Path, rest: Path) -> None:
    parts = [("pauseInterventions", "[ 1 ]"), ("savedAt", "1.0"), ("actions", "[]"), ('"\n\ud83d', "{}")]
    report = store.import_aegis(written(tmp_path, state_of(*parts, sessions=[session_record()])), rest=rest)
    assert report.not_taken.keys() == dict(parts).keys()
    assert rest.read_bytes() == rest_of(*parts)


def test_a_state_file_without_such_parts_leaves_an_empty_object(store: EventStore, tmp_path: Path, rest: Path) -> None:
    store.import_aegis(written(tmp_path, state_of()), rest=rest)
    assert rest.read_bytes() == b"{}\n"


def test_a_gzip_file_has_its_rest_written_plain(store: EventStore, tmp_path: Path, rest: Path) -> None:
    file = tmp_path / "state.json.gz"
    file.write_bytes(gzip.compress(state_of(("actions", "[ 1 ]")).encode()))
    store.import_aegis(file, rest=rest)
    assert rest.read_bytes() == rest_of(("actions", "[ 1 ]"))


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64, 100])
def test_it_is_the_same_wherever_the_reading_stops_for_more(
    store: EventStore, tmp_path: Path, rest: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(json_text, "_CHUNK_BYTES", chunk_bytes)
    text = state_of(*PARTS.items(), sessions=[session_record()], events=events_of("s", 1, 2))
    assert store.import_aegis(written(tmp_path, text), rest=rest).events_added == 2
    assert rest.read_bytes() == rest_of(*PARTS.items())


SPACE = st.text(" \t\r\n", max_size=3)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A JSON value, written in one of the many ways."""
    separators = (f"{draw(SPACE)},", f":{draw(SPACE)}")
    indent = draw(st.none() | SPACE)
    return json.dumps(draw(VALUES), ensure_ascii=draw(st.booleans()), indent=indent, separators=separators)


class Chunks(io.BufferedIOBase):
    """A file that gives as few bytes at a time as it likes."""

    def __init__(self, content: bytes, size: int) -> None:
        self._rest, self._size = io.BytesIO(content), size

    def read(self, size: int | None = -1, /) -> bytes:
        return self._rest.read(self._size)


@given(st.lists(texts(), max_size=4), st.integers(1, 40), SPACE)
@settings(max_examples=80, deadline=None)
def test_what_is_copied_is_what_stands_there(values: list[str], size: int, space: str) -> None:
    content = ",".join(f'{space}"{number}"{space}:{space}{value}{space}' for number, value in enumerate(values))
    text, copies = JsonText(Chunks(f"{{{content}}}".encode(), size)), []
    for _ in text.members():
        copy = bytearray()
        with text.copied(copy.extend):
            list(text.items()) if text.peek() == "[" else text.value()
        copies.append(copy.decode())
    assert copies == values


# When it is there


def test_it_is_there_when_sessions_were_refused_and_can_be_read_by_its_owner_alone(
    store: EventStore, tmp_path: Path, rest: Path
) -> None:
    sessions = [session_record(), session_record("bad", status="unknown")]
    report = store.import_aegis(written(tmp_path, state_of(("actions", "[1]"), sessions=sessions)), rest=rest)
    assert (report.sessions_added, len(report.refused)) == (1, 1)
    assert rest.read_bytes() == rest_of(("actions", "[1]"))
    assert stat.S_IMODE(rest.stat().st_mode) == 0o600
    assert not list(tmp_path.glob("*.tmp"))


def test_without_rest_no_file_is_written(store: EventStore, tmp_path: Path) -> None:
    file = written(tmp_path, state_of(("actions", "[1]")))
    before = set(tmp_path.iterdir())
    store.import_aegis(file)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "text", [state_of(("actions", "[1, NaN]")), state_of(("actions", "[1]"))[:-2], '{"actions": [1], "version": 2}']
)
def test_a_file_that_is_rejected_leaves_none(store: EventStore, tmp_path: Path, rest: Path, text: str) -> None:
    with pytest.raises(ImportRejected):
        store.import_aegis(written(tmp_path, text), rest=rest)
    assert not list(tmp_path.glob("rest*"))


def test_an_import_that_is_interrupted_leaves_none_and_the_next_writes_it(
    store: EventStore, tmp_path: Path, rest: Path
) -> None:
    sessions = [session_record("a"), session_record("b")]
    file = written(tmp_path, state_of(("actions", "[1]"), sessions=sessions))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.import_aegis(file, rest=rest, on_sessions=interrupt)
    assert not list(tmp_path.glob("rest*"))
    assert store.import_aegis(file, rest=rest).sessions_added == 1
    assert rest.read_bytes() == rest_of(("actions", "[1]"))


# When it cannot be written


def assert_nothing_done(store: EventStore) -> None:
    assert store.list_sessions().sessions == []


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return written(tmp_path, state_of(("actions", "[1]"), sessions=[session_record()], events=[event_record(1)]))


@pytest.mark.parametrize("made", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_a_name_that_is_taken_is_refused_before_anything_is_done(store: EventStore, state: Path, rest: Path, made: Any) -> None:
    made(rest)
    with pytest.raises(InvalidInput, match="stands already"):
        store.import_aegis(state, rest=rest, on_bytes=lambda done, total: pytest.fail("it was read"))
    assert_nothing_done(store)


def test_the_state_file_itself_is_not_overwritten(store: EventStore, state: Path) -> None:
    before = state.read_bytes()
    with pytest.raises(InvalidInput, match="stands already"):
        store.import_aegis(state, rest=state)
    assert state.read_bytes() == before


def test_a_name_that_was_taken_meanwhile_is_refused_and_the_sessions_are_in(store: EventStore, state: Path, rest: Path) -> None:
    def take(done: int, total: int) -> None:
        rest.write_text("mine")

    with pytest.raises(InvalidInput, match="stands already"):
        store.import_aegis(state, rest=rest, on_sessions=take)
    assert rest.read_text() == "mine"
    assert store.get_session("s").event_count == 1


@pytest.mark.parametrize("name", ["missing/rest.json", "state.json/rest.json", "x" * 300])
def test_a_place_where_no_file_can_be_is_told_by_name(store: EventStore, state: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(FileUnavailable) as caught:
        store.import_aegis(state, rest=tmp_path / name)
    assert caught.value.file == str(tmp_path / name)
    assert_nothing_done(store)


@pytest.mark.parametrize("name", [b"rest", 7, "", "a\0b"])
def test_what_names_no_file_is_refused(store: EventStore, state: Path, name: Any) -> None:
    with pytest.raises(InvalidInput):
        store.import_aegis(state, rest=name)
    assert_nothing_done(store)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk that takes 1,000 bytes of a draft."""
    write, taken = os.write, 0

    def write_some(descriptor: int, content: Any) -> int:
        nonlocal taken
        if taken >= 1000:
            raise OSError(28, "No space left on device")
        taken += (count := write(descriptor, content[: 1000 - taken]))
        return count

    with monkeypatch.context() as patched:
        patched.setattr("aegis_store.draft.os.write", write_some)
        yield


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_told_and_nothing_is_left(store: EventStore, tmp_path: Path, rest: Path) -> None:
    text = state_of(("actions", json.dumps(["x" * 100] * 1000)), sessions=[session_record()])
    with pytest.raises(StoreFull):
        store.import_aegis(written(tmp_path, text), rest=rest)
    assert not list(tmp_path.glob("rest*"))
    assert_nothing_done(store)


def test_a_file_that_was_read_already_cannot_have_its_rest_written_any_more(store: EventStore, state: Path, rest: Path) -> None:
    with staged(state) as read:
        with pytest.raises(InvalidInput, match="give rest to `staged`"):
            store.import_aegis(read, rest=rest)
    assert_nothing_done(store)


# Memory


def test_a_large_rest_is_written_in_flat_memory(path: Path, tmp_path: Path, rest: Path) -> None:
    file = tmp_path / "large.json"
    with file.open("w", encoding="utf-8") as out:
        out.write('{"version": 1, "sessions": [], "events": [], "actions": [0')
        for number in range(20_000):
            out.write(",\n  " + json.dumps({"id": number, "text": "größe und mehr " * 90}, ensure_ascii=False))
        out.write("]}")
    assert file.stat().st_size > 25_000_000
    program = MEASURED.replace("import_aegis(sys.argv[2])", "import_aegis(sys.argv[2], rest=sys.argv[3])")
    command = [sys.executable, "-c", program, str(path), str(file), str(rest)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) < 90
    actions = file.read_bytes().split(b'"actions": ')[1].removesuffix(b"}")
    assert rest.read_bytes() == b'{\n"actions": ' + actions + b"\n}\n"
