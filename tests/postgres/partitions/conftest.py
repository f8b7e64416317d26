"""Stores whose events are kept in 16 partitions."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.migrations.test_migrations import alembic, finished
from tests.postgres.server import Postgres, SharedStore, connect

PARTITIONS = 16


@pytest.fixture(scope="session")
def partitioned(postgres: Postgres) -> Iterator[SharedStore]:
    """One, migrated once."""
    with postgres.database() as url:
        finished(alembic("-x", f"url={url}", "-x", f"partitions={PARTITIONS}", "upgrade", "head"))
        with connect(url) as connection:
            sql = "SELECT count(*) FROM pg_partition_tree('event') WHERE isleaf"
            assert connection.execute(sql.encode()).fetchone() == (PARTITIONS,)
        with closing(SharedStore(url)) as store:
            yield store


@pytest.fixture
def postgres_url(partitioned: SharedStore) -> str:
    """The URL of an empty one."""
    return partitioned.emptied()
