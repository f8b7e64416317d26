"""The commands `export` and `import`, as a user runs them."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aegis_store import EventStore
from tests.cli.conftest import Run


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A store with two sessions of three events, one of them ended."""
    path = tmp_path / "filled.db"
    with EventStore.open(path, durability="process") as store:
        for session_id in ("run-1", "run-2"):
            store.create_session(session_id)
            for number in range(3):
                store.append(session_id, "hook", {"n": number})
        store.set_status("run-2", "completed")
    return path


def printed(done: "subprocess.CompletedProcess[str]") -> Any:
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", ["export", "import"])
def test_the_help_gives_an_example(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"Example: aegis-store {command} " in " ".join(done.stdout.split())


def test_a_store_that_is_exported_and_imported_is_the_same_store(run: Run, filled: Path, tmp_path: Path) -> None:
    done = run("export", "out.jsonl.zst", "--db", str(filled))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Exported" in done.stdout
    assert "sessions  2" in done.stdout
    done = run("import", "out.jsonl.zst", "--db", "copy.db")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 added, 0 updated, 0 as they were" in done.stdout
    with EventStore.open(filled, prune_on_open=False) as a, EventStore.open(tmp_path / "copy.db", prune_on_open=False) as b:
        assert b.list_sessions() == a.list_sessions()
        assert [event[:2] + event[3:] for event in b.read_all()] == [event[:2] + event[3:] for event in a.read_all()]


def test_chosen_sessions_are_exported(run: Run, filled: Path) -> None:
    done = run("export", "out.jsonl.gz", "--session", "run-2", "--session", "run-2", "--db", str(filled), "--json")
    report = printed(done)
    assert (report["sessions"], report["events"], report["file"]) == (1, 3, "out.jsonl.gz")
    report = printed(run("import", "out.jsonl.gz", "--db", "copy.db", "--json"))
    assert (report["sessions_added"], report["events_added"], report["refused"]) == (1, 3, [])


def test_an_imported_session_on_hold_is_not_pruned(run: Run, filled: Path, tmp_path: Path) -> None:
    run("export", "out.jsonl", "--db", str(filled))
    assert run("import", "out.jsonl", "--hold", "--db", "copy.db").returncode == 0
    with EventStore.open(tmp_path / "copy.db") as store:
        assert store.get_session("run-2").event_count == 3


def test_an_import_says_that_it_took_over_the_policy_of_the_file(run: Run, filled: Path) -> None:
    policy = {"--max-age": "30d", "--max-total-bytes": "2GiB"}
    run("policy", "set", *(word for pair in policy.items() for word in pair), "--db", str(filled))
    run("export", "out.jsonl", "--db", str(filled))
    told = " ".join(run("import", "out.jsonl", "--db", "new.db").stdout.split())
    assert "policy that of the file now: 1,000 events a session, no older than 30d" in told
    assert "that of the file" not in run("import", "out.jsonl", "--db", "new.db").stdout  # it has sessions now
    assert printed(run("import", "out.jsonl", "--db", "new.db", "--json"))["policy_adopted"] is False
    report = printed(run("import", "out.jsonl", "--db", "newer.db", "--json"))
    assert report["policy_adopted"] is True
    assert report["policy"] == printed(run("policy", "show", "--db", "newer.db", "--json"))


def test_no_json_names_a_duration_in_other_units_than_seconds(run: Run, filled: Path) -> None:
    run("export", "out.jsonl", "--db", str(filled))
    imported = printed(run("import", "out.jsonl", "--db", "new.db", "--json"))["policy"]
    inspected = printed(run("inspect", "--db", "new.db", "--json"))
    assert imported == inspected["policy"]
    assert {"max_age_s", "terminal_grace_s", "forget_sessions_after_s"} <= imported.keys()
    assert "maintain_every_s" in inspected["health"]


@pytest.fixture
def archives(run: Run, filled: Path) -> list[str]:
    """Three archives, which belong in this order: two of run-1, of two prunes, and one of run-2 between them."""
    run("prune", "--yes", "--archive", "old", "--db", str(filled))
    with EventStore.open(filled, prune_on_open=False) as store:
        store.set_status("run-1", "closed")
    run("prune", "--yes", "--archive", "old", "--db", str(filled))
    with EventStore.open(filled, prune_on_open=False) as store:
        store.set_status("run-1", "running")
        store.append("run-1", "hook", {"n": 3})
        store.set_status("run-1", "closed")
    run("prune", "--yes", "--archive", "old", "--db", str(filled))
    return sorted(str(file) for file in (filled.parent / "old").iterdir())


def test_several_files_come_in_at_once_in_the_order_of_their_writing(run: Run, archives: list[str], tmp_path: Path) -> None:
    assert len(archives) == 3
    done = run("import", *reversed(archives), archives[0], "--db", "copy.db")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Imported 3 files into copy.db" in done.stdout
    assert "2 added, 1 updated, 0 as they were" in done.stdout
    assert "7 added, 0 there already" in done.stdout
    with EventStore.open(tmp_path / "copy.db", read_only=True) as store:
        assert [event.payload["n"] for event in store.read("run-1").events] == [0, 1, 2, 3]
    done = run("import", *archives, "--db", "copy.db", "--json")
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["file"] for report in reports] == archives
    assert [report["events_standing"] for report in reports] == [3, 3, 1]


