"""Stores whose events are kept in 16 partitions."""

from collections.abc import Iterator

import pytest

from tests.migrations.test_migrations import alembic, finished
from tests.postgres.server import Postgres, connect, empty

PARTITIONS = 16


@pytest.fixture(scope="session")
def partitioned(postgres: Postgres) -> Iterator[str]:
    """The URL of one, migrated once."""
    with postgres.database() as url:
        finished(alembic("-x", f"url={url}", "-x", f"partitions={PARTITIONS}", "upgrade", "head"))
        yield url


@pytest.fixture
def postgres_url(partitioned: str) -> str:
    """The URL of an empty one."""
    empty(partitioned)
    with connect(partitioned) as connection:
        sql = "SELECT count(*) FROM pg_partition_tree('event') WHERE isleaf"
        assert connection.execute(sql.encode()).fetchone() == (PARTITIONS,)
    return partitioned
