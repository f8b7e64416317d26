"""From 0004 to 0005: two indexes, and nothing else."""

import gzip
from pathlib import Path

import pytest

from aegis_store import EventStore, schema
from tests.migrations.test_0002 import opened
from tests.migrations.test_migrations import alembic, differences, finished, revision, shape_of_file, url_of

FROZEN = Path(__file__).parent / "frozen" / "0004.db.gz"


def thawed(path: Path) -> Path:
    path.write_bytes(gzip.decompress(FROZEN.read_bytes()))
    return path


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    old = thawed(tmp_path / "old.db")
    assert EventStore.upgrade(old) == ("0004", schema.HEAD)
    return old


def test_each_tenant_and_owner_has_a_list_of_his_own(moved: Path) -> None:
    with opened(moved) as store:
        for each in (every := store.list_sessions().sessions):
            mine = store.scoped(tenant=each.tenant, owner=each.owner).list_sessions().sessions
            assert mine == [one for one in every if (one.tenant, one.owner) == (each.tenant, each.owner)]
        assert len({each.tenant for each in every}) > 1


def test_a_store_that_goes_back_has_the_schema_of_0004_and_may_come_again(moved: Path, tmp_path: Path) -> None:
    finished(alembic(*url_of(moved), "downgrade", "0004"))
    assert revision(moved) == ["0004"]
    assert differences(shape_of_file(moved), shape_of_file(thawed(tmp_path / "frozen.db"))) == set()
    assert EventStore.upgrade(moved) == ("0004", schema.HEAD)
    with opened(moved) as store:
        assert store.verify().ok
