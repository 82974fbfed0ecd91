"""Torture for the store: processes that are killed, disks that fail, files that rot, readers beside a writer.

    nursery.py    forks processes that have everything imported, so that a round takes a fraction of a second
    jobs.py       what runs in these processes: writing.py, looking.py, furniture.py, rounds.py
    truth.py      what a collection must hold, after what was acknowledged and what was under way
    kill.py, faults.py, damage.py, snapshots.py    the trials, with counts

The tests run them with small counts; `benchmarks/torture.py` with those of the long run.
"""
