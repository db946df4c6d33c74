"""A URL of the broker means the same to us as to the Celery of a backend."""

from __future__ import annotations

import kombu
import pytest

from dispatcher import BrokerSettings, InvalidSettings
from dispatcher.broker.connection import url_parameters
from dispatcher.settings import read_settings


@pytest.mark.parametrize(
    "end",
    ["", "/", "//", "/%2F", "/%2f", "/name", "//name", "/a/b", "///", "/%2Fx", "/n%20m", "//?heartbeat=5"],
)
@pytest.mark.parametrize(
    "start",
    ["amqp://u:p@host:5673", "amqp://u%40:p%2F@host", "amqp://host", "pyamqp://u@host", "amqps://u:p@host"],
)
def test_a_url_is_read_as_kombu_reads_it(start: str, end: str) -> None:
    ours = url_parameters(read_settings({"AMQP_URL": start + end}, BrokerSettings.from_environment))
    theirs = kombu.Connection(start + end)
    theirs.info()  # it sets what the transport makes of the URL
    default_port = 5671 if theirs.ssl else 5672
    assert (ours.host, ours.port) == (theirs.hostname, theirs.port or default_port)
    assert ours.virtual_host == theirs.virtual_host
    assert (ours.ssl_options is not None) == bool(theirs.ssl)
    if theirs.userid:
        assert (ours.credentials.username, ours.credentials.password) == (
            theirs.userid,
            theirs.password or "",
        )


@pytest.mark.parametrize(
    "host",
    ["a..b", ".a", "a" * 64, "a b", "a\tb", "h:0", "h:70000", "h:x", "b\u00fc..r", "", "one//;amqp://two"],
)
def test_a_host_that_no_name_server_may_know_is_a_problem_of_the_setting(host: str) -> None:
    with pytest.raises(InvalidSettings) as raised:
        read_settings({"AMQP_URL": f"amqp://u:hidden@{host}/"}, BrokerSettings.from_environment)
    (problem,) = raised.value.problems
    assert problem.startswith("AMQP_URL: ")
    assert "hidden" not in problem


@pytest.mark.parametrize("host", ["a.b.", "h_x", "127.0.0.1", "[::1]", "b\u00fcro.example", "A-1"])
def test_other_hosts_are_taken(host: str) -> None:
    read_settings({"AMQP_URL": f"amqp://u:p@{host}/"}, BrokerSettings.from_environment)
