"""What tests of notifications look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dispatcher.broker import topology
from dispatcher.broker.publisher import Publisher
from jobs.config.environment import WebhookSettings
from jobs.notify.notifications import Notifier
from tests.support.broker.rabbitmq import Broker
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs
from tests.support.http_server import Answer
from tests.support.webhook import SECRET, Receiver

#: Fails before the cluster is asked for anything.
NOT_ALLOWED = {"docker_image": "registry.example/other:1"}
EVENTS = "test-events"
PROBLEMS = {
    "500": lambda _request: Answer(500, {"error": "password=hunter2"}),
    "redirect": lambda _request: Answer(302, {}),
}


@dataclass
class Platform:
    """What the tests look at."""

    broker: Broker
    database: Database
    webhook: Receiver

    def bind_events(self, routing_key: str = "lab.#") -> None:
        channel = self.broker.channel()
        channel.queue_declare(EVENTS, durable=True)
        channel.queue_bind(EVENTS, topology.EVENTS_EXCHANGE, routing_key)

    def row(self) -> dict[str, Any]:
        (row,) = self.database.rows("SELECT * FROM notifications")
        return row

    def is_done(self) -> bool:
        row = self.row()
        return row["published_at"] is not None and row["webhook_at"] is not None

    def make_due(self) -> None:
        self.database.rows("UPDATE notifications SET next_attempt_at = now()")

    def add_notification(self, lab: int) -> None:
        statement = (
            "INSERT INTO notifications (lab_instance_id, cause, told, error_category, message, task_id)"
            " VALUES (%s, 'program_ends', 'teacher', 'PERMANENT_IMAGE_ERROR', 'It ends.', 't-1')"
        )
        self.database.rows(statement, lab)


def make_notifier(publisher: Publisher, webhook: Receiver) -> Notifier:
    return Notifier(publisher, WebhookSettings(webhook.url, (b"secret of the tests, 32 bytes ok",)))


def webhook_environ(webhook: Receiver) -> dict[str, str]:
    return {"NOTIFY_WEBHOOK_URL": webhook.url, "NOTIFY_WEBHOOK_SECRET": SECRET}


def publish_failing(broker: Broker, lab: int) -> str:
    return broker.publish_task(kwargs=create_kwargs(lab_instance_id=lab, **NOT_ALLOWED))
