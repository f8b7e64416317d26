"""The command `bench`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_store.cli.options import AsJson

if TYPE_CHECKING:
    from aegis_store.bench.measure import Figures, Row, Speed
    from aegis_store.bench.stored import StoredFigures, StoredSide


class Measure(StrEnum):
    """The families of rows: `aegis_store.bench.MEASURES`."""

    APPEND = "append"
    APPEND_MANY = "append-many"
    GROUPS = "groups"
    PROCESSES = "processes"
    READ = "read"
    FOLLOW = "follow"
    PRUNE = "prune"
    OPEN = "open"


_Seconds = Annotated[
    float | None,
    typer.Option(
        "--seconds",
        metavar="S",
        min=0.001,
        max=3600,
        show_default=False,
        help="How long each side works in each pair: 1 by default, 0.05 with --quick, 4 with --stored.",
    ),
]
_Pairs = Annotated[
    int | None,
    typer.Option(
        "--pairs",
        metavar="N",
        min=1,
        max=1000,
        show_default=False,
        help="How often store and floor take turns, for medians: 5 by default, 3 with --quick.",
    ),
]


def parse_place(text: str) -> Path:
    """A directory that is there and can be written."""
    directory = Path(text)
    if not text:
        raise typer.BadParameter("a directory needs a name, not ''")
    if not directory.exists():
        raise typer.BadParameter(f"directory {text!r:.200} does not exist")
    if not directory.is_dir():
        raise typer.BadParameter(f"directory {text!r:.200} is a file")
    if not os.access(directory, os.W_OK):
        raise typer.BadParameter(f"directory {text!r:.200} cannot be written")
    return directory


def bench(
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            parser=parse_place,
            metavar="DIR",
            show_default=False,
            help="Where to make the files; it decides which disk is measured.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short turns: a rough answer in 20 seconds.")] = False,
    only: Annotated[
        list[Measure] | None,
        typer.Option(
            "--only",
            metavar="MEASURE",
            show_default=False,
            help=f"Measure this alone; may be given again. One of {', '.join(Measure)}.",
        ),
    ] = None,
    pairs: _Pairs = None,
    seconds: _Seconds = None,
    stored: Annotated[
        int | None,
        typer.Option(
            "--stored",
            min=1000,
            metavar="N",
            show_default=False,
            help="Instead: appends to a store that holds N events in 1,000 sessions at their caps. Takes 7.5 KB of disk each.",
        ),
    ] = None,
    db: Annotated[
        str | None,
        typer.Option(
            "--db",
            metavar="URL",
            show_default=False,
            help="Instead: on this PostgreSQL, in schemas that are made for it and go again.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the store here, each figure beside its floor.

    The floor is a hand-written loop with the same SQL, pragmas and JSON on the bare driver, with --db on psycopg. Both work in
    turn; the figures are medians over the pairs, the latencies those of all turns. About three minutes.

    Example: aegis-store bench --quick --only append
    """
    if stored is not None and (only or quick):
        raise typer.BadParameter("--stored measures something of its own: it goes with neither --only nor --quick")
    if db is not None and (stored is not None or directory is not None):
        raise typer.BadParameter("--db measures on a server: it goes with neither --stored nor --dir")
    pairs = pairs or (3 if quick else 5)
    if stored is not None:
        _bench_stored(directory, stored - stored % 1000, pairs, seconds or 4.0, as_json)
    else:
        _bench_rows(directory, db, list(only or ()), pairs, seconds or (0.05 if quick else 1.0), as_json)


def _bench_rows(directory: Path | None, db: str | None, only: list[Measure], pairs: int, seconds: float, as_json: bool) -> None:
    from aegis_store import bench
    from aegis_store.bench.disk import fsync_us
    from aegis_store.cli.terminal import progress, show_json

    rows, server = _chosen(db, only)
    with _place(directory) as place, progress() as bar:
        fsync = fsync_us(place)
        task = bar.add_task("Measuring", total=len(rows) * pairs)
        figures = list(bench.run(place, rows, pairs=pairs, seconds=seconds, on_turn=lambda: bar.advance(task)))
    if as_json:
        given = {"machine": bench.machine() | server, "pairs": pairs, "seconds": seconds, "fsync_us": fsync}
        show_json({**given, "rows": [_plain(row) for row in figures]})
    else:
        _show_rows(figures)
        _show_machine(None if server else fsync, pairs, seconds, **server)


