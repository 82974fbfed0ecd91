"""Torture tests of the store: killed processes, failing disks, damaged files, readers next to a writer.

    fork_server.py       forks processes that have everything imported, so that a trial takes a fraction of a second
    jobs.py              the functions that run in them: writer_jobs, inspect_job, damage_jobs, snapshot_jobs
    expected_state.py    what a collection must hold, given the acknowledged and the interrupted changes
    kill.py, faults.py, damage.py, snapshots.py    the trials

The tests run them with small counts, `benchmarks/torture.py` with large ones.
"""
