"""What Alembic runs: finds the store, and migrates it on the connection that the library gives.

The store is named by `-x url=PATH|URL`, or by $AEGIS_STORE_URL. On PostgreSQL `-x partitions=16` keeps the
events of a new store in so many partitions, by session.

Processes that run while a deploy moves their store find out by the row of `alembic_version`, which Alembic writes in the
transaction of each revision: every transaction of theirs looks at it (see `schema.REVISION_SQL`). So a revision need not
do anything for that, but revisions must be numbered upwards, and that table must stay as it is.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from aegis_store import creation, file_system, gate, migrate, schema
from aegis_store.cli import terminal
from aegis_store.errors import AegisStoreError
from aegis_store.server import Server
from aegis_store.target import Target


def named() -> str | None:
    return context.get_x_argument(as_dictionary=True).get("url") or os.environ.get("AEGIS_STORE_URL")


def target() -> Target | Server:
    if "target" in context.config.attributes:
        given: Target | Server = context.config.attributes["target"]
        return given
    url = named()
    if not url:
        raise CommandError("which store? say `alembic -x url=PATH …`, or set AEGIS_STORE_URL")
    server = Server.of(url)
    if server is not None:
        return server
    place = Target.of(url)
    file_system.refuse_network(place)  # a caller that gives the target has seen to that
    return place


@contextmanager
def shown_progress() -> Iterator[migrate.Progress]:
    """That of the caller, or for who runs Alembic in a terminal a bar there."""
    if context.config.cmd_opts is None:
        yield migrate.Progress(context.config.attributes.get("on_progress"))
    else:
        with terminal.progress() as bar:
            task = bar.add_task("Looking at events", total=None)
            yield migrate.Progress(lambda done, total: bar.update(task, completed=done, total=total))


@contextmanager
def connection(progress: migrate.Progress) -> Iterator[Connection]:
    store = target()
    if isinstance(store, Server):
        from aegis_store.postgres import deploy  # noqa: PLC0415 - it needs psycopg

        with deploy.connection_for(store) as standing:
            yield standing
        return
    command = getattr(context.config.cmd_opts, "cmd", [None])[0]
    if getattr(command, "__name__", None) == "upgrade" and not gate.exists(store):
        with creation.new_store(store) as draft, migrate.connection_for(draft, progress) as new:
            yield new
    else:
        with migrate.connection_for(store, progress) as standing:
            yield standing


def run_offline() -> None:
    dialect_name = "postgresql" if Server.of(named()) else "sqlite"
    context.configure(dialect_name=dialect_name, target_metadata=schema.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    try:
        with shown_progress() as progress, connection(progress) as transaction:
            context.configure(
                connection=transaction,
                target_metadata=schema.metadata,
                render_as_batch=True,
                transactional_ddl=True,
                on_version_apply=lambda *_, **__: progress.revision_done(),
            )
            context.run_migrations()
    except AegisStoreError as error:
        raise CommandError(str(error)) from error


if context.is_offline_mode():
    run_offline()
else:
    run_online()
