"""What an operator should know of a store on PostgreSQL and of its server: also of one that is not reached. Changes nothing.

Each check is a function that gives findings. One connection serves all, which cannot write; what this user may not see is said.
"""

import ipaddress
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from aegis_store.doctor import DoctorReport, Finding
from aegis_store.errors import AegisStoreError, plural
from aegis_store.schema import HEAD, metadata
from aegis_store.server import Server

_OLDEST_VERSION: Final = 14
_SLOW_ROUND_TRIP_S: Final = 0.01
_STATEMENT_TIMEOUT_S: Final = 30

# A prune takes slices of milliseconds, a backup of a large store an hour.
_LONG_TRANSACTION_S: Final = 3600
# Such a one does nothing, and everybody waits for what it has written.
_LONG_IDLE_S: Final = 60

# Autovacuum comes at a fifth by default; what is far beyond is not done.
_MANY_DEAD_RATIO: Final = 0.5
_MANY_DEAD: Final = 100_000
# PostgreSQL begins to freeze by force at 200 million transactions, and stops to write at some 2,100.
_OLD_TRANSACTIONS: Final = 1_000_000_000

_LITTLE_ROOM_RATIO: Final = 0.1
_CLOCK_WARNING_S: Final = 2.0
_CLOCK_PROBLEM_S: Final = 60.0
_SET_CLOCK: Final = "set the clock: max_age, graces and the times of new events go by that of the writer"

_NAMES: Final = ", ".join(f"'{name}'" for name in metadata.tables)


def doctor(server: Server) -> DoctorReport:
    """See `EventStore.doctor`."""
    findings: list[Finding] = []
    try:
        for finding in _of_server(server):
            findings.append(finding)  # noqa: PERF402 - those until the connection is lost stay
    except AegisStoreError as error:
        findings.append(Finding("connection", "problem", error.what, error.hint or "look at address, user and database"))
    return DoctorReport(store=str(server), findings=tuple(findings))


def _of_server(server: Server) -> Iterator[Finding]:
    settings = {
        "application_name": "aegis-store doctor",
        "default_transaction_read_only": "on",
        "statement_timeout": f"{_STATEMENT_TIMEOUT_S}s",
    }
    server.check_driver()
    from aegis_store.postgres.errors import errors_of  # noqa: PLC0415 - psycopg is not everybody's

    engine = server.engine(settings=settings, poolclass=NullPool, isolation_level="AUTOCOMMIT")

    began_s = time.monotonic()
    with errors_of(server), engine.connect() as conn:
        yield _connection(conn, time.monotonic() - began_s)
        for look in _OF_SERVER:
            yield from _tried(look, conn)
        schema = _schema(server)
        yield schema
        for look in _OF_STORE if schema.state == "ok" else ():
            yield from _tried(look, conn)


def _tried(look: Callable[[Connection], Iterator[Finding]], conn: Connection) -> Iterator[Finding]:
    """What it finds; that it may not look, where that is so. A lost connection ends all."""
    name = look.__name__.strip("_").replace("_", " ")
    try:
        yield from look(conn)
    except SQLAlchemyError as error:
        origin: Any = getattr(error, "orig", error)
        if conn.invalidated or not getattr(origin, "sqlstate", None):
            raise
        told = str(getattr(origin.diag, "message_primary", None) or type(origin).__name__)
        yield Finding(name, "warning", f"cannot be looked at: {told}", "run this as a user who may read it")


def _one(conn: Connection, sql: str) -> Any:
    return conn.exec_driver_sql(sql).scalar()


def _shown_s(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:,.0f} s"


# The way there


