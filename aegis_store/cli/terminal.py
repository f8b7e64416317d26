"""What is printed: text without control characters, numbers as people read them, tables, progress, JSON."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from aegis_store.errors import plural as plural
from aegis_store.errors import printable as printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table


_WIDEST_CELL = 24


def fitted(text: str, width: int) -> str:
    """`text` on one line in exactly so many columns of a terminal: cut off with an ellipsis, or filled up."""
    from rich.text import Text

    line = Text(printable(text))
    line.truncate(width, overflow="ellipsis", pad=True)
    return line.plain


def console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def show(*lines: str) -> None:
    """Print lines, as they are but for what is not printable."""
    for line in lines:
        print(printable(line))  # noqa: T201


def show_prose(*texts: str, stderr: bool = False) -> None:
    """Print sentences, which go on below where the terminal ends."""
    for text in texts:
        for line in wrapped(text, console().width):
            print(line, file=sys.stderr if stderr else sys.stdout)


def wrapped(text: str, width: int) -> list[str]:
    """`text` in lines of so many columns, of which a wide character takes two; between words, where there is a space."""
    from rich.text import Text

    return [line.plain.rstrip() for line in Text(printable(text)).wrap(console(), width)]


def table(*columns: str) -> "Table":
    """An empty table. A column whose name begins with ">" is for numbers, "<" for text that may be long, "*" takes the room
    that is left, "~" too, and goes on below.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in columns:
        made.add_column(
            name.lstrip(">*~<"),
            justify="right" if name.startswith(">") else "left",
            no_wrap=not name.startswith("~"),
            overflow="fold" if name.startswith("~") else "ellipsis",
            ratio=1 if name[0] in "*~" else None,
            max_width=_WIDEST_CELL if name.startswith("<") else None,
        )
    made.expand = any(name[0] in "*~" for name in columns)
    return made


def show_table(made: "Table", rows: Iterable[Sequence[object]]) -> None:
    from rich.text import Text

    for row in rows:
        made.add_row(*(Text(printable(str(cell))) for cell in row))
    console().print(made)


def show_facts(facts: Mapping[str, object], *, title: str | None = None) -> None:
    """Names and values, one a line; long values go on below, indented."""
    if title:
        show_prose(title)
    width = max(map(len, facts))
    for name, value in facts.items():
        first, *others = wrapped(str(value), console().width - width - 4)
        show(f"  {name:<{width}}  {first}", *(f"{'':<{width + 4}}{line}" for line in others))


def show_json(value: Any) -> None:
    """One JSON document on one line. Plain ASCII: whatever an event holds, it is an escape here."""
    print(json.dumps(value, default=_plain))  # noqa: T201


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)


@contextmanager
def progress(*, transfer: bool = False) -> Iterator["Progress"]:
    """A progress bar on stderr; silent where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), *(() if transfer else (MofNCompleteColumn(),)))
    shown_on = console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=shown_on, transient=True, disable=not sys.stderr.isatty()) as bar:
        yield bar


def count(number: int) -> str:
    return f"{number:,}"


def size(size_bytes: int) -> str:
    """Bytes as people read them: 512 B, 2.4 KiB, 21 MiB."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value, unit = float(size_bytes), "B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):  # noqa: B007 - the unit that the loop ends with is used
        value /= 1024
        if value < 1024:
            break
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"


def when(moment: datetime | None) -> str:
    """A time to the second, UTC."""
    return moment.strftime("%Y-%m-%d %H:%M:%S") if moment else "-"


def when_utc(moment: datetime | None) -> str:
    """The same where no heading says in which zone."""
    return f"{when(moment)} UTC" if moment else "-"


def age(moment: datetime) -> str:
    """How long ago, in the largest unit that fits: 5s, 3m, 2h, 14d."""
    seconds = max(int((datetime.now(UTC) - moment).total_seconds()), 0)
    unit, length = next((u for u in (("d", 86_400), ("h", 3600), ("m", 60)) if seconds >= u[1]), ("s", 1))
    return f"{seconds // length}{unit} ago"


def duration(span: timedelta) -> str:
    """As `policy set` takes it: 30d, 12h, 90m, 45s."""
    seconds = span.total_seconds()
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds and seconds % length == 0:
            return f"{int(seconds // length)}{unit}"
    return f"{seconds:g}s"
