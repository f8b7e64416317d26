"""The command `reclaim`, run as a user runs it."""

import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aegis_store import UNLIMITED, EventStore, NewEvent, RetentionPolicy, driver
from tests.cli.conftest import Run


@pytest.fixture(scope="module")
def pruned_template(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """A store of 600 events, and as many free pages as 1,200 pruned ones took."""
    path = tmp_path_factory.mktemp("pruned") / "aegis.db"
    shutil.copyfile(template, path)
    with EventStore.open(path, durability="process", prune_on_open=False) as store:
        store.set_retention_policy(RetentionPolicy(max_events=UNLIMITED))
        for name in ("old", "older", "live"):
            store.create_session(name)
            store.append_many(name, [NewEvent(type="note", payload={"text": "x" * 2400}) for _ in range(600)])
        store.set_status("old", "closed")
        store.set_status("older", "failed")
        store.prune()
    return path


@pytest.fixture
def pruned(tmp_path: Path, pruned_template: Path) -> Path:
    path = tmp_path / "aegis.db"
    shutil.copyfile(pruned_template, path)
    return path


def reported(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_says_in_words_what_the_store_took_and_what_it_takes_now(run: Run, pruned: Path) -> None:
    done = run("reclaim")
    assert (done.returncode, done.stderr) == (0, "")
    before, now = done.stdout.splitlines()
    assert before.startswith("Before: 4.")
    assert "MiB on disk, 3." in before
    assert "0 B of it free" in now
    assert pruned.stat().st_size < 2 * 2**20


def test_as_json_it_gives_the_report(run: Run, pruned: Path) -> None:
    found = reported(run("reclaim", "--json", "--db", str(pruned)))
    # A SQLite with the WAL-reset bug empties the log at the close of the store only, after the report.
    log_bytes = found["bytes_after"] - pruned.stat().st_size
    assert log_bytes > 0 if driver.has_wal_reset_bug(driver.VERSION_INFO) else log_bytes == 0
    assert (found["outcome"], found["complete"], found["free_bytes_after"]) == ("complete", True, 0)


def test_it_leaves_the_ratio_of_free_pages_that_was_asked_for(run: Run, pruned: Path) -> None:
    assert reported(run("reclaim", "--free-ratio", "0.5", "--json"))["complete"] is True
    with EventStore.open(pruned, read_only=True) as store:
        stats = store.stats()
    assert 0.45 < stats.free_bytes / stats.file_bytes <= 0.5


def test_it_says_when_the_time_was_over_and_the_next_run_goes_on(run: Run, pruned: Path) -> None:
    done = run("reclaim", "--max-seconds", "0.0001")
    assert done.returncode == 0
    assert "The time was over before all was given back: run it again to go on." in done.stdout
    assert "0 B of it free" in run("reclaim").stdout


def test_compact_says_that_all_events_are_still_there(run: Run, pruned: Path) -> None:
    done = run("reclaim", "--compact", "--db", str(pruned))
    assert (done.returncode, done.stderr) == (0, "")
    assert "the same 600 events of 3 sessions, compared one by one" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert pruned.stat().st_size < 2 * 2**20


def test_compact_as_json_gives_the_report(run: Run, pruned: Path) -> None:
    found = reported(run("reclaim", "--compact", "--json"))
    assert found["bytes_after"] == pruned.stat().st_size
    assert (found["events"], found["sessions"]) == (600, 3)


def test_compact_beside_an_open_store_says_who_is_in_the_way(run: Run, pruned: Path) -> None:
    with EventStore.open(pruned, prune_on_open=False) as store:
        done = run("reclaim", "--compact", "--db", str(pruned))
        assert store.append("live", "note", 1).seq == 601
    assert done.returncode == 6
    assert "others have it open" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        *(["--free-ratio", value] for value in ("-1", "1.5", "nan", "much")),
        *(["--max-seconds", value] for value in ("0", "-1", "nan", "inf")),
        ["--compact", "--max-seconds", "5"],
        ["--compact", "--free-ratio", "0"],
    ],
    ids=" ".join,
)
def test_values_that_cannot_be_are_wrong_usage_and_change_nothing(run: Run, pruned: Path, options: list[str]) -> None:
    before = pruned.read_bytes()
    done = run("reclaim", *options)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "None" not in done.stderr
    assert pruned.read_bytes() == before


def write_noise(path: Path) -> str:
    """Over pages of events, none of which has to move."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xa5" * 100_000)
    return "is damaged"


def flip_a_byte_of_a_payload(path: Path) -> str:
    content = bytearray(path.read_bytes())
    content[content.index(b"x" * 1000, len(content) // 2) + 500] ^= 1
    path.write_bytes(content)
    return "its checksum differs"


def misspell_a_key_of_an_index(path: Path) -> str:
    """In its order still: the pages fit together as before."""
    with closing(driver.dbapi.connect(str(path))) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_session_1'").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    content = bytearray(path.read_bytes())
    place = content.index(b"live", (root - 1) * page_bytes, root * page_bytes)
    content[place : place + 4] = b"lave"
    path.write_bytes(content)
    return "missing from index"


@pytest.mark.parametrize("damage", [write_noise, flip_a_byte_of_a_payload, misspell_a_key_of_an_index])
@pytest.mark.parametrize("options", [["--max-seconds", "5"], ["--json"], ["--compact"]], ids=" ".join)
def test_a_damaged_store_is_refused_and_left_as_it_was(
    run: Run, pruned: Path, options: list[str], damage: Callable[[Path], str]
) -> None:
    EventStore.compact(pruned)
    said = damage(pruned)
    before = pruned.read_bytes()
    done = run("reclaim", *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1)
    assert "is damaged" in done.stderr
    assert said in done.stderr
    assert "aegis-store verify" in done.stderr
    assert pruned.read_bytes() == before


@pytest.mark.parametrize("options", [[], ["--compact"]], ids=["reclaim", "compact"])
def test_a_table_of_somebody_else_is_no_damage(run: Run, pruned: Path, options: list[str]) -> None:
    with closing(driver.dbapi.connect(str(pruned))) as connection:
        connection.execute("CREATE TABLE mine (id)")
    assert run("reclaim", *options).returncode == 0


@pytest.mark.parametrize("options", [[], ["--compact"]], ids=["reclaim", "compact"])
def test_a_store_that_is_not_there_is_not_created(run: Run, tmp_path: Path, options: list[str]) -> None:
    done = run("reclaim", *options)
    assert done.returncode == 5
    assert list(tmp_path.iterdir()) == []


def test_its_help_has_an_example(run: Run) -> None:
    done = run("reclaim", "--help")
    assert done.returncode == 0
    assert "Example:" in done.stdout


def test_it_removes_no_event_of_an_ended_session(run: Run, pruned: Path) -> None:
    with EventStore.open(pruned, prune_on_open=False) as store:
        store.set_status("live", "closed")
    assert run("reclaim").returncode == 0
    assert run("reclaim", "--compact").returncode == 0
    with EventStore.open(pruned, read_only=True) as store:
        assert store.stats().events == 600
