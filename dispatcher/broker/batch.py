"""Send messages to the broker and follow each until it is confirmed, refused or given up."""

from __future__ import annotations

import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from dispatcher.broker.amqp import ClosedByBroker, Confirmed, Event, LoginRefused, PublishLink, Returned
from dispatcher.broker.outgoing import Outgoing
from dispatcher.broker.transport import LinkError, LinkTimeout
from dispatcher.errors import NotConfirmed, NotSent, PublishError, Unencodable, Unroutable

#: Messages sent and not yet confirmed. More does not make it faster, and on a lost connection all
#: of them are sent again.
WINDOW = 1000
#: Messages per write to the socket.
CHUNK = 100


class Batch:
    """Messages that are published together; `errors` has one entry per message, None for confirmed."""

    def __init__(self, ids: Sequence[str], outgoing: Callable[[int], Outgoing]) -> None:
        """Take the task ids, and what makes the message of an index; it may raise PublishError."""
        self._ids = ids
        self._outgoing = outgoing
        self.errors: list[PublishError | None] = [None] * len(ids)
        #: Indexes of messages that are neither confirmed nor refused, in their order.
        self.waiting: dict[int, None] = dict.fromkeys(range(len(ids)))
        self._perhaps_queued: set[int] = set()

    def run(self, link: PublishLink, deadline: float) -> None:
        """Send what waits and take the confirms; what the broker nacks still waits afterwards.

        Raises LinkError, a LinkTimeout too when half of the time passed without any confirm: a kept
        connection that the network forgot must leave some for a new one.
        """
        sent: OrderedDict[int, int] = OrderedDict()
        waiting_before = len(self.waiting)
        try:
            self._run(link, sent, deadline)
        except LinkError as exc:
            refused_at_once = isinstance(exc, ClosedByBroker) and len(self.waiting) == waiting_before
            if not refused_at_once:
                self._perhaps_queued.update(sent.values())
            raise

    def _run(self, link: PublishLink, sent: OrderedDict[int, int], deadline: float) -> None:
        to_send = deque(self.waiting)
        returned: set[str | None] = set()
        patience_s = (deadline - time.monotonic()) / 2
        stalled_at = time.monotonic() + patience_s
        while to_send or sent:
            if to_send and len(sent) < WINDOW:
                self._send(link, to_send, sent, min(deadline, stalled_at))
                if to_send and len(sent) < WINDOW:
                    continue
            if not sent:
                continue
            # A broker that takes nothing, and says so, keeps what it was sent for later: a new
            # connection would only add another copy.
            wait_until = deadline if link.blocked else min(deadline, stalled_at)
            events = link.receive(wait_until)
            if not events and time.monotonic() >= wait_until:
                raise LinkTimeout("no confirm from the broker")
            if events:
                stalled_at = time.monotonic() + patience_s
            for event in events:
                self._take(event, sent, returned)

    def refuse(self, closed: ClosedByBroker) -> None:
        """Give up what the broker will not take however often it is sent.

        A refused login is about all of it. 403 forbidden and 404 no exchange name the exchange, and
        perhaps the topic. 406 (such as an expiration beyond what the broker allows) names nothing; the
        tasks of a batch are made so that it cannot be about them.
        """
        exchange = re.search(r"exchange '([^']*)'", closed.text)
        topic = re.search(r"topic '([^']*)'", closed.text)
        whatever = isinstance(closed, LoginRefused) or (closed.code == 406 and len(self._ids) == 1)
        if not whatever and (closed.code not in (403, 404) or exchange is None):
            return
        for index in list(self.waiting):
            try:
                out = self._outgoing(index)
            except PublishError as exc:
                self._settle(index, exc, exc.__cause__)
                continue
            # The exchange without a name is called so where rights are meant.
            named = exchange is not None and exchange[1] == (out.exchange or "amq.default")
            if whatever or (named and (topic is None or topic[1] == out.routing_key)):
                self._settle(index, self._refusal(index, closed), closed)

    def _refusal(self, index: int, closed: ClosedByBroker) -> PublishError:
        task_id = self._ids[index]
        if index in self._perhaps_queued:
            # It was under way when an exchange went, or an earlier connection.
            return NotConfirmed(task_id, f"task {task_id} was not confirmed by the broker: {closed.text}")
        return Unroutable(task_id, f"task {task_id} was refused by the broker: {closed.text}")

    def leave(self, why: str) -> None:
        for index in list(self.waiting):
            self._settle(index, NotSent(self._ids[index], f"task {self._ids[index]} {why}"), None)

    def give_up(self, why: str, cause: Exception | None) -> None:
        for index in list(self.waiting):
            self._settle(index, NotConfirmed(self._ids[index], f"task {self._ids[index]} {why}"), cause)

    def _send(
        self, link: PublishLink, to_send: deque[int], sent: OrderedDict[int, int], deadline: float
    ) -> None:
        frames: list[bytes] = []
        while to_send and len(frames) < CHUNK and len(sent) < WINDOW:
            index = to_send.popleft()
            try:
                out = self._outgoing(index)
                frames.append(link.marshal(out))
            except PublishError as exc:
                self._settle(index, exc, exc.__cause__)
                continue
            except ValueError as exc:
                self._settle(index, Unencodable(self._ids[index], f"task {self._ids[index]}: {exc}"), exc)
                continue
            sent[link.last_tag + len(frames)] = index
        if frames:
            link.send(b"".join(frames), len(frames), deadline)

    def _take(self, event: Event, sent: OrderedDict[int, int], returned: set[str | None]) -> None:
        if isinstance(event, Returned):
            returned.add(event.correlation_id)
            return
        for index in _confirmed(event, sent):
            task_id = self._ids[index]
            if not event.ok:
                continue
            if returned and (task_id in returned or len(self._ids) == 1):
                out = self._outgoing(index)
                text = (
                    f"task {task_id} was returned by the broker: no queue is bound to exchange"
                    f" {out.exchange!r} with routing key {out.routing_key!r}"
                )
                self._settle(index, Unroutable(task_id, text), None)
            else:
                del self.waiting[index]

    def _settle(self, index: int, error: PublishError, cause: BaseException | None) -> None:
        error.__cause__ = cause
        self.errors[index] = error
        del self.waiting[index]


def _confirmed(event: Confirmed, sent: OrderedDict[int, int]) -> list[int]:
    """Remove what an event is about from the messages under way, and return their indexes."""
    if not event.multiple:
        return [sent.pop(event.tag)] if event.tag in sent else []
    indexes = []
    while sent and next(iter(sent)) <= event.tag:
        indexes.append(sent.popitem(last=False)[1])
    return indexes
