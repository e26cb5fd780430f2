"""Runs side by side, in as many processes as there are cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from multiprocessing.sharedctypes import SynchronizedArray
from typing import TypeVar

_POLL_S = 0.1

T = TypeVar("T")

Job = Callable[[Callable[[], None]], T]
"""Something to run, given what is to be called for each request that has ended. It is sent to
another process, and so is what it returns."""
OnProgress = Callable[[int, int], None]
"""Number of a job, and how many of its requests have ended."""


def run_all(jobs: Sequence[Job[T]], on_progress: OnProgress) -> list[T]:
    """What each job returns, in order. `on_progress` is called some times a second. Jobs are begun
    in order, so that neighbours may share what a process keeps."""
    processes = min(len(jobs), os.cpu_count() or 1)
    if processes <= 1:
        return [_run_here(i, job, on_progress) for i, job in enumerate(jobs)]
    # Not forked: a progress bar has a thread, and a fork copies its locks.
    context = multiprocessing.get_context("spawn")
    ended = context.Array("q", len(jobs))
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_settle_in, initargs=(ended,)
    ) as pool:
        futures = [pool.submit(_run_there, i, job) for i, job in enumerate(jobs)]
        _watch(futures, ended, on_progress)
        return [future.result() for future in futures]


def _run_here(number: int, job: Job[T], on_progress: OnProgress) -> T:
    ended = 0

    def one_more() -> None:
        nonlocal ended
        ended += 1
        on_progress(number, ended)

    return job(one_more)


def _watch(
    futures: Sequence[Future[T]], ended: SynchronizedArray[int], on_progress: OnProgress
) -> None:
    """Tell of progress until all are done, or one has failed."""
    unfinished = set(futures)
    while unfinished:
        finished, unfinished = wait(unfinished, timeout=_POLL_S)
        for number, count in enumerate(ended[:]):
            on_progress(number, count)
        if any(future.exception() for future in finished):
            for future in unfinished:
                future.cancel()
            return


_ended: SynchronizedArray[int]
"""In a child: what it was started with."""


def _settle_in(ended: SynchronizedArray[int]) -> None:
    global _ended
    _ended = ended
    # Ctrl-C reaches the whole group; the parent says what there is to say.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """The pool's own processes wait for ever for a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_there(number: int, job: Job[T]) -> T:
    def one_more() -> None:
        _ended[number] += 1

    return job(one_more)
