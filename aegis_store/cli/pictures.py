"""Pictures of numbers: bars, sparklines, spans of time. Said once, as panels, and drawn here for terminals; `page` draws the
same for browsers.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from aegis_store.cli.terminal import fitted, printable, wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Kind = Literal["plain", "full", "gone"]
"""What is drawn: as it should be; too much; what is no longer there."""

_TWO_COLUMNS_FROM: Final = 120
_BETWEEN_COLUMNS: Final = 4
_LONGEST_BAR: Final = 48
_SHORTEST_BAR: Final = 6
_TIME: Final = len("2026-11-25 12:00:00")
_TABLE_FROM: Final = 3 * _TIME
_STYLES: Final = {"plain": "cyan", "full": "red", "gone": "yellow"}


@dataclass(frozen=True, slots=True)
class Fact:
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """`part` (0 to 1) of something. `of_all`: the rest is shown as well."""

    name: str
    part: float
    text: str
    of_all: bool = False
    kind: Kind = "plain"


@dataclass(frozen=True, slots=True)
class Spark:
    """Numbers in the order of time, the largest as high as can be."""

    name: str
    counts: Sequence[int]
    text: str


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the time that the panel shows, which is from 0 to 1; a moment, where both are the same."""

    name: str
    start: float
    end: float
    text: str
    kind: Kind = "plain"


@dataclass(frozen=True, slots=True)
class Cells:
    """A line of a table; the last cell takes the room that is left."""

    cells: tuple[str, ...]


Row = Fact | Bar | Spark | Span | Cells


@dataclass(frozen=True, slots=True)
class Panel:
    """Some rows under a title. `is_wide`: it is not to stand beside another."""

    title: str
    rows: list[Row] = field(default_factory=list)
    is_wide: bool = False


@dataclass(frozen=True, slots=True)
class Signs:
    """What bars and the like are made of: eighths of a bar, heights of a sparkline (the first: none), tracks."""

    eighths: str
    heights: str
    track: str
    gone: str
    moment: str


UNICODE: Final = Signs(" ▏▎▍▌▋▊▉█", "·▁▂▃▄▅▆▇█", "░", "░", "│")
ASCII: Final = Signs(" #", ".:-=+*#%@", ".", "-", "|")


class Painter:
    """Draws panels in lines of `width` columns, with signs and letters that the terminal can show."""

    def __init__(self, console: "Console") -> None:
        is_utf = console.encoding.startswith("utf")
        self.width = console.width
        self._signs = UNICODE if is_utf and not _is_plain() else ASCII
        self._has_all_letters = is_utf

    def lines(self, panels: Sequence[Panel]) -> "list[Text]":
        """All of them, one below the other; on a wide terminal in two columns."""
        from rich.text import Text

        found: list[Text] = []
        beside: list[Panel] = []
        for panel in [*panels, None]:
            if panel is not None and not panel.is_wide and self.width >= _TWO_COLUMNS_FROM:
                beside.append(panel)
                continue
            blocks = [self._in_columns(beside)] if beside else []
            beside = []
            if panel is not None:
                blocks.append(list(self._panel(panel, self.width)))
            for block in blocks:
                found += [Text(), *block] if found else block
        return found

    def _in_columns(self, panels: "list[Panel]") -> "list[Text]":
        from itertools import zip_longest

        from rich.text import Text

        width = (self.width - _BETWEEN_COLUMNS) // 2
        blocks = [list(self._panel(panel, width)) for panel in panels]
        left: list[Text] = []
        right: list[Text] = []
        half = sum(len(block) + 1 for block in blocks) / 2
        for block in blocks:
            column = right if right or (left and len(left) + len(block) / 2 > half) else left
            column += [Text(), *block] if column else block
        joined = []
        for one, other in zip_longest(left, right, fillvalue=Text()):
            line = one.copy()
            if other.plain:
                line.pad_right(width + _BETWEEN_COLUMNS - line.cell_len)
            joined.append(line.append_text(other))
        return joined

    def _panel(self, panel: Panel, width: int) -> "Iterator[Text]":
        from rich.text import Text

        for line in wrapped(self._letters(panel.title), width):
            yield Text(line, "bold")
        names = [self._letters(row.name) for row in panel.rows if not isinstance(row, Cells)]
        texts = [self._letters(row.text) for row in panel.rows if isinstance(row, Bar | Span)]
        room = _Room(width, names, texts, self._fitted)
        cells = [tuple(map(self._letters, row.cells)) for row in panel.rows if isinstance(row, Cells)]
        for row in panel.rows:
            if isinstance(row, Fact):
                yield from self._fact(row, room)
            elif isinstance(row, Spark):
                yield from self._spark(row, room)
            elif isinstance(row, Bar | Span):
                yield from self._drawn(row, room)
        yield from (Text(line) for line in _table(cells, width, self._fitted))

    def _letters(self, text: str) -> str:
        """The text as this terminal can show it, on one line."""
        shown = printable(text)
        return shown if self._has_all_letters else shown.encode("ascii", "backslashreplace").decode()

    def _fitted(self, text: str, width: int) -> str:
        """One line in so many columns; where it is cut off, with an ellipsis that the terminal can show."""
        shown = fitted(text, width)
        return shown if self._has_all_letters else shown.replace("…", ".")

    def _fact(self, row: Fact, room: "_Room") -> "Iterator[Text]":
        from rich.text import Text

        first, *others = wrapped(self._letters(row.text), room.beside_name) or [""]
        yield Text(f"{room.named(self._letters(row.name))}{first}")
        yield from (Text(f"{room.named('')}{line}") for line in others)

    def _spark(self, row: Spark, room: "_Room") -> "Iterator[Text]":
        from rich.text import Text

        yield from self._fact(Fact(row.name, row.text), room)
        yield Text(room.named("")).append(sparkline(row.counts, room.beside_name, self._signs), "green")

    def _drawn(self, row: Bar | Span, room: "_Room") -> "Iterator[Text]":
        from rich.text import Text

        text = self._letters(row.text)
        if not room.bar:
            yield from self._fact(Fact(row.name, row.text), room)
            return
        line = Text(room.named(self._letters(row.name)))
        drawn = bar(row.part, room.bar, self._signs) if isinstance(row, Bar) else span(row, room.bar, self._signs)
        line.append(drawn, _STYLES[row.kind])
        rest = room.bar - len(drawn)
        line.append((self._signs.track if isinstance(row, Bar) and row.of_all else " ") * rest, "bright_black")
        yield line.append(f"  {self._fitted(text, room.text).rstrip()}")


