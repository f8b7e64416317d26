"""The checksum of an event, which shows damage that SQLite does not notice: a flipped bit inside of a row, a wrong row.

    checksum = CRC-32 of its texts + 3 * seq + 5 * position + 7 * bytes_before + 11 * occurred_at + 13 * recorded_at
               + the store's number

The writer computes the CRC; the store's numbers, which are only known inside of the statement that appends, are added there.
A change of up to 32 neighbouring bits in the texts is always seen, and so is one of a number; any other with a probability of
all but 1 in 2^32. And so is a row that stands in another one's place, or came in with another store's write-ahead log. It
proves damage, not malice: who can write the file can write a checksum.

Events of a store before schema 0003, or written with a plain SQL shell, have none: that their columns hold what they should is
all that is checked.
"""

from collections.abc import Sequence
from typing import Any, Final
from zlib import crc32

from sqlalchemy import Integer, literal_column

from aegis_store.record_copy import STORE_NUMBER_SQL

STORE_NUMBER: Final = literal_column(STORE_NUMBER_SQL, Integer).label("store_number")

# The greater of the two, as SQLite takes it: INSERT OR FAIL that fails at its second row leaves sqlite_sequence behind.
LAST_POSITION_SQL: Final = (
    "max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'event'), 0), coalesce((SELECT max(position) FROM event), 0))"
)
"""The highest position that was ever given; 0 before the first event."""

LAST_POSITION_POSTGRESQL: Final = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM event_position"
"""The same there."""

NEXT_SUM_SQL: Final = f":checksum + 3 * (last_seq + 1) + 5 * ({LAST_POSITION_SQL} + 1) + 7 * total_bytes + {STORE_NUMBER_SQL}"
"""The checksum of a session's next event, in a statement over the session's row that gives it the next position."""

_NONE: Final = "\1"


def content_sum(
    session_id: str,
    type_: str,
    payload: bytes,
    occurred_us: int,
    recorded_us: int,
    event_id: str | None,
    run_id: str | None,
    payload_ref: str | None,
) -> int:
    """The part that does not depend on the place; `payload` as it is stored. Ids hold no control characters."""
    if event_id is None and run_id is None and payload_ref is None:  # as most have it, and a page has hundreds of them
        head = session_id + "\0" + type_
    else:
        head = "\0".join((session_id, type_, *(_NONE if text is None else text for text in (event_id, run_id, payload_ref))))
    return crc32(payload, crc32(head.encode())) + 11 * occurred_us + 13 * recorded_us


def row_sum(session_id: str, row: Sequence[Any]) -> Any:
    """What the checksum, the last of these columns, must be. None where one of them holds what is never written.

    `row`: seq, position, type, payload (its bytes), occurred_at, recorded_at, event_id, run_id, payload_ref, bytes_before,
    the store's number, checksum.
    """
    seq, position, type_, payload, occurred_us, recorded_us, event_id, run_id, payload_ref, bytes_before, number, _ = row
    try:
        content = content_sum(session_id, type_, payload, occurred_us, recorded_us, event_id, run_id, payload_ref)
        return content + 3 * seq + 5 * position + 7 * bytes_before + number
    except TypeError:
        return None


def has_columns_in_place(row: Sequence[Any]) -> bool:
    """Of a row without a checksum: whether its columns hold what they should. One that damage has shifted has lost its last.

    `row` as for `row_sum`. Wherever a column is dropped, another type comes to stand in one of those after it.
    """
    seq, position, type_, payload, occurred_us, recorded_us, event_id, run_id, payload_ref, bytes_before, _, _ = row
    numbers, texts = (seq, position, occurred_us, recorded_us, bytes_before), (event_id, run_id, payload_ref)
    return (
        isinstance(type_, str)
        and isinstance(payload, bytes)
        and all(isinstance(number, int) for number in numbers)
        and all(text is None or isinstance(text, str) for text in texts)
    )


SUMMED: Final = ("seq", "position", "type", "payload", "occurred_at", "recorded_at", "event_id", "run_id", "payload_ref")
"""The columns with which such a row begins; `bytes_before`, `STORE_NUMBER` and `checksum` follow."""


def event_is_intact(session_id: str, row: Any) -> bool:
    """Whether a row of the table `event`, read together with `STORE_NUMBER`, is what was written, as far as one can tell."""
    columns = summed_of(row)
    return has_columns_in_place(columns) if row.checksum is None else row.checksum == row_sum(session_id, columns)


def summed_of(row: Any) -> list[Any]:
    """The columns that `row_sum` takes of a row of the table `event`, read together with `STORE_NUMBER`."""
    columns = [getattr(row, name) for name in (*SUMMED, "bytes_before", "store_number", "checksum")]
    columns[3] = columns[3].encode() if isinstance(columns[3], str) else None
    return columns
