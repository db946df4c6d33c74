from __future__ import annotations

import pytest

from jobs.config.lab_url import lab_url, names_address


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("http://{cluster_ip}:{port}/", True),
        ("http://{cluster_ip}/labs/{lab_instance_id}", True),
        ("http://{service}.{namespace}.svc:{port}/", False),
        ("https://labs.example.com/{lab_instance_id}/", False),
        ("https://203.0.113.5/{lab_instance_id}/", False),
        ("https://labs.example.com/{cluster_ip}/", False),
        ("https://{cluster_ip}.labs.example.com/", False),
    ],
)
def test_only_urls_with_the_services_address_as_host_are_compared(template: str, expected: bool) -> None:
    assert names_address(template) is expected


def test_an_address_of_ipv6_stands_in_brackets() -> None:
    service = {
        "metadata": {"name": "s", "namespace": "labs"},
        "spec": {"clusterIP": "fd00::2", "ports": [{"port": 80}]},
    }
    assert lab_url("http://{cluster_ip}:{port}/", service, 5) == "http://[fd00::2]:80/"
