"""Questions and their answers, which all come on one subscription.

nats-py can do this, too; it draws the name of each question from the system's randomness, answers
it through a queue and a task, and waits in a way that costs as much again.
"""

from __future__ import annotations

import asyncio
from itertools import count

from nats.js.api import Header

from proto.wire.errors import BusTimeout, NoResponder
from proto.wire.nats.client import SturdyClient
from proto.wire.ports import Headers, Message

NO_RESPONDERS = "503"


class Answers:
    """What one client has asked and is to be told yet."""

    def __init__(self, client: SturdyClient) -> None:
        self._client = client
        self._inbox = ""
        self._awaited: dict[str, asyncio.Future[Message]] = {}
        self._numbers = count(1)

    async def ask(self, subject: str, data: bytes, timeout_s: float, headers: Headers) -> Message:
        """The first answer, whatever it says. Raises `NoResponder`, `BusTimeout`, and what
        publishing does."""
        if not self._inbox:
            await self._listen()
        loop = asyncio.get_running_loop()
        inbox = f"{self._inbox}.{next(self._numbers)}"
        answer: asyncio.Future[Message] = loop.create_future()
        self._awaited[inbox] = answer
        late = BusTimeout(f"no answer on {subject} within {timeout_s:g} s")
        deadline = loop.call_later(timeout_s, _give_up, answer, late)
        try:
            self._client.post(subject, data, inbox, headers)
            told = await answer
        finally:
            deadline.cancel()
            del self._awaited[inbox]
        if told.headers and told.headers.get(Header.STATUS) == NO_RESPONDERS:
            raise NoResponder(f"nobody serves {subject} now")
        return told

    async def _listen(self) -> None:
        inbox = self._client.new_inbox()
        await self._client.hear(f"{inbox}.*", "", self._take)
        self._inbox = inbox

    def _take(self, message: Message, reply: str) -> None:
        answer = self._awaited.get(message.subject)
        if answer is not None and not answer.done():
            answer.set_result(message)


def _give_up(answer: asyncio.Future[Message], late: BusTimeout) -> None:
    if not answer.done():
        answer.set_exception(late)