class _Room:
    """How the columns of a panel share a line: names, drawings, texts."""

    def __init__(self, width: int, names: list[str], texts: list[str], fit: Callable[[str, int], str]) -> None:
        from rich.cells import cell_len

        self._fit = fit
        self._name = min(max(map(cell_len, names), default=0), max(width // 2, 8))
        self.beside_name = max(width - self._name - 4, 1)
        self.text = min(max(map(cell_len, texts), default=0), max(self.beside_name - _SHORTEST_BAR - 2, 1))
        self.bar = min(self.beside_name - self.text - 2, _LONGEST_BAR)
        if self.bar < _SHORTEST_BAR or self.text < max(map(cell_len, texts), default=0):
            self.bar = 0  # the words say it too

    def named(self, name: str) -> str:
        return f"  {self._fit(name, self._name)}  "


def _table(rows: list[tuple[str, ...]], width: int, fit: Callable[[str, int], str]) -> Iterator[str]:
    """Lines of a table, whose first column is for numbers. No time is cut off: on a narrow terminal a row takes two lines."""
    from rich.cells import cell_len

    if width < _TABLE_FROM:
        for head in rows:
            yield fit(f"  {'  '.join(head[:2])}", width).rstrip()
            yield fit(f"    {'  '.join(head[2:])}", width).rstrip()
        return
    columns = [min(max(map(cell_len, column)), max(width // 4, _TIME)) for column in list(zip(*rows, strict=True))[:-1]]
    left = max(width - 2 - sum(columns) - 2 * len(columns), 0)
    for number, *others, last in rows:
        parts = [f"{number:>{columns[0]}}", *map(fit, others, columns[1:]), fit(last, left)]
        yield fit("  " + "  ".join(parts), width).rstrip()


def _is_plain() -> bool:
    """Whether the terminal, or the user, asks for ASCII. (In the locale C Python itself would write UTF-8 all the same.)"""
    locale = os.environ.get("LC_ALL") or os.environ.get("LANG")
    return os.environ.get("TERM") in ("dumb", "unknown") or locale in ("C", "POSIX")


def bar(part: float, width: int, signs: Signs) -> str:
    """So much of `width` columns, in whole signs and the last one in part. Something is never nothing."""
    steps = len(signs.eighths) - 1
    filled = max(round(min(max(part, 0), 1) * width * steps), 1 if part > 0 else 0)
    whole, over = divmod(filled, steps)
    return signs.eighths[-1] * whole + (signs.eighths[over] if over else "")


def sparkline(counts: Sequence[int], width: int, signs: Signs) -> str:
    """A sign for each number; for the sum of several neighbours where there is no room for all."""
    together = -(-len(counts) // max(width, 1))
    sums = [sum(counts[start : start + together]) for start in range(0, len(counts), together)]
    most, levels = max(sums, default=0), len(signs.heights) - 1
    return "".join(signs.heights[-(-count * levels // most) if count else 0] for count in sums)


def span(row: Span, width: int, signs: Signs) -> str:
    """The stretch in its place on a line of `width` columns."""
    start, end = (min(max(int(place * width), 0), width - 1) for place in (row.start, row.end))
    if row.start == row.end:
        return " " * start + signs.moment
    return " " * start + (signs.gone if row.kind == "gone" else signs.eighths[-1]) * (end - start + 1)
