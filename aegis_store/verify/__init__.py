"""Reading a store to its end and telling what in it is not what was written.

run        the order of the work, and the report
structure  what SQLite knows: pages, indexes, references; tables, triggers and views as this library makes them
content    what only we know: ranges, counters, order, JSON, checksums, the policy
"""
