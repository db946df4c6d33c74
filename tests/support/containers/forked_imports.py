"""What the server imports whose forks tests kill, or serve as containers (tests.support.containers.forked).

Not jobs.__main__, which a container runs rather than imports.
"""

# ruff: noqa: F401  # imported for the forks

from __future__ import annotations

import psycopg2
import sqlalchemy.dialects.postgresql.psycopg2
import tenacity

import console.dlq.run
import cronjobs.__main__
import cronjobs.outbox
import dispatcher.cli.outbox
import dispatcher.outbox.listener
import jobs.checks.cleanup
import jobs.checks.health
import jobs.checks.sync
import jobs.cluster.evidence
import jobs.container.consumer
import jobs.container.run_task
import jobs.handlers.create
import jobs.handlers.delete
import jobs.handlers.give_up
import jobs.handlers.resize
import jobs.notify.notifications
import jobs.notify.redis_results
import tests.integration.dlq_victim
import tests.integration.outbox_victim
