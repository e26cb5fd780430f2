"""Engines that let go by themselves.

vLLM, SGLang and TensorRT-LLM abort a request when its HTTP connection is closed, which happens with
the gateway's, however that ends. None of them has a call that frees staged blocks: the decode
engine's notice does, or their own lease.
"""

from __future__ import annotations

from proto.transfers import Command, CommandReply, Outcome


class ByItself:
    """An `EngineHandoff` for engines that cannot be told anything."""

    async def abort(self, command: Command) -> CommandReply:
        del command
        return CommandReply(Outcome.DONE, "it aborts what nobody listens to")

    async def release(self, command: Command) -> CommandReply:
        del command
        return CommandReply(Outcome.BY_LEASE, "it has no call for that")

    async def replicate(self, command: Command) -> CommandReply:
        del command
        return CommandReply(Outcome.FAILED, "it has no call for that")
