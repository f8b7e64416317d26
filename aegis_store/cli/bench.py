"""The command `bench`."""

from pathlib import Path
from typing import Annotated

import typer

from aegis_store.cli.options import AsJson


def bench(
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Where to make the files; it decides which disk is measured.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer appends: a rough answer in a few seconds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure appends here, beside a hand-written loop.

    The loop does the same SQL on the bare driver, with the same pragmas: the floor.

    20,000 appends of 2.5 KB over 220 sessions, both sides in turn, nine pairs, medians. Example: aegis-store bench --quick
    """
    import tempfile
    from dataclasses import asdict

    from aegis_store import bench as measuring
    from aegis_store import driver
    from aegis_store.cli.terminal import count, progress, show, show_json, show_table, table

    appends, pairs = (1000, 5) if quick else (20_000, 9)
    with tempfile.TemporaryDirectory(prefix=".aegis-store-bench-", dir=directory or Path.cwd()) as made, progress() as bar:
        place = Path(made)
        fsync_us = measuring.fsync_us(place)
        task = bar.add_task("Measuring appends", total=2 * pairs)
        figures = [
            measuring.lone_append(place, durability, appends=appends, pairs=pairs, on_pair=lambda: bar.advance(task))
            for durability in ("process", "power")
        ]
    if as_json:
        show_json({"sqlite": driver.VERSION, "fsync_us": fsync_us, "lone_append": [asdict(found) for found in figures]})
        return
    rows = (
        (f.durability, count(int(f.per_second)), f"{f.p50_us:.0f}", f"{f.p99_us:.0f}", f"{f.max_us:.0f}", f"{f.ratio:.2f}")
        for f in figures
    )
    show_table(table("durability", ">appends/s", ">p50 µs", ">p99 µs", ">max µs", ">of the floor"), rows)
    show(f"One fsync takes {fsync_us:.0f} µs here. SQLite {driver.VERSION}. Medians of {pairs} pairs of {appends:,} appends.")
