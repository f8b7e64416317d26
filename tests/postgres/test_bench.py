"""The benchmark on PostgreSQL: both sides the same work, and nothing is left of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aegis_store import EventStore, InvalidInput, StoreUnavailable
from aegis_store.bench import append, server
from aegis_store.server import Server
from tests.postgres.server import connect

SCHEMAS = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'aegis_bench%'"
FAMILIES = ["append", "append", "append-many", "processes", "read"]


@pytest.mark.parametrize("chosen", [["append-many", "processes"], pytest.param(FAMILIES, marks=pytest.mark.torture)])
def test_bench_measures_beside_psycopg_and_leaves_nothing(postgres_url: str, tmp_path: Path, chosen: list[str]) -> None:
    code = "from aegis_store.cli import main; main()"
    command = [sys.executable, "-c", code, "bench", "--db", postgres_url, "--pairs", "1", "--seconds", "0.001", "--json"]
    command += [argument for measure in chosen for argument in ("--only", measure)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [row["measure"] for row in found["rows"]] == chosen
    assert all(row["ratio"] > 0 for row in found["rows"])
    assert int(found["machine"]["postgresql"].partition(".")[0]) >= 14
    with connect(postgres_url) as shell:
        assert shell.execute(SCHEMAS).fetchone() == (0,)
    assert list(tmp_path.iterdir()) == []


def test_both_sides_leave_the_same_rows_and_the_store_beside_them_none(postgres_url: str) -> None:
    there = Server.of(postgres_url)
    assert there is not None
    columns = "position, session, seq, bytes_before, type, payload, event_id, run_id, payload_ref"
    left: list[Any] = []
    for side in ("store", "floor"):
        with server.store_of(there) as url, EventStore.open(url) as store, server.connected(url, "power") as connection:
            one = append.append_to(store) if side == "store" else server.append_on(connection)
            many = append.append_batch_to(store) if side == "store" else server.append_batch_on(connection)
            for number in range(3):
                one(number)
            many(0)
            left.append(connection.execute(f"SELECT {columns} FROM event ORDER BY position").fetchall())
    assert left[0] == left[1]
    assert len(left[0]) == 103
    with EventStore.open(postgres_url) as store:
        assert store.list_sessions().sessions == []


def test_what_cannot_be_measured_there_is_told() -> None:
    with pytest.raises(InvalidInput, match="follow is measured on SQLite alone"):
        server.rows("postgresql+psycopg://127.0.0.1:1/x", ["follow"])
    with pytest.raises(InvalidInput, match="what is measured there is PostgreSQL"):
        server.rows("agents.db")
    with pytest.raises(StoreUnavailable) as caught:
        server.version("postgresql+psycopg://me:geheim@127.0.0.1:1/x")
    assert "geheim" not in str(caught.value)
