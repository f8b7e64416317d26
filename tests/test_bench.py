"""The benchmark does what it says: both sides the same work, ratios from both. What it measures is nobody's to assert."""

import itertools
import platform
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aegis_store import EventStore, RetentionPolicy, StoreFull, bench, driver
from aegis_store.append import APPEND_SQL
from aegis_store.bench import append, floor, measure, pruning, reading, stored
from aegis_store.bench.measure import Sides, Turn
from aegis_store.bench.room import SESSION_IDS, WARM_UP, Room, copied, template
from aegis_store.connections import Durability

APPENDS = 30


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with template(tmp_path_factory.mktemp("bench")) as path:
        yield path


@pytest.fixture
def room(tmp_path: Path, empty: Path) -> Room:
    return Room(tmp_path, empty, seconds=0.001)


def rows_of(path: Path) -> list[Any]:
    columns = "position, session, seq, bytes_before, type, payload, event_id, run_id, payload_ref"
    with closing(driver.dbapi.connect(str(path))) as connection:
        events = connection.execute(f"SELECT {columns} FROM event ORDER BY position").fetchall()
        sessions = connection.execute("SELECT id, session_id, first_seq, last_seq, total_bytes FROM session").fetchall()
    return [*events, *sessions]


class Recorder:
    """A cursor that only notes what it is given."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    def execute(self, sql: str, _: object = None) -> "Recorder":
        self.statements.append(sql)
        return self

    def fetchall(self) -> list[Any]:
        return []


def test_the_floor_runs_the_stores_own_statement() -> None:
    cursor = Recorder()
    floor.append_on(cursor)(0)
    floor.append_batch_on(cursor, 3)(0)
    assert cursor.statements == [APPEND_SQL, "BEGIN IMMEDIATE", *[APPEND_SQL] * 3, "COMMIT"]


@pytest.mark.parametrize("durability", ["process", "power"])
def test_the_floor_has_the_pragmas_of_the_stores_writer(room: Room, durability: Durability) -> None:
    pragmas = ("foreign_keys", "trusted_schema", "synchronous", "journal_mode", "page_size", "auto_vacuum", "cache_size")
    path = room.store("store.db")
    with EventStore.open(path, durability=durability) as store, floor.connection(path, durability) as connection:
        for pragma in pragmas:
            ours = store._db.writer.driver.execute(f"PRAGMA {pragma}").fetchall()
            assert connection.execute(f"PRAGMA {pragma}").fetchall() == ours, pragma


def test_both_sides_of_an_append_leave_the_same_rows(room: Room) -> None:
    paths = room.store("store.db"), room.store("floor.db")
    with EventStore.open(paths[0]) as store, floor.connection(paths[1], "power") as connection:
        for operation in (append.append_to(store), floor.append_on(connection.cursor())):
            for number in range(APPENDS):
                operation(number)
    ours, theirs = map(rows_of, paths)
    assert ours == theirs
    assert len(ours) == APPENDS + len(SESSION_IDS)


def test_both_sides_of_a_batch_leave_the_same_rows(room: Room) -> None:
    paths = room.store("store.db"), room.store("floor.db")
    with EventStore.open(paths[0]) as store, floor.connection(paths[1], "power") as connection:
        for operation in (append.append_batch_to(store), floor.append_batch_on(connection.cursor(), 100)):
            for number in range(3):
                operation(number)
    ours, theirs = map(rows_of, paths)
    assert ours == theirs
    assert len(ours) == 300 + len(SESSION_IDS)


def test_both_sides_read_the_same_pages(room: Room) -> None:
    path = room.filled("store.db")
    with EventStore.open(path) as store, floor.connection(path, "power") as connection:
        for number in range(5):
            ours: Any = reading.read_by(store, 100)(number)
            theirs: Any = reading.read_on(connection, 100)(number)
            assert [(event.position, event.seq, event.payload) for event in ours] == [(*row[:2], row[-1]) for row in theirs]
            assert len(ours) == 100


def test_a_full_store_holds_no_more_than_its_caps_however_long_the_turns(tmp_path: Path, empty: Path) -> None:
    path = Room(tmp_path, empty, seconds=2.0).filled("store.db")
    with EventStore.open(path) as store:
        assert (store.stats().events, store.stats().removed_events) == (20_000, 0)


def test_both_sides_of_a_prune_remove_the_same_events(room: Room) -> None:
    full = room.filled("full.db", ended=True)
    paths = copied(full, room.directory / "store.db"), copied(full, room.directory / "floor.db")
    with EventStore.open(paths[0], prune_on_open=False) as store:
        assert store.prune().events_removed == 2000
    with floor.connection(paths[1], "power") as connection:
        connection.execute("DROP TRIGGER event_guards_delete")
        assert pruning.delete_ended(connection) == 2000
        assert connection.execute("SELECT count(*) FROM event").fetchall() == [(0,)]


@pytest.mark.parametrize("row", [row for row in bench.ROWS if row.measure in ("append", "groups", "processes")])
def test_every_append_that_a_side_counts_is_in_its_store(room: Room, row: measure.Row) -> None:
    with row.sides(room) as sides:
        assert sides.floor is not None
        counted = {name: side().count + side().count for name, side in (("store", sides.store), ("floor", sides.floor))}
    for name, count in counted.items():
        with closing(driver.dbapi.connect(str(room.directory / f"{name}.db"))) as connection:
            ((held,),) = connection.execute("SELECT count(*) FROM event").fetchall()
        warmed = 8 if (row.measure, name) == ("processes", "store") else WARM_UP
        assert held == count + warmed, name


def test_the_sides_take_turns_and_change_who_goes_first() -> None:
    order = []

    def side(name: str) -> measure.Side:
        return lambda: order.append(name) or Turn(1, 1.0)  # type: ignore[func-returns-value]

    assert len(list(measure.pairs_of(Sides(side("store"), side("floor")), 3))) == 3
    assert order == ["store", "floor", "floor", "store", "store", "floor"]


def test_a_ratio_is_the_median_of_what_the_pairs_say() -> None:
    pairs = [(Turn(10, 1.0), Turn(20, 1.0)), (Turn(30, 1.0), Turn(10, 1.0)), (Turn(9, 1.0), Turn(1, 0.1))]
    assert measure.ratio([*pairs]) == 0.9
    assert measure.ratio([(Turn(1, 1.0), None)]) is None


def test_an_operation_is_done_once_at_least_and_counts_its_units() -> None:
    done: list[int] = []
    turn = measure.repeated(lambda number: number, 1e-9, itertools.count(5), units=100, afterwards=done.append)
    assert (turn.count, len(turn.latencies_us), done) == (100, 1, [5])


def test_speed_is_the_median_of_turns_and_the_latencies_of_all() -> None:
    speed = measure.Speed.of([Turn(1, 1.0, [1.0]), Turn(3, 1.0, [2.0, 4.0, 3.0]), Turn(2, 1.0, [5.0])])
    assert (speed.per_second, speed.p50_us, speed.max_us) == (2, 3.0, 5.0)
    assert measure.Speed.of([Turn(1, 1.0)]).p50_us is None


def test_a_store_is_filled_by_the_stores_statement_to_its_caps_on_pages_of_either_size(room: Room) -> None:
    with template(room.directory, stored.SESSION_IDS) as path:
        with EventStore.open(path) as store:
            store.set_retention_policy(RetentionPolicy(max_events=2))
        paths = [copied(path, room.directory / name) for name in ("store.db", "floor.db")]
    stored.give_default_pages(paths[1])
    filled: list[int] = []
    for path, page_size in zip(paths, (8192, 4096), strict=True):
        stored.fill(path, 3000, filled.append)
        with closing(driver.dbapi.connect(str(path))) as connection:
            assert connection.execute("PRAGMA page_size").fetchall() == [(page_size,)]
            held = "SELECT last_seq - first_seq + 1, count(*) FROM session GROUP BY 1"
            assert connection.execute(held).fetchall() == [(2, stored.SESSIONS)]
    assert sum(filled) == 6000
    assert rows_of(paths[0]) == rows_of(paths[1])


def test_no_full_store_is_begun_for_which_there_is_no_room(tmp_path: Path) -> None:
    with pytest.raises(StoreFull, match="it takes 7,500,000,000,000,000 bytes"):
        next(stored.run(tmp_path, 10**12, pairs=1, seconds=1, on_filled=print, on_turn=print))
    assert list(tmp_path.iterdir()) == []


def test_what_is_told_of_the_machine_does_not_name_it() -> None:
    told = bench.machine()
    assert set(told) == {"python", "sqlite", "cpus", "platform"}
    assert platform.node() not in map(str, told.values())
