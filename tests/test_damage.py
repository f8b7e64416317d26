"""Damage to the file, at every page: what is read is what was written, or an error; and nothing is written to it.

Bytes are changed where SQLite keeps its structure (page headers, cell pointers, cell headers) and anywhere else, the file is
cut, its log is cut, changed, removed, or replaced by another store's.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from aegis_store import AegisStoreError, EventStore, NewEvent, RetentionPolicy, Session, StoreCorrupt, driver

PAGE_BYTES = 8192
NAMES = ("first", "second", "third", "capped", "ended", "empty", "long")
TORTURE = pytest.mark.torture

Read = Callable[[EventStore], Any]


def filled(path: Path, seed: int) -> None:
    """A store of all that there is: sessions whose events take turns, long payloads, a cap, tombstones, prunes, a policy."""
    chance = random.Random(seed)
    with EventStore.open(path, durability="process", prune_on_open=False, maintain_every=None) as store:
        store.set_retention_policy(
            RetentionPolicy(max_events=500, max_total_bytes=10**8, terminal_grace=timedelta(days=9), max_bytes=10**7)
        )
        for name in (*NAMES, "gone", "again"):
            store.create_session(name, owner=f"owner of {name}", metadata={"of": name, "text": "x" * chance.randrange(200)})
        store.update_session("capped", max_events=7)
        for number in range(120):
            name = NAMES[number % 5]
            payload = {"n": number, "text": chance.choice("abc") * chance.randrange(300)}
            store.append(name, "hook", payload, event_id=f"{name} {number}", run_id="run", payload_ref="ref")
        store.append_many("long", [NewEvent(type="t", payload="y" * 20_000) for _ in range(3)])
        for name in ("gone", "again"):
            store.append_many(name, [NewEvent(type="t", payload=n) for n in range(4)])
            store.delete_session(name)
        store.create_session("again", owner="owner of again")
        store.append("again", "t", 5)
        store.set_status("ended", "failed")
        store.prune()


def whole_store(store: EventStore) -> list[Any]:
    found: list[Any] = []
    while True:
        page = store.read_all(after_position=found[-1].position if found else None, limit=40, on_gap="skip")
        if not page:
            return found
        found += page


def without_sizes(session: Session) -> Session:
    """Its sizes are told by the first event that is left, whose payload is not read for that: `verify` alone checks them."""
    return replace(session, retained_bytes=0, removed_bytes=0)


def session_reads(name: str) -> dict[str, Read]:
    return {
        f"get {name}": lambda store: without_sizes(store.get_session(name)),
        f"read {name}": lambda store: store.read(name, limit=1000),
        f"filter {name}": lambda store: store.read(name, types=["hook"], limit=5).events,
    }


READS: dict[str, Read] = {
    # In one page, of all: a damaged index may hide a session from a list that goes on or filters, which only `verify` finds.
    "list_sessions": lambda store: [without_sizes(session) for session in store.list_sessions(limit=1000).sessions],
    "read_all": whole_store,
    "follow": lambda store: list(store.follow("first", after=0, timeout=0)),
    "policy": lambda store: store.retention_policy(),
    "history": lambda store: store.prune_history(),
    **{name: read for each in (*NAMES, "again") for name, read in session_reads(each).items()},
}


def outcome(read: Read, store: EventStore) -> Any:
    """What it gives; None for an error of ours. Any other error fails the test."""
    try:
        return read(store)
    except AegisStoreError:
        return None


def truth_of(path: Path) -> dict[str, Any]:
    with EventStore.open(path, read_only=True) as store:
        return {name: read(store) for name, read in READS.items()}


def wrong_reads(path: Path, truths: list[dict[str, Any]], tally: Counter[str]) -> list[str]:
    """The reads that gave what none of the truths holds, after opening the file as a reader and as a writer."""
    before = path.read_bytes()
    wrong = []
    for options in ({"read_only": True}, {"prune_on_open": True, "maintain_every": None}):
        try:
            store = EventStore.open(path, **options)
        except AegisStoreError:
            tally["refused at open"] += 1
            continue
        with store:
            raised = 0
            for name, read in READS.items():
                found = outcome(read, store)
                raised += found is None
                if found is not None and all(found != truth[name] for truth in truths):
                    wrong.append(name)
            tally.update({"raised": raised, "read": len(READS) - raised})
            report = outcome(EventStore.verify, store)
            if raised and report is not None and report.ok:
                wrong.append("verify finds nothing")
    if path.read_bytes() != before:
        wrong.append("the file was written to")
    return wrong


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    path = tmp_path_factory.mktemp("whole") / "aegis.db"
    shutil.copyfile(template, path)
    filled(path, 1)
    return path


def structural_places(content: bytes) -> Iterator[int]:
    """Page headers, cell pointers, and the first bytes of each cell."""
    for start in range(0, len(content), PAGE_BYTES):
        header = start + (100 if start == 0 else 0)
        kind = content[header]
        yield from range(start, start + 100 if start == 0 else start)
        length = {2: 12, 5: 12, 10: 8, 13: 8}.get(kind)
        if length is None:  # an overflow page, or a free one
            yield from range(start, start + 8)
            continue
        yield from range(header, header + length)
        cells = int.from_bytes(content[header + 3 : header + 5], "big")
        for number in range(cells):
            pointer = header + length + 2 * number
            yield from (pointer, pointer + 1)
            cell = start + int.from_bytes(content[pointer : pointer + 2], "big")
            yield from range(cell, min(cell + 24, start + PAGE_BYTES))


def changes(chance: random.Random, content: bytes, structural: int, anywhere: int) -> Iterator[tuple[int, int]]:
    """Places, and what stands there then. Each page has its share of both."""
    places = sorted(set(structural_places(content)))
    pages = len(content) // PAGE_BYTES
    chosen = chance.sample(places, min(structural, len(places)))
    chosen += [page * PAGE_BYTES + chance.randrange(PAGE_BYTES) for page in range(pages) for _ in range(anywhere)]
    for place in chosen:
        old = content[place]
        yield (
            place,
            chance.choice([old ^ (1 << chance.randrange(8)), old ^ 0xFF, chance.choice([b for b in range(256) if b != old])]),
        )


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("structural", "anywhere"), [(60, 1), pytest.param(10**9, 60, marks=TORTURE)])
def test_a_changed_byte_is_seen_or_changes_nothing(whole: Path, tmp_path: Path, structural: int, anywhere: int) -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    content, truth = whole.read_bytes(), truth_of(whole)
    path, tally = tmp_path / "aegis.db", Counter[str]()
    wrong = []
    for place, byte in changes(chance, content, structural, anywhere):
        path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
        tally["cases"] += 1
        wrong += [(place // PAGE_BYTES, place % PAGE_BYTES, byte, name) for name in wrong_reads(path, [truth], tally)]
        remove_side_files(path)
    print("seed", seed, json.dumps(tally))
    assert wrong == []
    assert tally["raised"] + tally["refused at open"] > 0


@pytest.mark.parametrize("key", ["capped", "ended 4"], ids=["of a session", "of an event_id"])
def test_an_index_that_leads_to_another_row_is_seen(whole: Path, tmp_path: Path, key: str) -> None:
    content = whole.read_bytes()
    path = tmp_path / "aegis.db"
    table = "session" if key == "capped" else "event"
    with closing(driver.dbapi.connect(f"file:{whole}?mode=ro", uri=True)) as shell:
        row, other = (
            shell.execute(f"SELECT rowid FROM {table} WHERE {table}_id = ?", (each,)).fetchone()[0]
            for each in (key, OTHER[key])
        )
    entry = key.encode() + bytes([row])  # as the leaf of an index has it
    assert content.count(entry) == 1
    path.write_bytes(content.replace(entry, key.encode() + bytes([other])))
    with EventStore.open(path, prune_on_open=False, maintain_every=None) as store:
        if table == "session":
            for read in session_reads(key).values():
                with pytest.raises(StoreCorrupt, match="session 'capped'"):
                    read(store)
            with pytest.raises(StoreCorrupt, match="session 'capped'"):
                store.ensure_session(key, owner="owner of capped")
        else:
            with pytest.raises(StoreCorrupt, match="event 2 of session 'ended'"):
                store.append("ended", "hook", {}, event_id=key)
        assert not store.verify().ok


OTHER = {"capped": "long", "ended 4": "ended 9"}


def header_lengths(content: bytes) -> Iterator[int]:
    """Where each row of a table says how long its header is."""
    for start in range(PAGE_BYTES, len(content), PAGE_BYTES):
        if content[start] == 13:  # a page with rows
            for number in range(int.from_bytes(content[start + 3 : start + 5], "big")):
                pointer = start + 8 + 2 * number
                place = start + int.from_bytes(content[pointer : pointer + 2], "big")
                for _ in ("length of the row", "rowid"):
                    while content[place] >= 128:
                        place += 1
                    place += 1
                yield place


@pytest.mark.parametrize("rows", [3, pytest.param(10**9, marks=TORTURE)])
def test_a_row_whose_columns_are_shifted_so_that_it_has_no_checksum_is_seen(
    whole: Path, tmp_path: Path, chance: random.Random, rows: int
) -> None:
    content, truth = whole.read_bytes(), truth_of(whole)
    path, tally = tmp_path / "aegis.db", Counter[str]()
    places = [place for place in header_lengths(content) if content[place] in (14, 15)]  # those of events
    assert len(places) > 50
    for place in chance.sample(places, min(rows, len(places))):
        shorter = [(place, content[place] - lost) for lost in (1, 2, 3)]
        two_in_one = [(place + column, content[place + column] | 128) for column in range(1, content[place])]
        for where, byte in shorter + two_in_one:
            path.write_bytes(content[:where] + bytes([byte]) + content[where + 1 :])
            assert wrong_reads(path, [truth], tally) == [], (where, byte)
            remove_side_files(path)
    assert tally["raised"] > 0


@pytest.mark.parametrize("records", [1, pytest.param(10**9, marks=TORTURE)])
def test_a_record_that_holds_null_or_another_type_where_it_held_a_value_is_seen(
    whole: Path, tmp_path: Path, chance: random.Random, records: int
) -> None:
    content, truth = whole.read_bytes(), truth_of(whole)
    path = tmp_path / "aegis.db"
    places = [place for place in header_lengths(content) if content[place] > 20]  # those of sessions: 22 columns
    assert len(places) >= len(NAMES)
    for place in chance.sample(places, min(records, len(places))):
        for where in range(place + 1, place + content[place]):
            for byte in {content[where] ^ 8, 0, 8, 9, 12} - {content[where]}:
                path.write_bytes(content[:where] + bytes([byte]) + content[where + 1 :])
                assert wrong_reads(path, [truth], Counter()) == [], (where - place, content[where], byte)
                remove_side_files(path)


def remove_side_files(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=TORTURE)])
def test_a_file_cut_at_any_page_is_refused_or_reads_as_written(whole: Path, tmp_path: Path, step: int) -> None:
    content, truth = whole.read_bytes(), truth_of(whole)
    path, tally = tmp_path / "aegis.db", Counter[str]()
    for pages in range(0, len(content) // PAGE_BYTES, step):
        for more in (0, 1, PAGE_BYTES // 2):
            path.write_bytes(content[: pages * PAGE_BYTES + more])
            assert wrong_reads(path, [truth], tally) == [], (pages, more)
            remove_side_files(path)
    print(json.dumps(tally))
    assert tally["read"] == 0


# The log


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, whole: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A copy of a store with its log, taken while it was open, and what was read after each of its commits."""
    directory = tmp_path_factory.mktemp("live")
    used, copy = directory / "used.db", directory / "copy.db"
    shutil.copyfile(whole, used)
    truths = [truth_of(used)]
    with EventStore.open(used, durability="process", prune_on_open=False, maintain_every=None) as store:
        for number in range(25):
            store.append(NAMES[number % 4], "hook", {"late": number, "text": "z" * 400})
            truths.append({name: read(store) for name, read in READS.items()})
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{used}{suffix}", f"{copy}{suffix}")
    return copy, truths


