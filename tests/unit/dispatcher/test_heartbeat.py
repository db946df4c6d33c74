"""The heartbeat as a setting: who reads it, and what waits for containers by it."""

from __future__ import annotations

import pytest

from cronjobs.timetable import SHIPPED, parse_schedules
from dispatcher import BrokerSettings, Dispatcher
from dispatcher.errors import InvalidSettings
from dispatcher.settings import ServerSettings, read_settings
from jobs.config.environment import JobSettings
from jobs.verify.snapshot import QUIET_HEARTBEATS, quiet_s

SERVERS = {
    "AMQP_URL": "amqp://host/vhost",
    "DATABASE_URL": "postgresql://host/db",
    "S3_ENDPOINT": "http://host:9000",
    "S3_ACCESS_KEY": "key",
    "S3_SECRET_KEY": "secret",
}


def read(**changes: str) -> BrokerSettings:
    return read_settings({**SERVERS, **changes}, BrokerSettings.from_environment)


def test_a_request_is_lost_after_four_heartbeats_of_thirty_seconds() -> None:
    assert (read().heartbeat_s, QUIET_HEARTBEATS) == (30, 4)
    assert quiet_s(read()) == 120


def test_what_waits_for_containers_follows_the_setting() -> None:
    assert quiet_s(read(AMQP_HEARTBEAT_S="5")) == 20


def test_a_sync_that_waits_for_the_longest_ends_within_its_deadline() -> None:
    sync = parse_schedules(SHIPPED.read_bytes())["sync-lab-status"]
    assert quiet_s(read(AMQP_HEARTBEAT_S="60")) + 30 < sync.deadline_s


def test_containers_periodic_tasks_and_backends_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {**SERVERS, "AMQP_HEARTBEAT_S": "20"}
    assert read_settings(environ, JobSettings.from_environment).broker.heartbeat_s == 20
    assert read_settings(environ, ServerSettings.from_environment).broker.heartbeat_s == 20
    monkeypatch.setenv("AMQP_HEARTBEAT_S", "61")
    with pytest.raises(InvalidSettings, match="AMQP_HEARTBEAT_S: '61' is not a number from 5 to 60"):
        Dispatcher("amqp://host/vhost")


@pytest.mark.parametrize("value", ["0", "4", "61", "-30", "thirty"])
def test_what_no_heartbeat_should_be_is_refused_with_what_is_allowed(value: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        read(AMQP_HEARTBEAT_S=value)
    assert refused.value.problems == [f"AMQP_HEARTBEAT_S: {value!r} is not a number from 5 to 60"]


def test_a_heartbeat_is_of_whole_seconds() -> None:
    with pytest.raises(InvalidSettings) as refused:
        read(AMQP_HEARTBEAT_S="7.5")
    assert refused.value.problems == ["AMQP_HEARTBEAT_S: 7.5 is not an integer"]
