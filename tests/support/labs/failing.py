"""Fail one task for real, in a container process on the real servers, and gather what it left.

Several tasks may fail at once: each has a bucket of its own, and containers are started one by one, so
that each takes the message that was published for it.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from dispatcher.broker import topology
from jobs.config.manifests import POD_TEMPLATE
from jobs.config.naming import lab_object_name
from jobs.config.stored import DEFAULTS, SETTINGS, upload_defaults
from jobs.failures import Failure
from tests.support.cluster.own_namespace import KUBECONFIG_OBJECT
from tests.support.cluster.own_platform import OwnPlatform, default_settings
from tests.support.cluster.registry import Registries
from tests.support.containers.container import Process
from tests.support.factories import create_kwargs
from tests.support.labs.own_labs import HANGS_S
from tests.support.store import Bucket
from tests.support.waiting import eventually

Manifest = dict[str, Any]
#: Long enough for a task that is to be tried again to be out of the way.
AWAY_S = 600
_NO_TASK = {Failure.MESSAGE_UNREADABLE, Failure.REQUEST_INVALID, Failure.FOLLOW_UP_UNSUPPORTED}
_ENDS = ("failed", "revoked", "retried", "dead_lettered")


def _unchanged(_pod: Manifest) -> None:
    """Leave the template's Pod as it is."""


def _nothing(_scene: Scene) -> None:
    """Nothing happens beside the container."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to fail, and what has to be seen of it."""

    failure: Failure
    #: What the evidence for operators has to hold.
    says: str
    #: The image of the task; {registries} are filled in, none: the demo lab.
    image: str = ""
    #: What the task says beside ids and image.
    payload: Mapping[str, Any] = field(default_factory=dict)
    #: What of the settings in the bucket is other than in a fresh platform.
    settings: Mapping[str, object] = field(default_factory=dict)
    #: Changes the template's Pod.
    pod: Callable[[Manifest], object] = _unchanged
    environ: Mapping[str, object] = field(default_factory=dict)
    #: What is done before the task is published, and while its container runs.
    before: Callable[[Scene], object] = _nothing
    meanwhile: Callable[[Scene], object] = _nothing
    #: Publishes the task; none: a create of the scene's lab.
    publish: Callable[[Scene], str] | None = None
    queue: str = topology.QUEUE_NORMAL
    module: str = "jobs"
    #: What fills the sentence beside the image; {lab} is the scene's.
    values: Mapping[str, Any] = field(default_factory=dict)
    #: What the student reads instead of the row's sentence.
    reads: str = ""
    #: Whether the message is in the dead-letter queue, besides those that every failure there leaves.
    kept: bool = False
    #: How the ledger says that it ended; none: as a create that failed.
    outcome: str = ""
    #: What the lab is afterwards; none: as after a create that failed.
    status: str = ""
    #: Whether it is a stop that is given up, of which somebody is told though the lab has not failed.
    stop_failed: bool = False
    #: Whether the database could be written.
    recorded: bool = True

    def sentence(self, scene: Scene) -> str:
        """Return what the student is to read."""
        values = {name: str(value).format(lab=scene.lab) for name, value in self.values.items()}
        return self.reads or self.failure.error(**({"image": scene.image} | values)).sentence


@dataclass
class Scene:
    """Where a case is played: its lab, its bucket, its container."""

    platform: OwnPlatform
    bucket: Bucket
    lab: int
    image: str
    environ: dict[str, Any]
    container: Process | None = None

    @property
    def pod_name(self) -> str:
        return lab_object_name(self.lab, self.image)

    def kubectl(self, *words: str, stdin: object = None) -> str:
        return self.platform.namespace.kubectl(*words, stdin=stdin)

    def wait_for_step(self, step: str) -> None:
        """Wait until the container logged that a step is done."""

        def done() -> bool:
            lines = self.container.lines() if self.container else []
            return any(line.get("step") == step for line in lines)

        eventually(done, HANGS_S, what=f"step {step}")


@dataclass(frozen=True)
class Seen:
    """What a task that failed left."""

    scene: Scene
    task_id: str
    exit_code: int
    #: The log line that says how it ended.
    end: dict[str, Any]
    lab: dict[str, Any]
    run: dict[str, Any] | None
    #: Headers of its dead letter.
    dead_letter: dict[str, Any] | None
    objects: list[str]
    #: Rows of notifications about its lab.
    told: list[dict[str, Any]]
    #: How often a registry of ours was asked for its image.
    pulls: int

    @property
    def took_s(self) -> float:
        """Seconds from the claim to the end that the ledger has."""
        if self.run is None:
            raise AssertionError(f"task {self.task_id} is not in the ledger")
        return float((self.run["finished_at"] - self.run["claimed_at"]).total_seconds())