def test_none_of_several_files_is_imported_if_one_cannot_be_read(run: Run, archives: list[str], tmp_path: Path) -> None:
    Path(archives[1]).write_bytes(Path(archives[1]).read_bytes()[:-20])
    done = run("import", *archives, "--db", "copy.db")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (7, "", 1)
    assert Path(archives[1]).name in done.stderr
    assert "nothing of it was taken, nor of the 2 given with it" in done.stderr
    assert not (tmp_path / "copy.db").exists()


def test_what_is_refused_of_several_files_is_named_with_its_file(run: Run, archives: list[str], tmp_path: Path) -> None:
    with EventStore.open(tmp_path / "copy.db") as store:
        store.create_session("run-2", tenant="other")
    done = run("import", *archives, "--db", "copy.db")
    assert (done.returncode, done.stderr) == (7, "")
    assert "1 session refused" in done.stdout
    assert Path(archives[0]).name in "".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "4 added, 0 there already" in done.stdout


def test_a_session_that_was_deleted_here_is_told_not_to_be_brought_back(run: Run, filled: Path) -> None:
    run("prune", "--yes", "--archive", "old", "--db", str(filled))
    with EventStore.open(filled, prune_on_open=False) as store:
        store.delete_session("run-2")
    (archived,) = (filled.parent / "old").iterdir()
    done = run("import", str(archived), "--db", str(filled))
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 added, 0 updated, 0 as they were" in done.stdout
    assert "deleted here   1 session, not brought back: import into another store" in done.stdout
    report = printed(run("import", str(archived), "--db", str(filled), "--json"))
    assert (report["sessions_deleted"], report["sessions_unchanged"], report["events_pruned"]) == (1, 0, 3)


