"""Policies side by side: one process each, as many at once as there are cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from multiprocessing.sharedctypes import SynchronizedArray

from controlplane.replay.report import Run
from controlplane.replay.simulate import Scenario, simulate

_POLL_S = 0.1

OnProgress = Callable[[str, int], None]
"""Policy, and how many of its requests have ended."""


def run_policies(scenario: Scenario, policies: Sequence[str], on_progress: OnProgress) -> list[Run]:
    """A run for each policy, in order. `on_progress` is called some times a second."""
    processes = min(len(policies), os.cpu_count() or 1)
    if processes == 1:
        return [_run_here(scenario, policy, on_progress) for policy in policies]
    # Not forked: a progress bar has a thread, and a fork copies its locks.
    context = multiprocessing.get_context("spawn")
    ended = context.Array("q", len(policies))
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_settle_in, initargs=(scenario, ended)
    ) as pool:
        futures = [pool.submit(_run_there, i, policy) for i, policy in enumerate(policies)]
        _watch(futures, policies, ended, on_progress)
        return [future.result() for future in futures]


def _run_here(scenario: Scenario, policy: str, on_progress: OnProgress) -> Run:
    ended = 0

    def one_more() -> None:
        nonlocal ended
        ended += 1
        on_progress(policy, ended)

    return simulate(scenario, policy, one_more)


def _watch(
    futures: Sequence[Future[Run]],
    policies: Sequence[str],
    ended: SynchronizedArray[int],
    on_progress: OnProgress,
) -> None:
    """Tell of progress until all are done, or one has failed."""
    unfinished = set(futures)
    while unfinished:
        finished, unfinished = wait(unfinished, timeout=_POLL_S)
        for policy, count in zip(policies, ended[:], strict=True):
            on_progress(policy, count)
        if any(future.exception() for future in finished):
            for future in unfinished:
                future.cancel()
            return


_scenario: Scenario
_ended: SynchronizedArray[int]
"""In a child: what it was started with."""


def _settle_in(scenario: Scenario, ended: SynchronizedArray[int]) -> None:
    global _scenario, _ended
    _scenario, _ended = scenario, ended
    # Ctrl-C reaches the whole group; the parent says what there is to say.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """The pool's own processes wait for ever for a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_there(slot: int, policy: str) -> Run:
    def one_more() -> None:
        _ended[slot] += 1

    return simulate(_scenario, policy, one_more)
