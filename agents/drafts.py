"""Speculation of one engine, watched: told as metrics, and switched, or tried, where the engine
allows it."""

from __future__ import annotations

import logging

from agents.adapters.protocol import DraftSwitch, EngineAway, EngineUnfit, EngineWork
from agents.canary import Canary, CanaryPolicy, Stage
from agents.metrics import AgentMetrics
from agents.speculation import Advice, DraftPolicy, DraftWatch
from proto.load import StepSums

log = logging.getLogger(__name__)


class Drafts:
    """Takes every window's sums. Without a switch it only advises, in the log and as a metric."""

    def __init__(
        self,
        policy: DraftPolicy,
        trial: CanaryPolicy,
        switch: DraftSwitch | None,
        metrics: AgentMetrics,
    ) -> None:
        self._watch = DraftWatch(policy)
        if trial.arm_s and switch is None:
            log.warning("drafts cannot be tried: this engine cannot be told to go without")
            trial = CanaryPolicy()
        self._canary = Canary(trial)
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
        metrics.watch("drafts_wanted", "1 while drafts are worth it.", lambda: float(self.wanted))
        canary = self._canary
        metrics.watch(
            "draft_trial_ttft_ratio",
            "Time to first token with drafts by that without, in a trial; 1 before there was one.",
            lambda: canary.ttft_ratio,
        )
        metrics.watch(
            "draft_trial_tpot_ratio",
            "Time per output token with drafts by that without, in a trial.",
            lambda: canary.tpot_ratio,
        )
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

    @property
    def wanted(self) -> bool:
        """The engine should draft now."""
        return self._watch.wanted and self._canary.wanted

    async def take(self, sums: StepSums, work: EngineWork | None, now_s: float) -> None:
        """Count a window, and do or say what follows; `work` is since the engine's start."""
        self._metrics.drafted(sums)
        self._speculates |= sums.verifications > 0
        advice = self._watch.observe(sums, now_s)
        if advice is not None:
            self._tell(advice)
        if self._speculates and work is not None:
            await self._try(work, now_s)
        # An engine that was away, or has restarted, does not know what it was told.
        drafting = sums.verifications > 0
        if self._speculates and sums.decode_batch and drafting != self.wanted:
            await self._set(on=self.wanted)

    async def _try(self, work: EngineWork, now_s: float) -> None:
        """Go on with a trial, if there is one."""
        canary = self._canary
        if canary.stage is not Stage.RUNNING:
            return
        if not self._watch.wanted:
            canary.pause()
        elif canary.observe(work, now_s):
            await self._compare()
            await self._set(on=self.wanted)
            if canary.stage is not Stage.RUNNING:
                self._tell_trial()

    async def _compare(self) -> None:
        assert self._switch is not None
        try:
            self._canary.heard(await self._switch.say())
        except (EngineAway, EngineUnfit) as error:
            log.warning("the engine was not asked whether drafts change its words: %s", error)

    def _tell_trial(self) -> None:
        canary = self._canary
        kept = canary.stage is Stage.KEPT
        self._metrics.switches.labels("on" if kept else "off", canary.stage).inc()
        log.log(
            logging.INFO if kept else logging.WARNING,
            "drafts were tried and %s (%s): time to first token %.2f and time per token %.2f times"
            " that without",
            *("kept" if kept else "given up", canary.stage),
            *(canary.ttft_ratio, canary.tpot_ratio),
        )

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
