"""Speculation of one engine, watched: told as metrics, and switched where the engine allows it."""

from __future__ import annotations

import logging

from agents.adapters.protocol import DraftSwitch, EngineAway, EngineUnfit
from agents.metrics import AgentMetrics
from agents.speculation import Advice, DraftPolicy, DraftWatch
from proto.load import StepSums

log = logging.getLogger(__name__)


class Drafts:
    """Takes every window's sums. Without a switch it only advises, in the log and as a metric."""

    def __init__(
        self, policy: DraftPolicy, switch: DraftSwitch | None, metrics: AgentMetrics
    ) -> None:
        self._watch = DraftWatch(policy)
        self._switch = switch
        self._metrics = metrics
        self._speculates = False
        """The engine has drafted at least once."""
        watch = self._watch
        metrics.watch(
            "draft_acceptance", "Share of drafts kept, lately.", lambda: watch.acceptance_rate
        )
        metrics.watch(
            "accept_length", "Tokens of a verification, lately.", lambda: watch.accept_length
        )
        metrics.watch("drafts_wanted", "1 while drafts are worth it.", lambda: float(watch.wanted))
        metrics.watch(
            "expected_speedup",
            "Of decoding, by formula; 1 before the first draft.",
            lambda: watch.expected_speedup or 1.0,
        )
        metrics.watch(
            "measured_speedup",
            "Of decoding, at the present batch; not a number before it was measured.",
            lambda: watch.measured_speedup or float("nan"),
        )

    async def take(self, sums: StepSums, now_s: float) -> None:
        """Count a window, and do or say what follows from it."""
        self._metrics.drafted(sums)
        self._speculates |= sums.verifications > 0
        advice = self._watch.observe(sums, now_s)
        if advice is not None:
            self._tell(advice)
        # An engine that was away, or has restarted, does not know what it was told.
        drafting = sums.verifications > 0
        if self._speculates and sums.decode_batch and drafting != self._watch.wanted:
            await self._set(on=self._watch.wanted)

    def _tell(self, advice: Advice) -> None:
        self._metrics.switches.labels("on" if advice.on else "off", advice.reason).inc()
        watch = self._watch
        log.log(
            logging.INFO if advice.on else logging.WARNING,
            "speculation should be %s (%s): %.0f %% of drafts are kept, %.2f tokens a verification",
            *("on" if advice.on else "off", advice.reason),
            *(100 * watch.acceptance_rate, watch.accept_length),
        )

    async def _set(self, *, on: bool) -> None:
        if self._switch is None:
            return
        try:
            await self._switch.speculate(on=on)
        except (EngineAway, EngineUnfit) as error:
            log.warning("the engine was not told to speculate or not: %s", error)
