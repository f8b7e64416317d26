"""The command `bench`, run as a user runs it."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aegis_store import bench
from aegis_store.cli import main
from aegis_store.cli.bench import Measure
from tests.cli.conftest import Run

SHORT = ("--pairs", "1", "--seconds", "0.001")


def test_bench_measures_every_row_beside_its_floor_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    done = run("bench", *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["name"] for row in found["rows"]] == [row.name for row in bench.ROWS]
    for row in found["rows"]:
        assert row["store"]["per_second"] > 0, row
        assert (row["floor"] is None) == (row["measure"] == "follow")
        # One pair: the ratio is that of its two rates.
        assert row["ratio"] == (row["floor"] and pytest.approx(row["store"]["per_second"] / row["floor"]["per_second"]))
    assert found["fsync_us"] > 0
    assert found["machine"] == json.loads(json.dumps(bench.machine()))
    assert list(tmp_path.iterdir()) == []


def test_bench_prints_a_table_that_fits(run: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    done = run("bench", *SHORT, "--only", "append", "--only", "prune", "--dir", "elsewhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout
    assert [line.split("  ")[0].strip() for line in done.stdout.splitlines() if " events " in line] == [
        "append, process",
        "append, power",
        "prune, power",
    ]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_measures_that_can_be_chosen_are_those_that_there_are() -> None:
    assert {str(measure) for measure in Measure} == set(bench.MEASURES)


def test_bench_of_a_full_store_tells_tails_log_and_memory(run: Run, tmp_path: Path) -> None:
    done = run("bench", "--stored", "1999", *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["stored"]
    assert [(figures["durability"], figures["stored_events"]) for figures in found] == [("process", 1000), ("power", 1000)]
    for side in (figures[name] for figures in found for name in ("store", "floor")):
        assert side["speed"]["p50_us"] <= side["speed"]["p999_us"] <= side["speed"]["max_us"]
        assert side["wal_peak_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_bench_of_a_full_store_prints_a_table_that_fits(run: Run) -> None:
    done = run("bench", "--stored", "1000", *SHORT)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "1,000 events stored, power: " in done.stdout


@pytest.mark.parametrize(
    "arguments", [("--only", "everything"), ("--pairs", "0"), ("--seconds", "0"), ("--stored", "1000", "--quick")]
)
def test_what_bench_cannot_take_is_one_line(run: Run, arguments: tuple[str, ...]) -> None:
    done = run("bench", *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize(("place", "told"), [("nowhere", "does not exist"), ("file", "is a file")])
def test_a_directory_that_bench_cannot_take_is_named_with_its_option(run: Run, tmp_path: Path, place: str, told: str) -> None:
    (tmp_path / "file").touch()
    done = run("bench", "--dir", place)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"'{place}' {told}" in done.stderr
    assert "'--dir'" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("--stored", "1000")])
def test_a_full_disk_is_told_by_the_directory_that_was_named(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refused)
    monkeypatch.setattr(sys, "argv", ["aegis-store", "bench", "--dir", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 6
    assert capsys.readouterr().err.startswith(f"aegis-store: no room to write to '{tmp_path}' (")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("only", ["append", "processes"])
def test_interrupted_bench_takes_its_files_along(tmp_path: Path, only: str) -> None:
    command = [sys.executable, "-c", "from aegis_store.cli import main; main()", "bench", "--only", only, "--seconds", "60"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/row-*/store.db-wal")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "aegis-store: interrupted\n")
    assert list(tmp_path.iterdir()) == []