def _connection(conn: Connection, connected_s: float) -> Finding:
    trips = []
    for _ in range(5):
        began_s = time.monotonic()
        _one(conn, "SELECT 1")
        trips.append(time.monotonic() - began_s)
    trip_s = sorted(trips)[len(trips) // 2]
    found = f"made in {_shown_s(connected_s)}, a round trip takes {_shown_s(trip_s)}"
    if trip_s > _SLOW_ROUND_TRIP_S:
        advice = "an append takes one at least: run writers near the server, or take append_many"
        return Finding("connection", "warning", found, advice)
    return Finding("connection", "ok", found)


def _tls(conn: Connection) -> Iterator[Finding]:
    driver: Any = conn.connection.driver_connection
    row = conn.exec_driver_sql("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").one_or_none()
    mode = driver.info.get_parameters().get("sslmode", "prefer")
    if row is not None and row.ssl:
        found = f"{row.version}, sslmode={mode}"
        if mode in ("verify-ca", "verify-full") or _is_here(driver.info):
            yield Finding("TLS", "ok", found)
        else:
            advice = "?sslmode=verify-full in the URL has the server prove that it is the one"
            yield Finding("TLS", "warning", found, advice)
    elif _is_here(driver.info):
        yield Finding("TLS", "ok", "none, the server is on this machine")
    else:
        found = "none: passwords and events can be read on the way"
        yield Finding("TLS", "problem", found, "?sslmode=verify-full in the URL, and ssl = on at the server")


def _is_here(info: Any) -> bool:
    """Whether the connection does not leave this machine: by a socket in the file system, or the loopback."""
    address = str(info.hostaddr or "")
    if str(info.host).startswith(("/", "@")) or not address:
        return True
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


# The server


def _server(conn: Connection) -> Iterator[Finding]:
    number, version = int(_one(conn, "SHOW server_version_num")), _one(conn, "SHOW server_version")
    if number < _OLDEST_VERSION * 10_000:
        yield Finding("server", "problem", f"PostgreSQL {version}", f"run {_OLDEST_VERSION} or newer")
    else:
        yield Finding("server", "ok", f"PostgreSQL {version}")


def _role(conn: Connection) -> Iterator[Finding]:
    if _one(conn, "SELECT pg_is_in_recovery()"):
        advice = "name the primary in the URL; of several hosts ?target_session_attrs=read-write finds it"
        yield Finding("role", "warning", "a standby: nothing can be written", advice)
    else:
        yield Finding("role", "ok", f"primary, {plural(_one(conn, 'SELECT count(*) FROM pg_stat_replication'), 'standby')}")


def _durability(conn: Connection) -> Iterator[Finding]:
    names = ("fsync", "full_page_writes", "synchronous_commit", "data_checksums")
    found = {name: _one(conn, f"SHOW {name}") for name in names}
    told = ", ".join(f"{name}={value}" for name, value in found.items())
    if found["fsync"] != "on" or found["full_page_writes"] != "on":
        advice = "switch both on: a power cut may destroy the database (full_page_writes may be off on ZFS)"
        yield Finding("durability", "problem", told, advice)
    elif found["data_checksums"] != "on":
        advice = "`pg_checksums --enable`, while the server is stopped, has it notice damaged pages"
        yield Finding("durability", "warning", told, advice)
    else:
        yield Finding("durability", "ok", f"{told} (each store sets synchronous_commit by its durability)")


def _encoding(conn: Connection) -> Iterator[Finding]:
    found = _one(conn, "SHOW server_encoding")
    if found == "UTF8":
        yield Finding("encoding", "ok", found)
    else:
        yield Finding("encoding", "problem", found, "make a database WITH ENCODING 'UTF8', and copy the store there")


# Connections of another user come without their state, unless this one is in pg_read_all_stats.
_TRANSACTIONS: Final = """
SELECT pid, coalesce(state, '') AS state, coalesce(application_name, '') AS program,
  extract(epoch FROM clock_timestamp() - xact_start)::float AS age_s,
  extract(epoch FROM clock_timestamp() - state_change)::float AS idle_s
FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
  AND backend_type = 'client backend' ORDER BY xact_start
"""
_UNSEEN: Final = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type IS NULL"


def _transactions(conn: Connection) -> Iterator[Finding]:
    """The oldest one, which holds back VACUUM, and those that are idle, for which readers of the whole store wait."""
    found = conn.exec_driver_sql(_TRANSACTIONS).all()
    unseen = _one(conn, _UNSEEN)
    more = f" (beside {plural(unseen, 'connection')} that this user may not see)" if unseen else ""
    if not found:
        yield Finding("oldest transaction", "ok", f"none{more}")
    else:
        oldest = found[0]
        told = f"{_shown_s(oldest.age_s)}, process {oldest.pid} {oldest.program}{more}"
        if oldest.age_s > _LONG_TRANSACTION_S:
            advice = f"it holds back VACUUM: let it finish, or SELECT pg_terminate_backend({oldest.pid})"
            yield Finding("oldest transaction", "warning", told, advice)
        else:
            yield Finding("oldest transaction", "ok", told)
    idle = sorted((row for row in found if row.state.startswith("idle in transaction")), key=lambda row: -row.idle_s)
    if idle and idle[0].idle_s > _LONG_IDLE_S:
        told = f"{len(idle)}, the longest for {_shown_s(idle[0].idle_s)}: process {idle[0].pid} {idle[0].program}"
        advice = f"SELECT pg_terminate_backend({idle[0].pid}): writers and read_all wait for what it has written"
        yield Finding("idle in transaction", "warning", told, advice)
    else:
        yield Finding("idle in transaction", "ok", str(len(idle)))


def _replication_slots(conn: Connection) -> Iterator[Finding]:
    slots = conn.exec_driver_sql("SELECT slot_name FROM pg_replication_slots WHERE NOT active ORDER BY 1").scalars().all()
    if slots:
        told = f"{plural(len(slots), 'slot')} that nobody reads: {', '.join(slots[:5])}"
        advice = "have its reader come back, or drop it: the server keeps its log for it until the disk is full"
        yield Finding("replication slots", "warning", told, advice)
    else:
        yield Finding("replication slots", "ok", "none that nobody reads")


_ROOM: Final = """
SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' OR backend_type IS NULL),
  current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
  - coalesce(current_setting('reserved_connections', true)::int, 0)
"""


def _connections(conn: Connection) -> Iterator[Finding]:
    used, room = conn.exec_driver_sql(_ROOM).one()
    told = f"{used:,} of {room:,}"
    if room - used < room * _LITTLE_ROOM_RATIO:
        advice = "raise max_connections: each process of a store has one for each thread that is at work"
        yield Finding("connections", "warning", told, advice)
    else:
        yield Finding("connections", "ok", told)


def _clock(conn: Connection) -> Iterator[Finding]:
    before_us = time.time_ns() // 1000
    there_us = _one(conn, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
    after_us = time.time_ns() // 1000
    apart_s = abs(there_us - (before_us + after_us) / 2) / 1e6
    found = f"{datetime.now(UTC).isoformat(timespec='seconds')}, {_shown_s(apart_s)} from the server's"
    if apart_s > _CLOCK_WARNING_S:
        yield Finding("clock", "problem" if apart_s > _CLOCK_PROBLEM_S else "warning", found, _SET_CLOCK)
    else:
        yield Finding("clock", "ok", found)


# The store


def _schema(server: Server) -> Finding:
    from aegis_store.postgres import deploy  # noqa: PLC0415 - as above

    try:
        deploy.check(server, deploy.revision(server))
    except AegisStoreError as error:
        return Finding("schema", "problem", error.what, error.hint)
    return Finding("schema", "ok", HEAD)


_MAY_WRITE: Final = """
SELECT has_table_privilege('event', 'INSERT') AND has_table_privilege('session', 'INSERT')
  AND has_table_privilege('session', 'UPDATE') AND has_sequence_privilege('event_position', 'USAGE')
"""


def _permissions(conn: Connection) -> Iterator[Finding]:
    user = _one(conn, "SELECT current_user")
    if _one(conn, _MAY_WRITE):
        yield Finding("permissions", "ok", f"{user} may read and write")
    else:
        advice = "run writers as the owner of the tables, or GRANT this user what the owner may"
        yield Finding("permissions", "warning", f"{user} may not write", advice)


def _triggers(conn: Connection) -> Iterator[Finding]:
    from aegis_store.verify.server_structure import changes_of_schema  # noqa: PLC0415 - one of many looks

    problems = [problem.detail for problem in changes_of_schema(conn)]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        advice = "bounds and counters may not hold: `aegis-store verify` tells all, and what to do"
        yield Finding("triggers", "problem", "; ".join(problems[:3]) + more, advice)
    else:
        yield Finding("triggers", "ok", "they, functions and tables are as this library makes them")


_OURS: Final = f"""
SELECT unnest(ARRAY[{_NAMES}])::regclass UNION ALL SELECT inhrelid FROM pg_inherits WHERE inhparent = 'event'::regclass
"""
_SIZES: Final = f"""
SELECT sum(pg_total_relation_size(oid))::bigint, pg_database_size(current_database()) FROM pg_class WHERE oid IN ({_OURS})
"""


def _size(conn: Connection) -> Iterator[Finding]:
    own_bytes, all_bytes = conn.exec_driver_sql(_SIZES).one()
    yield Finding("size", "ok", f"{own_bytes:,} bytes of tables and indexes, {all_bytes:,} of the database")


_DEAD: Final = f"""
SELECT coalesce(sum(n_dead_tup), 0)::bigint, coalesce(sum(n_live_tup), 0)::bigint,
  max(greatest(last_autovacuum, last_vacuum)), (SELECT age(datfrozenxid) FROM pg_database WHERE datname = current_database())
FROM pg_stat_user_tables WHERE relid IN ({_OURS})
"""


def _dead_rows(conn: Connection) -> Iterator[Finding]:
    dead, live, vacuumed_at, age = conn.exec_driver_sql(_DEAD).one()
    when = "not vacuumed yet" if vacuumed_at is None else f"last vacuum {vacuumed_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    told = f"{dead:,} beside {live:,} live ones, {when}"
    if _one(conn, "SHOW autovacuum") != "on" or _one(conn, "SHOW track_counts") != "on":
        yield Finding("dead rows", "problem", f"autovacuum is off; {told}", "set autovacuum = on and track_counts = on")
    elif dead > _MANY_DEAD and dead > live * _MANY_DEAD_RATIO:
        advice = "look at the oldest transaction and replication slots, then VACUUM (ANALYZE) event, session"
        yield Finding("dead rows", "warning", told, advice)
    else:
        yield Finding("dead rows", "ok", told)
    if age > _OLD_TRANSACTIONS:
        advice = "VACUUM (FREEZE) now: at some 2,100,000,000 the server takes no more writes"
        yield Finding("transaction ids", "problem", f"{age:,} since the oldest that is not frozen", advice)


def _budget(conn: Connection) -> Iterator[Finding]:
    row = conn.exec_driver_sql("SELECT retained_bytes, max_total_bytes FROM store").one_or_none()
    if row is None:
        yield Finding("budget", "problem", "the row that holds the policy is missing", "restore a backup of the server")
    elif row.max_total_bytes is None:
        yield Finding("budget", "ok", "none (max_total_bytes)")
    elif row.retained_bytes > row.max_total_bytes:
        found = f"{row.retained_bytes:,} of {row.max_total_bytes:,} bytes"
        yield Finding("budget", "warning", found, "`aegis-store prune` shows what would go; or raise max_total_bytes")
    else:
        yield Finding("budget", "ok", f"{row.retained_bytes:,} of {row.max_total_bytes:,} bytes")


def _newest_event(conn: Connection) -> Iterator[Finding]:
    newest_us = _one(conn, "SELECT recorded_at FROM event ORDER BY position DESC LIMIT 1")
    ahead_s = 0.0 if newest_us is None else newest_us / 1e6 - time.time()
    if ahead_s > _CLOCK_PROBLEM_S:
        found = f"recorded {_shown_s(ahead_s)} after now, by the clock here"
        yield Finding("newest event", "problem", found, _SET_CLOCK)


Look = Callable[[Connection], Iterator[Finding]]
_OF_SERVER: Final[tuple[Look, ...]] = (
    *(_tls, _server, _role, _durability, _encoding, _connections, _transactions, _replication_slots, _clock),
)
_OF_STORE: Final[tuple[Look, ...]] = (_permissions, _triggers, _size, _dead_rows, _budget, _newest_event)
