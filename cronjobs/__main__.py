"""Run a periodic task once, as CronJobs do (`python -m cronjobs TASK`), or `render` their manifests.

Exit codes: 0 done, 1 the task refuses, or fails for good, 2 the command line is wrong, 69 a server is not
reachable or a task could not be published, 78 the settings are wrong.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cronjobs import outbox
from dispatcher import tasks
from dispatcher.errors import DispatcherError, InvalidSettings
from dispatcher.message.envelope import new_task_id
from dispatcher.settings import read_settings
from jobs import logs
from jobs.checks.run import run_periodic
from jobs.config.environment import JobSettings
from jobs.database.ledger import Ending, TaskRunRecord
from jobs.errors import JobError, TransientError
from jobs.failures import Failure
from jobs.handlers.context import Connections, TaskContext
from keda.podspec import pinned_image

EXIT_FAILED = 1
EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78

logger = logging.getLogger("cronjobs")


@dataclass(frozen=True, slots=True)
class Periodic:
    """One periodic task; the docstring of `run` or of the payload is its help."""

    run: Callable[[argparse.Namespace], None]
    about: str
    dry_run: str
    #: What --force does; None: there is no such option.
    force: str | None = None


def run_task(payload: tasks.PeriodicPayload) -> None:
    """Run the task once. Raises JobError and PublishError, after they are in the ledger."""
    connections = Connections(read_settings(os.environ, JobSettings.from_environment))
    record = TaskRunRecord(
        task_id=new_task_id(),
        task_name=payload.task_name,
        job_name=connections.settings.job_name,
        pod_name=connections.settings.pod_name,
    )
    logs.set_task(task_id=record.task_id, task=payload.task_name)
    context = TaskContext(connections, record)
    context.labs.begin(record)
    try:
        run_periodic(context, payload)
    except Exception as exc:
        # The next run is the retry. Of a bug the row is to tell too: as `started` it would seem to go on.
        evidence = f"{type(exc).__name__}: {exc}"
        error = exc if isinstance(exc, JobError) else Failure.INTERNAL_ERROR.error(evidence=evidence)
        context.labs.record(record, Ending.of_error("failed", error))
        raise
    finally:
        context.publisher.close()
        context.labs.close()


def _task(payload: type[tasks.PeriodicPayload], dry_run: str, force: str) -> Periodic:
    def run(arguments: argparse.Namespace) -> None:
        run_task(payload(dry_run=arguments.dry_run, force=arguments.force))

    return Periodic(run, (payload.__doc__ or "").partition("\n")[0], dry_run, force)


#: The name of the CronJob -> what it runs.
PERIODIC = {
    "cleanup": _task(
        tasks.CleanupTimeoutLabs, "only print what would be deleted", "delete however many labs it is"
    ),
    "health": _task(tasks.HealthCheckPods, "only print what is wrong", "fail however many labs it is"),
    "sync": _task(tasks.SyncLabStatus, "only print what differs", "mend however many labs it is"),
    "outbox": Periodic(
        lambda arguments: outbox.sweep(dry_run=arguments.dry_run),
        (outbox.sweep.__doc__ or "").partition("\n")[0],
        "only print what waits",
    ),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cronjobs", description="Run a periodic task once, now.")
    commands = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name, periodic in PERIODIC.items():
        command = commands.add_parser(name, help=periodic.about, description=periodic.about)
        command.add_argument("--dry-run", action="store_true", help=periodic.dry_run)
        if periodic.force:
            command.add_argument("--force", action="store_true", help=periodic.force)
    about = "Print the CronJobs of the schedules as YAML, for kubectl or GitOps."
    command = commands.add_parser("render", help=about, description=about)
    command.add_argument(
        "--image", type=pinned_image, required=True, help="the job image, with tag or digest"
    )
    command.add_argument("--file", metavar="FILE", help="the schedules (default: those of this release)")
    arguments = parser.parse_args(argv)
    if arguments.task == "render":
        return _render(parser, arguments)
    logs.configure("INFO")
    extra = {"action": f"{arguments.task}_failed"}
    try:
        PERIODIC[arguments.task].run(arguments)
    except InvalidSettings as exc:
        logger.error("%s", exc, extra={"action": "settings"})
        return EXIT_CONFIG
    except JobError as exc:
        logger.error(
            "%s failed: %s",
            arguments.task,
            exc,
            extra={**extra, "cause": exc.failure.cause, "evidence": exc.evidence},
        )
        return EXIT_UNAVAILABLE if isinstance(exc, TransientError) else EXIT_FAILED
    except DispatcherError as exc:
        logger.error("%s failed: %s", arguments.task, exc, extra=extra)
        return EXIT_UNAVAILABLE
    return 0


def _render(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    from cronjobs.manifests import render
    from cronjobs.timetable import SHIPPED, parse_schedules

    file = Path(arguments.file or SHIPPED)
    try:
        schedules = parse_schedules(file.read_bytes(), file.name)
    except (OSError, InvalidSettings) as exc:
        parser.error(str(exc))
    sys.stdout.write(render(schedules.values(), image=arguments.image))
    return 0


if __name__ == "__main__":
    sys.exit(main())
