"""Where a lab is reached."""

from __future__ import annotations

from jobs.cluster.client import Manifest
from jobs.config.lab_settings import LabSettings


def connection_url(settings: LabSettings, service: Manifest, lab_instance_id: int) -> str:
    """Return the URL of a lab by its Service, as the API server has it."""
    spec, metadata = service["spec"], service["metadata"]
    cluster_ip = spec["clusterIP"]
    return settings.connection_url.format(
        cluster_ip=f"[{cluster_ip}]" if ":" in cluster_ip else cluster_ip,
        service=metadata["name"],
        namespace=metadata["namespace"],
        port=spec["ports"][0]["port"],
        lab_instance_id=lab_instance_id,
    )
