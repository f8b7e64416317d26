"""Copying a store into another, on SQLite or PostgreSQL either way: all that it holds, as it stands, positions included.

    run.py        what comes after what, and what is refused before anything is written
    records.py    sessions, tombstones, runs of prunes
    events.py     events, in the order of their positions
    equal.py      both stores side by side, at the end

Positions are kept, since they are the cursors of whoever reads the whole store. The store gives them, here too: the copy moves
its counter, to just below the position that the next event is to have. It does so only while no other writer is at work (in
SQLite's write transaction; on PostgreSQL with a lock that keeps appends out), and never to below an event that the target
holds, so that no position is given twice. Events go through the same triggers as everybody's.

On PostgreSQL each transaction writes to one session. So a batch of events is many of them, sent at once, and each event looks
whether the one before it is still the last of the store: who gets in between ends the copy, and nothing more is written.
"""
