"""What is said of a broker to which there is no connection."""

from __future__ import annotations

import pytest
from pika.exceptions import AMQPConnectionError

from dispatcher.broker.connection import connect
from dispatcher.settings import BrokerSettings


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("amqp://u:hidden@no-such-host.invalid/", "no connection to no-such-host.invalid:5672: "),
        (
            "amqp://u:hidden@127.0.0.1:1/%2Flabs",
            "no connection to 127.0.0.1:1 vhost /labs: Connection refused",
        ),
    ],
    ids=["no such name", "nobody there"],
)
def test_where_and_why_is_said_and_no_password(url: str, says: str) -> None:
    with pytest.raises(AMQPConnectionError) as raised:
        connect(BrokerSettings(url), name="test")
    for shown in (str(raised.value), repr(raised.value)):
        assert shown.startswith(says)
        assert "hidden" not in shown
