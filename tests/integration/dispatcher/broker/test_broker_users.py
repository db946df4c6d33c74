from __future__ import annotations

import json
import os

import pika
import pytest

from deploy.local.broker_users import load_definitions
from deploy.local.errors import LocalClusterError
from tests.support.broker.rabbitmq import Broker


def test_a_running_broker_takes_changed_rights_and_keeps_its_connections(broker: Broker) -> None:
    url = broker.url_of_user(configure="^$", write=r"^autolabs\.", read="^$")
    (user,) = (u for u in broker.api.call("GET", "/users") if u["name"].startswith(f"{broker.vhost}-"))
    connection = pika.BlockingConnection(pika.URLParameters(url))
    wider = {"configure": "^$", "write": r"^(autolabs\.|celery_delayed_27$)", "read": "^$"}
    definitions = {
        "users": [{key: user[key] for key in ("name", "password_hash", "hashing_algorithm", "tags")}],
        "permissions": [{"user": user["name"], "vhost": broker.vhost, **wider}],
    }
    for _ in range(2):
        load_definitions(os.environ["RABBITMQ_API_URL"], json.dumps(definitions))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.basic_publish("celery_delayed_27", "0." * 27 + "1.lab.create", b"x", mandatory=True)
    connection.close()


def test_a_broker_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(LocalClusterError, match=r"RabbitMQ at 127\.0\.0\.1:1 did not take") as caught:
        load_definitions("http://user:hidden@127.0.0.1:1", "{}")
    assert "hidden" not in str(caught.value)


def test_a_refusal_is_shown(broker: Broker) -> None:
    with pytest.raises(LocalClusterError, match="did not take users and permissions: 4"):
        load_definitions(os.environ["RABBITMQ_API_URL"], "no JSON")
