"""Say where a lab is reached, by the settings' `connection_url`, and tell when a row says another address.

Called by the create, by what makes a Service again, and by verify and sync.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from jobs.config.naming import Manifest

#: An address that no Service has (RFC 5737).
_NO_SERVICE = "192.0.2.1"


def lab_url(template: str, service: Manifest, lab_instance_id: int) -> str:
    """Return the URL of a lab by its Service as the API server gives it."""
    spec, metadata = service["spec"], service["metadata"]
    return template.format(
        cluster_ip=url_host(spec["clusterIP"]),
        service=metadata["name"],
        namespace=metadata["namespace"],
        port=spec["ports"][0]["port"],
        lab_instance_id=lab_instance_id,
    )


def url_host(address: str) -> str:
    """Return an IP address as a URL has it."""
    return f"[{address}]" if ":" in address else address


def names_address(template: str) -> bool:
    """Tell whether URLs of this template have the Service's address as their host, and no other name."""
    values = dict.fromkeys(("service", "namespace"), "x") | {"port": "1", "lab_instance_id": "1"}
    return address_in(template.format(cluster_ip=_NO_SERVICE, **values)) == _NO_SERVICE


def address_in(url: str | None) -> str | None:
    """Return the IP address in a lab's URL, or None when it is another name."""
    try:
        return str(ipaddress.ip_address(urlsplit(url or "").hostname or ""))
    except ValueError:
        return None
