from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher import BrokerSettings, InvalidSettings
from dispatcher.broker.connection import BrokerUnreachable, connect, url_parameters
from dispatcher.settings import Environment, database_url
from dispatcher.trust import ca_problem, make_context, with_root_certificate
from jobs.config.environment import StoreSettings
from jobs.config.objectstore import ObjectStore
from jobs.database import connection as database_connection
from jobs.database.connection import Database
from jobs.errors import PermanentError
from jobs.failures import Failure
from tests.support.certificate import make_certificate

PEM = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"
NO_CA = {
    "": "is empty",
    "\n \n": "is empty",
    "hello": "has no certificate",
    "-----BEGIN PRIVATE KEY-----\nMAo=\n-----END PRIVATE KEY-----\n": "has no certificate",
    PEM.format("!!!"): "certificate 1 of 1",
    PEM.format("MAo=") + PEM.format("aGVsbG8="): "certificate 2 of 2",
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    make_certificate(folder)
    return folder / "server.crt"


@pytest.fixture
def tls_port(authority: Path) -> Iterator[int]:
    """A server that ends each connection after its handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.with_suffix(".pem"))
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return  # closed by the fixture
            with client:
                try:
                    context.wrap_socket(client, server_side=True).close()
                except OSError:
                    continue  # a client that does not trust it

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize("content", NO_CA)
def test_a_file_without_authorities_is_named_with_its_problem(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ca.crt"
    path.write_text(content)
    env = Environment({"CA_FILE": str(path)})
    assert env.ca_file == str(path)
    assert len(env.problems) == 1
    assert env.problems[0].startswith("CA_FILE: ")
    assert str(path) in env.problems[0]
    assert NO_CA[content] in env.problems[0]
    with pytest.raises(InvalidSettings, match="CA_FILE"):
        make_context(str(path))


def test_a_missing_file_and_one_in_der_are_named(tmp_path: Path) -> None:
    assert "No such file" in (ca_problem(str(tmp_path / "none")) or "")
    binary = tmp_path / "ca.der"
    binary.write_bytes(b"\x30\x82\xff\xfe")
    assert "no PEM file" in (ca_problem(str(binary)) or "")


def test_the_mounted_key_is_the_default_and_the_variable_wins(tmp_path: Path, authority: Path) -> None:
    assert Environment({}, tmp_path).ca_file == ""
    (tmp_path / "ca.crt").write_bytes(authority.read_bytes())
    assert Environment({}, tmp_path).ca_file == str(tmp_path / "ca.crt")
    assert Environment({"CA_FILE": str(authority)}, tmp_path).ca_file == str(authority)


def test_several_private_authorities_are_trusted_beside_the_public_ones(
    tmp_path: Path, authority: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make_certificate(other)
    both = tmp_path / "both.crt"
    both.write_bytes(authority.read_bytes() + (other / "server.crt").read_bytes())
    public = len(ssl.create_default_context().get_ca_certs())
    assert len(make_context(str(both)).get_ca_certs()) == public + 2


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("postgresql://h/db?sslmode=verify-full", True),
        ("postgresql://h1,h2/db?sslmode=verify-ca&target_session_attrs=any", True),
        ("postgresql://h/db", False),
        ("postgresql://h/db?sslmode=require", False),
        ("postgresql://h/db?sslmode=verify-full&sslrootcert=system", False),
    ],
)
def test_libpq_gets_the_file_when_it_verifies_and_names_none(given: str, named: bool) -> None:
    assert with_root_certificate(given, "/run/ca.crt") == given + "&sslrootcert=/run/ca.crt" * named
    assert with_root_certificate(given, "") == given


def test_the_database_of_a_container_is_verified_by_ca_file(authority: Path) -> None:
    environ = {"DATABASE_URL": "postgresql://u:p@h/db?sslmode=verify-full", "CA_FILE": str(authority)}
    assert database_url(Environment(environ)).endswith(f"&sslrootcert={authority}")


def test_the_host_name_of_the_broker_is_checked(authority: Path) -> None:
    options = url_parameters(BrokerSettings("amqps://u:p@127.0.0.1/", ca_file=str(authority))).ssl_options
    assert options.server_hostname == "127.0.0.1"
    assert options.context.check_hostname
    assert options.context.verify_mode is ssl.CERT_REQUIRED


def test_a_broker_that_is_not_trusted_is_named_with_the_reason(tls_port: int) -> None:
    with pytest.raises(BrokerUnreachable) as caught:
        connect(BrokerSettings(f"amqps://u:hidden@127.0.0.1:{tls_port}/"), name="test")
    assert f"127.0.0.1:{tls_port}" in str(caught.value)
    assert "certificate verify failed" in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_store_that_is_not_trusted_is_no_store_that_is_away(tls_port: int, authority: Path) -> None:
    endpoint = f"https://127.0.0.1:{tls_port}"
    with pytest.raises(PermanentError) as caught:
        ObjectStore(StoreSettings(endpoint, "key", "hidden", "bucket")).read("x")
    assert caught.value.failure is Failure.STORE_UNTRUSTED
    assert f"S3_ENDPOINT 127.0.0.1:{tls_port}: certificate verify failed" in str(caught.value.evidence)


def test_a_database_that_is_not_trusted_is_no_database_that_is_away(
    authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_connection, "BLIP_S", 0.1)
    make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.with_suffix(".pem"))

    def serve() -> None:
        with listener:
            for _ in range(10):
                client = listener.accept()[0]
                with client:
                    if not client.recv(8):
                        return  # the test's own connection, that ends this
                    client.sendall(b"S")  # yes, TLS
                    try:
                        context.wrap_socket(client, server_side=True).close()
                    except OSError:
                        continue  # the client does not trust it

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    query = f"sslmode=verify-full&sslrootcert={tmp_path / 'server.crt'}&gssencmode=disable"
    database = Database(f"postgresql://u:hidden@127.0.0.1:{port}/db?{query}", application_name="test")
    with pytest.raises(PermanentError, match="certificate verify failed") as caught:
        database.fetch("SELECT 1")
    socket.create_connection(("127.0.0.1", port)).close()
    thread.join()
    assert caught.value.failure is Failure.DATABASE_UNTRUSTED
    assert "hidden" not in str(caught.value)
