"""What clients are told: addresses and credentials of the running services."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from deploy.local import cluster
from deploy.local import credentials as passwords
from deploy.local.credentials import Credentials
from deploy.local.errors import LocalClusterError
from deploy.local.paths import Layout

#: What `env` prints, in this order; PATH is added for the local cluster.
NAMES = (
    "KUBECONFIG",
    "AMQP_URL",
    "RABBITMQ_API_URL",
    "DATABASE_URL",
    "S3_ENDPOINT",
    "S3_ACCESS_KEY",
    "S3_SECRET_KEY",
    "REDIS_URL",
    "LAB_IMAGE",
    "JOB_IMAGE",
)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Hosts of the services, as names in the cluster or as addresses for the machine."""

    rabbitmq: str = "rabbitmq.messaging.svc.cluster.local"
    postgresql: str = "postgresql.infrastructure.svc.cluster.local"
    minio: str = "minio.infrastructure.svc.cluster.local"
    redis: str = "redis.infrastructure.svc.cluster.local"


@dataclass(frozen=True, slots=True)
class Urls:
    """Addresses with the credentials of their users in them."""

    amqp_admin: str = field(repr=False)
    amqp_jobs: str = field(repr=False)
    amqp_keda: str = field(repr=False)
    rabbitmq_api: str = field(repr=False)
    database: str = field(repr=False)
    s3_endpoint: str
    #: Where containers store results as Celery does; empty: nowhere.
    redis: str = field(default="", repr=False)

    @classmethod
    def of(cls, made: Credentials, at: Addresses) -> Urls:
        """Put passwords and addresses of the local services together."""

        def amqp(user: str, password: str) -> str:
            return f"amqp://{user}:{password}@{at.rabbitmq}:5672/%2F"

        return cls(
            amqp_admin=amqp("autolabs", made.amqp_admin),
            amqp_jobs=amqp("jobs", made.amqp_jobs),
            amqp_keda=amqp("keda", made.amqp_keda),
            rabbitmq_api=f"http://autolabs:{made.amqp_admin}@{at.rabbitmq}:15672",
            database=f"postgresql://autolabs:{made.postgresql}@{at.postgresql}:5432/autolabs",
            s3_endpoint=f"http://{at.minio}:9000",
            redis=f"redis://:{made.redis}@{at.redis}:6379/0",
        )


def addresses(layout: Layout) -> Addresses:
    """Return the Service addresses, which this machine can reach through kube-proxy's rules."""
    listed = json.loads(cluster.kubectl(layout, "get", "services", "--all-namespaces", "--output", "json"))
    found = {
        item["metadata"]["name"]: item["spec"]["clusterIP"]
        for item in listed["items"]
        if item["metadata"]["namespace"] in ("messaging", "infrastructure")
    }
    try:
        return Addresses(found["rabbitmq"], found["postgresql"], found["minio"], found["redis"])
    except KeyError as exc:
        raise LocalClusterError(f"the cluster has no Service {exc}; run `make up`") from exc


def data_since(layout: Layout) -> str:
    """Return when the youngest service pod was made: their volumes begin empty."""
    template = '{range .items[*]}{.metadata.creationTimestamp}{"\\n"}{end}'
    times = [
        line
        for namespace in ("messaging", "infrastructure")
        for line in cluster.kubectl(
            layout, "get", "pods", "--namespace", namespace, f"--output=jsonpath={template}"
        ).split()
    ]
    return max(times, default="")


def environment(layout: Layout) -> dict[str, str]:
    """Return the variables for clients on this machine."""
    made = passwords.ensure(layout)
    urls = Urls.of(made, addresses(layout))
    values = {
        "KUBECONFIG": str(layout.kubeconfig),
        "AMQP_URL": urls.amqp_admin,
        "RABBITMQ_API_URL": urls.rabbitmq_api,
        "DATABASE_URL": urls.database,
        "S3_ENDPOINT": urls.s3_endpoint,
        "S3_ACCESS_KEY": "autolabs",
        "S3_SECRET_KEY": made.minio,
        "REDIS_URL": urls.redis,
    }
    images: dict[str, str] = json.loads((layout.state / "images.json").read_text())
    return values | images


def write_images(layout: Layout, images: Mapping[str, str]) -> None:
    """Remember which images the last `up` applied."""
    (layout.state / "images.json").write_text(json.dumps(dict(images)))


def export_lines(values: Mapping[str, str], *, path_first: str | None = None) -> list[str]:
    """Return lines for a shell's eval, quoted."""
    lines = [f"export {name}={shlex.quote(values[name])}" for name in NAMES if name in values]
    if path_first:
        lines.append(f'export PATH={shlex.quote(path_first)}:"$PATH"')
    return lines