def with_log(live: Path, path: Path, log: bytes | None) -> Path:
    remove_side_files(path)
    shutil.copyfile(live, path)
    if log is not None:
        path.with_name(path.name + "-wal").write_bytes(log)
    return path


@pytest.mark.parametrize("cuts", [12, pytest.param(400, marks=TORTURE)])
def test_a_log_that_is_cut_gives_what_was_committed_before(
    live: tuple[Path, list[dict[str, Any]]], tmp_path: Path, cuts: int
) -> None:
    store, truths = live
    log, tally = store.with_name("copy.db-wal").read_bytes(), Counter[str]()
    for number in range(cuts):
        path = with_log(store, tmp_path / "aegis.db", log[: number * len(log) // cuts])
        assert wrong_log_reads(path, truths, tally) == [], number
    print(json.dumps(tally))
    assert tally["read"] > 0


@pytest.mark.parametrize("rounds", [12, pytest.param(1000, marks=TORTURE)])
def test_a_changed_byte_in_the_log_is_seen_or_ends_it(
    live: tuple[Path, list[dict[str, Any]]], tmp_path: Path, rounds: int
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    store, truths = live
    log, tally = store.with_name("copy.db-wal").read_bytes(), Counter[str]()
    for _ in range(rounds):
        place = chance.randrange(len(log)) if chance.random() < 0.5 else chance.randrange(0, len(log), PAGE_BYTES + 24) + 32
        changed = bytearray(log)
        changed[min(place, len(log) - 1)] ^= 1 << chance.randrange(8)
        path = with_log(store, tmp_path / "aegis.db", bytes(changed))
        assert wrong_log_reads(path, truths, tally) == [], place
    print(json.dumps(tally))


def newest_pages(log: bytes) -> dict[int, int]:
    """Where the log has each page as it was last written."""
    frames = range(32, len(log) - PAGE_BYTES, 24 + PAGE_BYTES)
    return {int.from_bytes(log[start : start + 4], "big"): start + 24 for start in frames}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rounds", [10, pytest.param(1500, marks=TORTURE)])
def test_a_byte_that_changes_in_the_log_of_a_store_in_use_is_seen_or_changes_nothing(
    whole: Path, tmp_path: Path, chance: random.Random, rounds: int
) -> None:
    """SQLite checks the log for the first who opens the store, not for those who come while it is open."""
    path, tally = tmp_path / "aegis.db", Counter[str]()
    shutil.copyfile(whole, path)
    with EventStore.open(path, durability="process", prune_on_open=False, maintain_every=None) as store:
        for number in range(25):
            store.append(NAMES[number % 4], "hook", {"late": number, "text": "z" * 400})
        truth = {name: read(store) for name, read in READS.items()}
        log = path.with_name(path.name + "-wal")
        content, starts = log.read_bytes(), list(newest_pages(log.read_bytes()).values())
        pages = b"".join(content[start : start + PAGE_BYTES] for start in starts)
        structure = [starts[place // PAGE_BYTES] + place % PAGE_BYTES for place in structural_places(pages)]
        for number in range(rounds):
            place = chance.choice(structure) if number % 2 else chance.choice(starts) + chance.randrange(PAGE_BYTES)
            with changed(log, place, content[place] ^ (1 << chance.randrange(8))):
                assert wrong_log_reads(path, [truth], tally) == [], place
    print(json.dumps(tally))
    assert tally["read"] > 0


@contextmanager
def changed(log: Path, place: int, byte: int) -> Iterator[None]:
    """SQLite has no locks on the log that closing it here would drop."""
    before = log.read_bytes()[place]
    write_byte(log, place, byte)
    try:
        yield
    finally:
        write_byte(log, place, before)


def write_byte(path: Path, place: int, byte: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([byte]))


@pytest.mark.parametrize("rounds", [4, pytest.param(600, marks=TORTURE)])
@pytest.mark.timeout(3600)
def test_a_byte_that_changes_between_two_reads_of_one_store_is_seen_or_changes_nothing(
    whole: Path, tmp_path: Path, chance: random.Random, context: ForkServerContext, rounds: int
) -> None:
    path, tally = tmp_path / "aegis.db", Counter[str]()
    content, truth = whole.read_bytes(), truth_of(whole)
    for place, byte in changes(chance, content, rounds, 0):
        path.write_bytes(content)
        with EventStore.open(path, prune_on_open=False, maintain_every=None) as store:
            for name in chance.sample(sorted(READS), 10):  # some of the pages are in its memory then
                assert READS[name](store) == truth[name]
            other = context.Process(target=write_byte, args=(path, place, byte))  # here, it would drop SQLite's locks
            other.start()
            other.join()
            found = {name: outcome(read, store) for name, read in READS.items()}
        assert [name for name, value in found.items() if value not in (None, truth[name])] == [], (place, byte)
        tally.update("read" if value is not None else "raised" for value in found.values())
        remove_side_files(path)
    print(json.dumps(tally))
    assert tally["read"] > 0


def wrong_log_reads(path: Path, truths: list[dict[str, Any]], tally: Counter[str]) -> list[str]:
    """As `wrong_reads`, of a reader: each read gives what one and the same moment held."""
    try:
        store = EventStore.open(path, read_only=True)
    except AegisStoreError:
        tally["refused at open"] += 1
        return []
    with store:
        found = {name: outcome(read, store) for name, read in READS.items()}
    tally["raised"] += sum(value is None for value in found.values())
    tally["read"] += sum(value is not None for value in found.values())
    if any(all(value is None or value == truth[name] for name, value in found.items()) for truth in truths):
        return []
    return [name for name, value in found.items() if value is not None]


def test_without_its_log_a_store_gives_what_the_file_holds(live: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    store, truths = live
    assert wrong_log_reads(with_log(store, tmp_path / "aegis.db", None), truths, Counter()) == []


def test_without_its_shared_memory_nothing_is_missing(live: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    store, truths = live
    path = with_log(store, tmp_path / "aegis.db", store.with_name("copy.db-wal").read_bytes())
    assert truth_of(path) == truths[-1]


@pytest.mark.parametrize("checkpoints", [False, True])
def test_the_log_of_another_store_gives_nothing_of_that_one(
    live: tuple[Path, list[dict[str, Any]]], whole: Path, tmp_path: Path, template: Path, checkpoints: bool
) -> None:
    """SQLite plays any log into the file that is well formed."""
    store, truths = live
    other = tmp_path / "other.db"
    EventStore.open(other).close()
    if checkpoints:
        filled(other, 2)
    with EventStore.open(other, durability="process", prune_on_open=False, maintain_every=None) as opened:
        if not checkpoints:
            for name in NAMES:
                opened.create_session(name)
        for number in range(40):
            opened.append(NAMES[number % 4], "hook", {"of the other": number})
        log = other.with_name("other.db-wal").read_bytes()
    tally = Counter[str]()
    assert wrong_log_reads(with_log(store, tmp_path / "aegis.db", log), truths, tally) == []
    assert tally["raised"] + tally["refused at open"] > 0
