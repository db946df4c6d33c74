"""Read the settings of a job container from its environment, once, in main."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field

from dispatcher.broker.topology import BINDINGS, QUEUE_NORMAL
from dispatcher.message.celery_results import DEFAULT_EXPIRES_S
from dispatcher.settings import BrokerSettings, Environment, database_url

#: A URL that an HTTP client takes: labels of at most 63 characters, and no space anywhere.
_POSTABLE_URL = (
    r"[a-z]+://(?:[^\s\x00-\x1f\x7f/?#@]*@)?"
    r"(?:(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?"
    r"(?:[/?#][^\s\x00-\x1f\x7f]*)?"
)


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """The object store that holds templates and settings."""

    endpoint: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    bucket: str
    #: Region of the bucket; jobs take another that the store names.
    region: str = "us-east-1"
    #: PEM file of authorities that are trusted beside the system's.
    ca_file: str = ""

    @classmethod
    def from_environment(cls, env: Environment) -> StoreSettings:
        endpoint = env.url("S3_ENDPOINT", ("http", "https"))
        keys = {name: env.find(name) for name in ("S3_ACCESS_KEY", "S3_SECRET_KEY")}
        env.problems += [f"{name}: not set" for name, value in keys.items() if not value]
        region = env.text("S3_REGION", "us-east-1")
        if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", region):
            env.problems.append(f"S3_REGION: {region!r} is not a region such as eu-central-1")
        return cls(
            endpoint=endpoint.rstrip("/"),
            access_key=keys["S3_ACCESS_KEY"] or "",
            secret_key=keys["S3_SECRET_KEY"] or "",
            bucket=env.text("S3_BUCKET", "autolabs-configs"),
            region=region,
            ca_file=env.ca_file,
        )


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """The retries of a transient failure, which other containers make."""

    #: Retries after the first attempt.
    max_retries: int = 3
    #: Seconds before the first retry.
    delay_s: float = 5.0
    #: Factor from one retry to the next.
    backoff: float = 2.0
    #: Shorten each delay at random, to half at most, so that a class does not come back at once.
    jitter: bool = True

    @classmethod
    def from_environment(cls, env: Environment) -> RetrySettings:
        return cls(
            max_retries=env.count("CELERY_TASK_MAX_RETRIES", 3, minimum=0, maximum=20),
            delay_s=env.number("CELERY_TASK_RETRY_DELAY", 5, minimum=0.1, maximum=600),
            backoff=env.number("CELERY_TASK_RETRY_BACKOFF", 2, minimum=1, maximum=10),
            jitter=env.flag("CELERY_TASK_RETRY_JITTER", default=True),
        )


@dataclass(frozen=True, slots=True)
class ResultSettings:
    """The Redis from which a backend's Celery app reads results."""

    #: redis(s)://user:password@host:port/number
    url: str = field(repr=False)
    #: Seconds after which a result is forgotten; 0: never.
    expires_s: int = DEFAULT_EXPIRES_S
    #: PEM file of authorities that are trusted beside the system's.
    ca_file: str = ""

    @classmethod
    def from_environment(cls, env: Environment) -> ResultSettings | None:
        """Read CELERY_RESULT_BACKEND and CELERY_RESULT_EXPIRES; None: no results but the ledger."""
        expires_s = env.count("CELERY_RESULT_EXPIRES", DEFAULT_EXPIRES_S, minimum=0, maximum=10**9)
        if env.find("CELERY_RESULT_BACKEND") is None:
            return None
        return cls(env.url("CELERY_RESULT_BACKEND", ("redis", "rediss")), expires_s, env.ca_file)


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """The webhook that is called when a lab failed, beside the event on the broker."""

    #: http(s)://user:password@host:port/path?query, all of it perhaps secret.
    url: str = field(repr=False)
    #: Each signs, so that a receiver may change to another at its leisure.
    secrets: tuple[bytes, ...] = field(repr=False)
    #: Problems of these settings. Labs do not need them: nobody is called until they are corrected.
    problems: tuple[str, ...] = ()
    #: PEM file of authorities that are trusted beside the system's.
    ca_file: str = ""

    @classmethod
    def from_environment(cls, env: Environment) -> WebhookSettings | None:
        """Read NOTIFY_WEBHOOK_URL and NOTIFY_WEBHOOK_SECRET; None: nobody is called."""
        before = len(env.problems)
        url = ""
        secrets: tuple[bytes, ...] = ()
        if env.find("NOTIFY_WEBHOOK_URL") is not None:
            url, secrets = _webhook_url(env), _webhook_secrets(env)
        problems = tuple(env.problems[before:])
        del env.problems[before:]
        return cls(url, secrets, problems, env.ca_file) if url or problems else None


