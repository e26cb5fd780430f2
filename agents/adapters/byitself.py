"""Engines that let go by themselves.

vLLM, SGLang and TensorRT-LLM abort a request when its HTTP connection is closed, which happens with
the gateway's, however that ends. None of them has a call that frees staged blocks: the decode
engine's notice does, or their own lease.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from agents.adapters.protocol import EngineHash
from proto.transfers import Command, CommandReply, Outcome


class ByItself:
    """An `EngineHandoff` for engines that can be told to stop, at most: by `cancel`."""

    def __init__(self, cancel: Callable[[str], Awaitable[bool]]) -> None:
        self._cancel = cancel

    async def abort(self, command: Command) -> CommandReply:
        told = await self._cancel(command.request)
        return CommandReply(Outcome.DONE, "" if told else "it aborts what nobody listens to")

    async def release(self, command: Command) -> CommandReply:
        del command
        return CommandReply(Outcome.BY_LEASE, "it has no call for that")

    async def replicate(self, command: Command) -> CommandReply:
        del command
        return CommandReply(Outcome.FAILED, "it has no call for that")

    async def offer(self, command: Command, block: EngineHash) -> CommandReply:
        del command, block
        return CommandReply(Outcome.FAILED, "it has no call for that")

    async def latest(self, most: int) -> Sequence[EngineHash]:
        del most
        return ()
