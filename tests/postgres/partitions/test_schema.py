"""What tests/postgres/test_schema.py says of any writer, in partitions."""

from tests.postgres import test_schema
from tests.postgres.test_schema import shell as shell

_OF_ANY_WRITER = (
    "test_the_cap_holds",
    "test_what_would_break",
    "test_an_event_id_stands",
    "test_raising_first_seq",
    "test_four_writers",
    "test_a_lower_cap_waits",
    "test_the_removal",
)
globals().update({name: test for name, test in vars(test_schema).items() if name.startswith(_OF_ANY_WRITER)})
