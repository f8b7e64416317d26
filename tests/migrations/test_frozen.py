"""A store of every released revision, as it was then: it comes to this schema with all that it holds."""

import gzip
import re
from pathlib import Path
from typing import Any

import pytest

from aegis_store import EventStore, schema
from tests.migrations.test_0002 import opened, rows
from tests.migrations.test_migrations import ROOT, alembic, differences, finished, revision, shape_of_file, url_of

FROZEN = Path(__file__).parent / "frozen"
RELEASED = sorted(re.findall(r"^\d{4}", "\n".join(f.name for f in (ROOT / "migrations" / "versions").glob("*.py")), re.M))


@pytest.fixture(params=RELEASED)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "old.db"
    path.write_bytes(gzip.decompress((FROZEN / f"{request.param}.db.gz").read_bytes()))
    assert revision(path) == [request.param]
    return path


def content(path: Path, columns: dict[str, list[str]]) -> dict[str, list[tuple[Any, ...]]]:
    return {table: rows(path, f"SELECT {', '.join(names)} FROM {table} ORDER BY 1") for table, names in columns.items()}


def columns_of(path: Path) -> dict[str, list[str]]:
    tables = rows(path, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    found = {table: [row[1] for row in rows(path, f"PRAGMA table_info({table})")] for (table,) in tables}
    del found["alembic_version"]
    return found


def test_every_revision_has_its_frozen_store() -> None:
    assert RELEASED[-1] == schema.HEAD
    assert [file.name for file in sorted(FROZEN.iterdir())] == [f"{each}.db.gz" for each in RELEASED]


def test_every_column_of_every_row_comes_over_as_it_was(old: Path) -> None:
    columns = columns_of(old)
    before = content(old, columns)
    EventStore.upgrade(old)
    assert len(before["event"]) >= 30
    assert content(old, columns) == before


@pytest.mark.parametrize("way", ["the library", "alembic"])
def test_it_has_the_schema_of_a_new_store_and_is_well(old: Path, template: Path, way: str) -> None:
    if way == "alembic":
        finished(alembic(*url_of(old), "upgrade", "head"))
    else:
        EventStore.upgrade(old)
    assert differences(shape_of_file(old), shape_of_file(template)) == set()
    with opened(old) as store:
        assert store.verify().ok
        for session in store.list_sessions().sessions:
            assert store.append(session.session_id, "after", 1).seq == session.last_seq + 1