def _chosen(db: str | None, only: list[Measure]) -> "tuple[list[Row], dict[str, str]]":
    """The rows, and what else the figures depend on."""
    from aegis_store import bench

    if db is None:
        return bench.chosen(only), {}
    from aegis_store.bench import server

    return server.rows(db, only), {"postgresql": server.version(db)}


def _bench_stored(directory: Path | None, events: int, pairs: int, seconds: float, as_json: bool) -> None:
    from aegis_store import bench
    from aegis_store.bench import stored
    from aegis_store.bench.disk import fsync_us
    from aegis_store.cli.terminal import progress, show_json

    with _place(directory) as place, progress() as bar:
        fsync = fsync_us(place)
        filling = bar.add_task("Filling", total=2 * events)
        measuring = bar.add_task("Measuring", total=len(stored.DURABILITIES) * pairs)
        made = stored.run(
            place,
            events,
            pairs=pairs,
            seconds=seconds,
            on_filled=lambda count: bar.advance(filling, count),
            on_turn=lambda: bar.advance(measuring),
        )
        figures = list(made)
    if as_json:
        given = {"machine": bench.machine(), "pairs": pairs, "seconds": seconds, "fsync_us": fsync}
        show_json({**given, "stored": [_plain(found) for found in figures]})
    else:
        _show_stored(figures)
        _show_machine(fsync, pairs, seconds)


@contextmanager
def _place(directory: Path | None) -> Iterator[Path]:
    """A new directory for all files of a run, which goes again however it ends. Errors name the one that it lies in."""
    from tempfile import TemporaryDirectory

    from aegis_store.errors import StoreFull
    from aegis_store.sqlite_errors import errors_of

    parent = directory or Path.cwd()
    try:
        with errors_of(str(parent)), TemporaryDirectory(prefix=".aegis-store-bench-", dir=parent) as made:
            yield Path(made)
    except StoreFull as error:
        raise StoreFull(store=str(parent), detail=error.detail) from None


def _plain(figures: "Figures | StoredFigures") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(figures)


def _show_rows(figures: "list[Figures]") -> None:
    from aegis_store.cli.terminal import count, show_table, table

    def rate(row: "Figures") -> str:
        return f"{count(int(row.store.per_second))} {row.unit}" if row.unit else "-"

    rows = ((row.name, rate(row), *_latencies(row.store), _ratio(row.ratio)) for row in figures)
    show_table(table("measure", ">per second", ">p50", ">p99", ">max", ">of floor"), rows)


def _show_stored(figures: "list[StoredFigures]") -> None:
    from aegis_store.cli.terminal import count, plural, show, show_table, size, table

    def cells(name: str, side: "StoredSide") -> tuple[str, ...]:
        speed = side.speed
        tail = (_duration(speed.p999_us), _duration(speed.max_us))
        memory = "-" if side.rss_peak_bytes is None else size(side.rss_peak_bytes)
        times = (_duration(speed.p50_us), _duration(speed.p99_us), *tail)
        return (name, count(int(speed.per_second)), *times, size(side.wal_peak_bytes), memory)

    made = table("side", ">appends/s", ">p50", ">p99", ">p99.9", ">max", ">WAL", ">memory")
    sides = [(found.durability, side) for found in figures for side in (("store", found.store), ("floor", found.floor))]
    show_table(made, (cells(f"{durability}, {name}", side) for durability, (name, side) in sides))
    for found in figures:
        events = plural(found.stored_events, "event")
        show(f"{events} stored, {found.durability}: {_ratio(found.ratio)} of the floor's appends/s.")


def _show_machine(fsync_us: float | None, pairs: int, seconds: float, postgresql: str = "") -> None:
    from aegis_store import bench
    from aegis_store.cli.terminal import plural, show

    here = bench.machine()
    disk = "" if fsync_us is None else f"4 KiB and an fsync take {_duration(fsync_us)} here. "
    show(f"{disk}Medians of {plural(pairs, 'pair')}, {seconds:g} s a side.")
    database = f"PostgreSQL {postgresql}" if postgresql else f"SQLite {here['sqlite']}"
    show(f"Python {here['python']}, {database}, {here['cpus']} CPUs.")


def _latencies(speed: "Speed") -> tuple[str, str, str]:
    return _duration(speed.p50_us), _duration(speed.p99_us), _duration(speed.max_us)


def _duration(us: float | None) -> str:
    """Microseconds as people read them: 85 µs, 1.2 ms, 310 ms."""
    if us is None:
        return "-"
    if us < 1000:
        return f"{us:.0f} µs"
    return f"{us / 1000:.1f} ms" if us < 100_000 else f"{us / 1000:.0f} ms"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
