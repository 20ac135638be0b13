"""Stages as jobs on pools: what a job is, how it is submitted and followed, and what runs at its place."""

from treadle.jobs.client import JobRef, cancel, logs, poll, pool_of, run_on_pool, settle, submit

__all__ = ["JobRef", "cancel", "logs", "poll", "pool_of", "run_on_pool", "settle", "submit"]
