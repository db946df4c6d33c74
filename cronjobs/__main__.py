"""Command line of the CronJobs: `python -m cronjobs cleanup`, or `outbox`.

Exit codes: 0 done, 69 the database or the broker is not reachable or a task could not be published,
78 the settings are wrong.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from dispatcher.errors import DispatcherError, InvalidSettings
from dispatcher.publisher import Publisher
from dispatcher.settings import ServerSettings, read_settings
from jobs import logs
from jobs.cleanup_labs import cleanup_expired, find_expired
from jobs.errors import JobError
from jobs.labs import LabStore
from jobs.settings import WebhookSettings

#: Seconds that one sweep of the outbox goes on; the next begins a minute after it began.
OUTBOX_TIMEOUT_S = 40.0
#: Seconds that it then goes on to deliver notifications.
NOTIFY_TIMEOUT_S = 25.0

EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78

logger = logging.getLogger("cronjobs")


def cleanup(settings: ServerSettings, *, dry_run: bool) -> None:
    """Publish a delete for every lab past its time, or only say which."""
    labs = LabStore(settings.database_url, application_name="autolabs-cleanup")
    if dry_run:
        for lab in find_expired(labs):
            extra = {"action": "would_delete", "lab_instance_id": lab.id, "pod": lab.k8s_pod_name}
            logger.info("lab %d is expired", lab.id, extra=extra)
        return
    publisher = Publisher(settings.broker, name="autolabs-cleanup")
    count = cleanup_expired(labs, publisher)
    publisher.close()
    labs.close()
    logger.info("cleanup done", extra={"action": "cleanup_done", "deletes_published": count})


def outbox(settings: ServerSettings, *, dry_run: bool) -> None:
    """Publish what backends left in the outbox, and deliver notifications of failed labs, or say what waits.

    A notification that cannot be delivered is not a failure of the sweep.
    """
    try:
        _sweep_outbox(settings, dry_run=dry_run)
    finally:
        _sweep_notifications(settings, dry_run=dry_run)


def _sweep_outbox(settings: ServerSettings, *, dry_run: bool) -> None:
    from dispatcher import outbox_relay
    from dispatcher.engine import make_engine

    engine = make_engine(settings.database_url, application_name="autolabs-outbox-sweep")
    if dry_run:
        for task in outbox_relay.waiting(engine):
            extra = {"action": "would_publish", "task_id": task.task_id, "due": task.due}
            logger.info("task %s waits for %.0f s", task.task_name, task.age_s, extra=extra)
        return
    publisher = Publisher(settings.broker, name="autolabs-outbox-sweep")
    report = outbox_relay.relay_once(
        engine,
        publisher,
        timeout_s=OUTBOX_TIMEOUT_S,
        publish_timeout_s=settings.broker.publish_timeout_s,
    )
    publisher.close()
    engine.dispose()
    if report.database_error is not None:
        raise DispatcherError(report.database_error)
    if report.failed:
        first = next(iter(report.failed.values()))
        raise DispatcherError(f"{len(report.failed)} tasks were not published; the first: {first}")
    logger.info("outbox swept", extra={"action": "outbox_done", "published": len(report.published)})


def _sweep_notifications(settings: ServerSettings, *, dry_run: bool) -> None:
    from jobs import notifications
    from jobs.courier import Courier

    webhook = read_settings(os.environ, WebhookSettings.from_environment)
    labs = LabStore(settings.database_url, application_name="autolabs-notifications")
    publisher = Publisher(settings.broker, name="autolabs-notifications")
    try:
        if dry_run:
            for found in notifications.waiting(labs):
                named = {"action": "would_notify", "notification": found.id, "told": found.told}
                logger.info("%s is not told yet, for %.0f s", found.told, found.age_s, extra=named)
            return
        courier = Courier(publisher, webhook)
        delivered, failed = notifications.sweep(labs, courier, timeout_s=NOTIFY_TIMEOUT_S)
        extra = {"action": "notifications_done", "delivered": delivered, "failed": failed}
        logger.info("notifications swept", extra=extra)
    except JobError as exc:
        logger.warning("notifications wait: %s", exc, extra={"action": "notifications_failed"})
    finally:
        publisher.close()
        labs.close()


#: Name -> what runs, and what its --dry-run does.
_TASKS = {
    "cleanup": (cleanup, "only print what would be deleted"),
    "outbox": (outbox, "only print what waits"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one periodic task."""
    parser = argparse.ArgumentParser(prog="python -m cronjobs", description="Run a periodic task once, now.")
    commands = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name, (task, dry_run) in _TASKS.items():
        command = commands.add_parser(name, help=task.__doc__, description=task.__doc__)
        command.add_argument("--dry-run", action="store_true", help=dry_run)
    arguments = parser.parse_args(argv)
    logs.configure("INFO")
    run, _ = _TASKS[arguments.task]
    try:
        settings = read_settings(os.environ, ServerSettings.from_environment)
        run(settings, dry_run=arguments.dry_run)
    except InvalidSettings as exc:
        logger.error("%s", exc, extra={"action": "settings"})
        return EXIT_CONFIG
    except (JobError, DispatcherError) as exc:
        extra = {"action": f"{arguments.task}_failed"}
        logger.error("%s failed: %s", arguments.task, exc, extra=extra)
        return EXIT_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