def test_refused_sessions_are_named_and_the_exit_code_says_so(run: Run, filled: Path, tmp_path: Path) -> None:
    run("export", "out.jsonl", "--db", str(filled))
    with EventStore.open(tmp_path / "copy.db") as store:
        store.create_session("run-1", tenant="other")
    done = run("import", "out.jsonl", "--db", "copy.db")
    assert (done.returncode, done.stderr) == (7, "")
    assert "1 session refused" in done.stdout
    assert "another tenant or owner" in " ".join(done.stdout.split())
    done = run("import", "out.jsonl", "--db", "copy.db", "--json")
    assert done.returncode == 7
    assert [refusal["session_id"] for refusal in printed(done)["refused"]] == ["run-1"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("export", "out.json"), 2, ".jsonl.zst"),
        (("export", "filled.db"), 2, ".jsonl.zst"),
        (("export", "taken.jsonl"), 2, "stands already"),
        (("export", "out.jsonl", "--session", "nobody"), 3, "nobody"),
        (("export", "missing/out.jsonl"), 1, "cannot write 'missing/out.jsonl': its directory does not exist: make it"),
        (("export", "out.jsonl", "--db", "none.db"), 5, "none.db"),
        (("import", "none.jsonl"), 2, "none.jsonl"),
        (("import", "taken.jsonl"), 7, "line 1"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(
    run: Run, filled: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "taken.jsonl").write_text("mine\n")
    done = run(*arguments, AEGIS_STORE_URL=str(filled))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
    assert message in done.stderr
    left = {path.name for path in tmp_path.iterdir() if not path.name.endswith(("-wal", "-shm"))}
    assert left <= {"filled.db", "taken.jsonl"}
    assert (tmp_path / "taken.jsonl").read_text() == "mine\n"


HEADER = '{"format": "aegis-store", "version": 1, "policy": null}\n'


@pytest.mark.parametrize(
    ("command", "content"),
    [
        ("import", "mine\n"),
        ("import", HEADER),
        ("import", HEADER.replace("null", '{"max_events": 0}') + '{"end": {"sessions": 0, "events": 0}}\n'),
        ("import", HEADER + '{"end": {"sessions": 1, "events": 0}}\n'),
        ("import-aegis", '{"version": 1, "sess'),
        ("import-aegis", '{"version": 2, "sessions": [], "events": []}'),
    ],
    ids=["no export", "cut off", "no policy", "no session", "cut off state", "another version"],
)
def test_a_file_that_cannot_be_read_leaves_no_store_where_there_was_none(
    run: Run, tmp_path: Path, command: str, content: str
) -> None:
    (tmp_path / "in.file").write_text(content)
    done = run(command, "in.file", "--db", "new/store.db")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (7, "", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["in.file"]


def test_a_file_with_events_out_of_order_leaves_no_store_and_leaves_one_that_stands(
    run: Run, filled: Path, tmp_path: Path
) -> None:
    run("export", "out.jsonl", "--db", str(filled))
    lines = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "odd.jsonl").write_text("".join([*lines[:3], *lines[4:]]))
    before = filled.read_bytes()
    for db in ("new.db", str(filled)):
        done = run("import", "odd.jsonl", "--db", db)
        assert (done.returncode, done.stdout) == (7, "")
        assert "(line 4)" in done.stderr
    assert not (tmp_path / "new.db").exists()
    assert filled.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
@pytest.mark.parametrize(("command", "shown"), [("export", b"Writing events"), ("import", b"Checking, then writing")])
def test_progress_is_shown_on_a_terminal(run: Run, filled: Path, tmp_path: Path, command: str, shown: bytes) -> None:
    run("export", "in.jsonl", "--db", str(filled))
    file = {"export": "out.jsonl", "import": "in.jsonl"}[command]
    leader, follower = pty.openpty()
    started = [sys.executable, "-c", "from aegis_store.cli import main; main()", command, file, "--db", str(filled)]
    environment = {**os.environ, "TERM": "xterm"}
    subprocess.run(started, stderr=follower, stdout=subprocess.DEVNULL, cwd=tmp_path, env=environment, check=True)
    os.close(follower)
    assert shown in os.read(leader, 65536)
    os.close(leader)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state file of one session, with a part that an event log does not take."""
    session = {"id": "s", "tenantId": "t", "ownerKeyId": "o", "status": "idle", "createdAt": 1, "updatedAt": 2}
    file = tmp_path / "state.json"
    file.write_text(f'{{"version": 1, "sessions": [{json.dumps(session)}], "events": [], "actions": [ {{"at": 1e3}} ]}}')
    return file


def test_what_an_event_log_does_not_take_is_written_where_the_user_says(run: Run, state: Path, tmp_path: Path) -> None:
    done = run("import-aegis", str(state), "--rest", "rest.json", "--db", "new.db")
    assert (done.returncode, done.stderr) == (0, "")
    assert "not taken: actions 1 (no part of an event log)" in " ".join(done.stdout.split())
    assert "written to rest.json" in done.stdout
    assert (tmp_path / "rest.json").read_text() == '{\n"actions": [ {"at": 1e3} ]\n}\n'
    assert printed(run("import-aegis", str(state), "--rest", "other.json", "--db", "new.db", "--json"))["rest"] == "other.json"
    assert printed(run("import-aegis", str(state), "--db", "new.db", "--json"))["rest"] is None


@pytest.mark.parametrize(
    ("rest", "code", "said"),
    [("state.json", 2, "choose another name"), ("no/rest.json", 1, "does not exist"), ("", 2, "'.' stands already")],
)
def test_a_rest_that_cannot_be_written_is_told_and_makes_no_store(
    run: Run, state: Path, tmp_path: Path, rest: str, code: int, said: str
) -> None:
    done = run("import-aegis", str(state), "--rest", rest, "--db", "new.db")
    assert (done.returncode, done.stdout) == (code, "")
    assert said in " ".join(done.stderr.split())
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
