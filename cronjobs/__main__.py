"""Command line of the CronJobs: `python -m cronjobs cleanup`.

Exit codes: 0 done, 69 the database or the broker is not reachable, 78 the settings are wrong.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import dataclass, field

from dispatcher.errors import InvalidSettings, PublishError
from dispatcher.publisher import Publisher
from dispatcher.settings import BrokerSettings, Environment, read_settings
from jobs import logs
from jobs.cleanup_labs import cleanup_expired, find_expired
from jobs.errors import JobError
from jobs.labs import LabStore
from jobs.settings import database_url

EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78

logger = logging.getLogger("cronjobs")


@dataclass(frozen=True, slots=True)
class CleanupSettings:
    """Where to look for expired labs, and where to ask for their deletion."""

    broker: BrokerSettings
    database_url: str = field(repr=False)

    @classmethod
    def from_environment(cls, env: Environment) -> CleanupSettings:
        """Read AMQP_URL and DATABASE_URL."""
        return cls(BrokerSettings.from_environment(env), database_url(env))


def cleanup(settings: CleanupSettings, *, dry_run: bool) -> None:
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


def main(argv: list[str] | None = None) -> int:
    """Run one periodic task."""
    parser = argparse.ArgumentParser(prog="python -m cronjobs", description="Run a periodic task once, now.")
    commands = parser.add_subparsers(required=True, metavar="TASK")
    command = commands.add_parser("cleanup", help=cleanup.__doc__)
    command.add_argument("--dry-run", action="store_true", help="only print what would be deleted")
    arguments = parser.parse_args(argv)
    logs.configure("INFO")
    try:
        settings = read_settings(os.environ, CleanupSettings.from_environment)
        cleanup(settings, dry_run=arguments.dry_run)
    except InvalidSettings as exc:
        logger.error("%s", exc, extra={"action": "settings"})
        return EXIT_CONFIG
    except (JobError, PublishError) as exc:
        logger.error("cleanup failed: %s", exc, extra={"action": "cleanup_failed"})
        return EXIT_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