class Stage:
    """Plays cases on one platform; may be used from several threads."""

    def __init__(self, platform: OwnPlatform, registries: Registries) -> None:
        self.platform = platform
        self._registries = registries
        self._hosts = {name: getattr(registries, name) for name in ("answering", "silent", "absent")}
        self._lock = threading.Lock()
        self._dead: dict[str, dict[str, Any]] = {}

    def play(self, case: Case) -> Seen:
        """Let one task fail as the case says; returns when its container has ended."""
        scene = self._set(case)
        try:
            return self._play(case, scene)
        finally:
            scene.bucket.remove()

    def _play(self, case: Case, scene: Scene) -> Seen:
        case.before(scene)
        with self._lock:
            task_id = case.publish(scene) if case.publish else publish_create(scene, **case.payload)
            container = self.platform.containers.start(
                queue=case.queue, module=case.module, **(scene.environ | dict(case.environ))
            )
            scene.container = container
            # From here on no other container can take the message.
            eventually(lambda: {"claimed", *_ENDS} & {*container.actions()}, HANGS_S, what="the claim")
            if case.failure in _NO_TASK:
                container.wait(HANGS_S)  # it looks for another message
        case.meanwhile(scene)
        code = container.wait(HANGS_S)
        pulls = self._registries.pulls(scene.image)
        ends = [line for line in container.lines() if line.get("action") in _ENDS]
        if not ends:
            raise AssertionError(f"no end in the log: {container.log.read_text()[-4000:]}")
        runs = self._rows("task_ledger WHERE task_id = %s ORDER BY id DESC", task_id)
        return Seen(
            scene=scene,
            task_id=task_id,
            exit_code=code,
            end=ends[0],
            lab=self.platform.database.lab(scene.lab),
            run=runs[0] if runs else None,
            dead_letter=self._dead_letter(task_id),
            objects=self.platform.namespace.names_of(scene.lab),
            told=self._rows("notifications WHERE lab_instance_id = %s", scene.lab),
            pulls=pulls,
        )

    def _set(self, case: Case) -> Scene:
        image = case.image.format(**self._hosts) if case.image else os.environ["LAB_IMAGE"]
        bucket = Bucket(*(os.environ[name] for name in ("S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY")))
        upload_defaults(bucket.settings)
        bucket.put(KUBECONFIG_OBJECT, self.platform.namespace.kubeconfig)
        bucket.put(SETTINGS, default_settings(**{"allowed_images": ["*"], **case.settings}))
        documents = [*yaml.safe_load_all((DEFAULTS / POD_TEMPLATE).read_bytes())]
        case.pod(documents[0])
        bucket.put(POD_TEMPLATE, yaml.safe_dump_all(documents).encode())
        environ = {
            "S3_BUCKET": bucket.name,
            "CELERY_TASK_MAX_RETRIES": 1,
            "CELERY_TASK_RETRY_DELAY": AWAY_S,
            "CLAIM_WAIT_S": 2,
        }
        return Scene(self.platform, bucket, self.platform.database.add_lab(), image, environ)

    def _rows(self, of: str, value: object) -> list[dict[str, Any]]:
        return self.platform.database.rows(f"SELECT * FROM {of}", value)

    def _dead_letter(self, task_id: str) -> dict[str, Any] | None:
        with self._lock:
            channel = self.platform.broker.channel()
            while True:
                method, found, _ = channel.basic_get(topology.DEAD_LETTER_QUEUE, auto_ack=True)
                if method is None or found is None:
                    break
                headers = dict(found.headers or {})
                self._dead[str(headers.get("id"))] = headers
            channel.connection.close()
            return self._dead.get(task_id)


def publish_create(scene: Scene, **changes: Any) -> str:
    """Publish a create of the scene's lab."""
    kwargs = create_kwargs(lab_instance_id=scene.lab, docker_image=scene.image, **changes)
    return scene.platform.broker.publish_task(kwargs=kwargs)


def change_container(**fields: Any) -> Callable[[Manifest], None]:
    """Return a change of the template: these fields of its container are other."""

    def change(pod: Manifest) -> None:
        pod["spec"]["containers"][0] |= copy.deepcopy(fields)

    return change


def change_pod(**fields: Any) -> Callable[[Manifest], None]:
    """Return a change of the template: these fields of the Pod's spec are other."""

    def change(pod: Manifest) -> None:
        pod["spec"] |= copy.deepcopy(fields)

    return change