def _webhook_url(env: Environment) -> str:
    before = len(env.problems)
    url = env.url("NOTIFY_WEBHOOK_URL", ("http", "https"))
    if len(env.problems) == before and not re.fullmatch(_POSTABLE_URL, url):
        env.problems.append(
            "NOTIFY_WEBHOOK_URL: its host must be a name of ASCII letters, digits, - and ., or an address,"
            " and nothing in it may be a space or a control character (write %20)"
        )
    return url


def _webhook_secrets(env: Environment) -> tuple[bytes, ...]:
    given = (env.find("NOTIFY_WEBHOOK_SECRET") or "").split()
    secrets = tuple(filter(None, map(_webhook_secret, given)))
    if not given or len(secrets) < len(given):
        env.problems.append(
            "NOTIFY_WEBHOOK_SECRET: must be 24 to 64 bytes in base64, with or without whsec_ in front"
            " (several: with spaces between them)"
        )
    return secrets


def _webhook_secret(text: str) -> bytes | None:
    try:
        secret = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        return None
    return secret if 24 <= len(secret) <= 64 else None


@dataclass(frozen=True, slots=True)
class JobSettings:
    """Everything one container needs to know."""

    broker: BrokerSettings
    database_url: str = field(repr=False)
    store: StoreSettings
    retry: RetrySettings
    #: The queue this container takes its one message from.
    queue: str
    #: Seconds to wait for a message before leaving; minutes for a spare.
    claim_wait_s: float
    #: TCP port that listens only while a message is held: KEDA's sign that this container is busy.
    ready_port: int
    #: Namespace of the labs.
    namespace: str
    #: Object with a kubeconfig; empty means the ServiceAccount of the container.
    kubeconfig_object: str
    pod_name: str | None
    job_name: str | None
    log_level: str
    #: Containers that may wait for a message for all of `claim_wait_s`; 0: any number.
    spares: int = 0
    results: ResultSettings | None = None
    webhook: WebhookSettings | None = None

    @classmethod
    def from_environment(cls, env: Environment) -> JobSettings:
        queue = env.text("AUTOLABS_QUEUE", QUEUE_NORMAL)
        if queue not in BINDINGS:
            env.problems.append(f"AUTOLABS_QUEUE: {queue!r} is not one of {', '.join(BINDINGS)}")
        level = env.text("LOG_LEVEL", "INFO").upper()
        if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            env.problems.append(f"LOG_LEVEL: {level!r} is not DEBUG, INFO, WARNING or ERROR")
        return cls(
            broker=BrokerSettings.from_environment(env),
            database_url=database_url(env),
            store=StoreSettings.from_environment(env),
            retry=RetrySettings.from_environment(env),
            queue=queue,
            claim_wait_s=env.number("CLAIM_WAIT_S", 8, minimum=0, maximum=3600),
            ready_port=env.count("READY_PORT", 8081, minimum=1, maximum=65535),
            namespace=env.text("LAB_NAMESPACE", "labs"),
            kubeconfig_object=env.find("KUBECONFIG_OBJECT") or "",
            pod_name=env.find("POD_NAME"),
            job_name=env.find("JOB_NAME"),
            log_level=level,
            spares=env.count("SPARES", 0, minimum=0, maximum=10_000),
            results=ResultSettings.from_environment(env),
            webhook=WebhookSettings.from_environment(env),
        )
