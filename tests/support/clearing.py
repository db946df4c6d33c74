"""What a test must not leave to the next one of its module's platform, also when it failed."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from tests.support.cluster.own_platform import OwnPlatform
from tests.support.waiting import eventually

#: Seconds after which deleted objects never go: only a hang takes so long.
_GONE_S = 120


def clear(platform: OwnPlatform, *, keep: Collection[int] = ()) -> None:
    """Leave no process, object, row or message, whatever there was, but what is of the labs to `keep`."""
    for process in platform.containers.started:
        process.end()
    _delete_objects(platform, {str(lab) for lab in keep})
    mine = "NOT (coalesce(lab_instance_id, 0) = ANY(%s))"
    for table in ("task_ledger", "task_outbox", "notifications", "dead_letter_actions"):
        platform.database.rows(f"DELETE FROM {table} WHERE {mine}", [*keep])
    platform.database.rows("DELETE FROM lab_instances WHERE NOT (id = ANY(%s))", [*keep])
    platform.broker.empty()


def failed_since(session: pytest.Session, before: int) -> bool:
    """Tell, in the teardown of a fixture, whether its test failed; `before`: testsfailed at its set-up.

    The report of a test's call is counted before its fixtures end.
    """
    return session.testsfailed > before


def _delete_objects(platform: OwnPlatform, keep: set[str]) -> None:
    namespace = platform.namespace

    def left() -> list[str]:
        return [
            f"{item['kind']}/{item['metadata']['name']}"
            for item in namespace.objects()
            if item["metadata"]["labels"]["lab_instance_id"] not in keep
        ]

    if names := left():
        namespace.kubectl(
            "delete", *names, "--ignore-not-found", "--grace-period=0", "--force", "--wait=false"
        )
    eventually(lambda: not left(), _GONE_S, what="no object of a lab")
