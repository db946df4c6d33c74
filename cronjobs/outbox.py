"""Publish what backends left in the outbox, warn students whose labs end, and deliver what they are told."""

from __future__ import annotations

import logging
import os
from contextlib import closing
from typing import TYPE_CHECKING

from dispatcher.broker.publisher import Publisher
from dispatcher.errors import DispatcherError, InvalidSettings
from dispatcher.settings import ServerSettings, read_settings
from jobs.config.environment import StoreSettings, WebhookSettings
from jobs.database.lab_store import LabStore
from jobs.errors import JobError

if TYPE_CHECKING:
    from jobs.config.lifetimes import LifeSettings

#: Seconds that one sweep of the outbox goes on; the next begins a minute after it began.
OUTBOX_TIMEOUT_S = 40.0
#: Seconds that it then goes on to deliver notifications.
NOTIFY_TIMEOUT_S = 25.0

logger = logging.getLogger(__name__)


def sweep(*, dry_run: bool) -> None:
    """Publish what backends left in the outbox, and deliver notifications, or say what waits.

    Warnings of ends that come are made first. What cannot be warned of or delivered is not a failure of the
    sweep. Raises DispatcherError.
    """
    settings = read_settings(os.environ, ServerSettings.from_environment)
    try:
        _sweep_outbox(settings, dry_run=dry_run)
    finally:
        try:
            if not dry_run:
                _announce_ends(settings)
        finally:
            _sweep_notifications(settings, dry_run=dry_run)


def _sweep_outbox(settings: ServerSettings, *, dry_run: bool) -> None:
    if dry_run:
        _tell_what_waits(settings)
        return
    from dispatcher.outbox.relay import relay_due

    report = relay_due(settings, name="autolabs-outbox-sweep", timeout_s=OUTBOX_TIMEOUT_S)
    if report.database_error is not None:
        raise DispatcherError(report.database_error)
    if report.failed:
        first = next(iter(report.failed.values()))
        raise DispatcherError(f"{len(report.failed)} tasks were not published; the first: {first}")
    logger.info("outbox swept", extra={"action": "outbox_done", "published": len(report.published)})


def _tell_what_waits(settings: ServerSettings) -> None:
    from dispatcher.engine import open_engine
    from dispatcher.outbox import relay

    with open_engine(settings.database_url, application_name="autolabs-outbox-sweep") as engine:
        for task in relay.waiting(engine):
            extra = {"action": "would_publish", "task_id": task.task_id, "due": task.due}
            logger.info("task %s waits for %.0f s", task.task_name, task.age_s, extra=extra)


def _announce_ends(settings: ServerSettings) -> None:
    from jobs.database.due_rows import announce_ends

    with closing(LabStore(settings.database_url, application_name="autolabs-warnings")) as labs:
        try:
            announce_ends(labs, _life_settings())
        except JobError as exc:
            logger.warning("students are not warned: %s", exc, extra={"action": "warnings_failed"})


def _life_settings() -> LifeSettings:
    """Return the platform's settings, or the defaults: one more warning does less harm than none."""
    from jobs.config.lifetimes import LifeSettings
    from jobs.config.objectstore import ObjectStore
    from jobs.config.stored import Configs

    try:
        store = ObjectStore(read_settings(os.environ, StoreSettings.from_environment))
        return Configs(store).life_settings()
    except (InvalidSettings, JobError) as exc:
        extra = {"action": "life_settings_unknown"}
        logger.warning(
            "settings/lab-life.yaml cannot be read, the defaults count for warnings: %s", exc, extra=extra
        )
        return LifeSettings()


def _sweep_notifications(settings: ServerSettings, *, dry_run: bool) -> None:
    from jobs.database.notifications import waiting
    from jobs.notify.notifications import Notifier
    from jobs.notify.notifications import sweep as deliver

    webhook = read_settings(os.environ, WebhookSettings.from_environment)
    with (
        closing(LabStore(settings.database_url, application_name="autolabs-notifications")) as labs,
        closing(Publisher(settings.broker, name="autolabs-notifications")) as publisher,
    ):
        try:
            if dry_run:
                for found in waiting(labs):
                    named = {"action": "would_notify", "notification": found.id, "told": found.told}
                    logger.info("%s is not told yet, for %.0f s", found.told, found.age_s, extra=named)
                return
            delivered, failed = deliver(labs, Notifier(publisher, webhook), timeout_s=NOTIFY_TIMEOUT_S)
            extra = {"action": "notifications_done", "delivered": delivered, "failed": failed}
            logger.info("notifications swept", extra=extra)
        except JobError as exc:
            logger.warning("notifications wait: %s", exc, extra={"action": "notifications_failed"})
