"""Messages that no container may perform: 25 kinds, for the real queues.

Every message has a correlation id of its own, by which its dead letter is found again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pika

from dispatcher.tasks import CREATE_LAB_POD, DELETE_LAB_POD
from tests.support.factories import create_kwargs

BIG_BYTES = 10 * 1000 * 1000
#: Runs a command when it is unpickled, or loaded as YAML with all tags.
PICKLE = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."
YAML = b"- []\n- !!python/object/apply:os.system ['true']\n- {}\n"


@dataclass(frozen=True)
class Kind:
    """One way to be wrong; without a body it is a create of a lab, with these arguments changed."""

    reason: str
    body: bytes | None = None
    headers: dict[str, Any] = field(default_factory=dict)
    content_type: str = "application/json"
    arguments: dict[str, Any] = field(default_factory=dict)
    embed: dict[str, Any] = field(default_factory=dict)

    @property
    def fails_its_lab(self) -> bool:
        return self.body is None and "task" not in self.headers


KINDS: dict[str, Kind] = {
    "not JSON": Kind("body is not JSON", b"hello"),
    "an empty body": Kind("body is not JSON", b""),
    "invalid UTF-8": Kind("body is not JSON", b"\xff\xfe\x00"),
    "wrong arity": Kind("three-element", b"[[], {}]"),
    "pickle": Kind("is refused", PICKLE, content_type="application/x-python-serialize"),
    "YAML": Kind("is refused", YAML, content_type="application/x-yaml"),
    "10 MB": Kind(f"body has {BIG_BYTES} bytes", b" " * BIG_BYTES),
    "100000 deep": Kind("body is not JSON", b"[" * 100_000),
    "a compression bomb": Kind(
        "decompressed body", zlib.compress(b" " * BIG_BYTES), {"compression": "application/x-gzip"}
    ),
    "unknown task": Kind("os.system' is unknown", b"[[], {}, {}]", {"task": "os.system"}),
    "a path as task": Kind("is unknown", b"[[], {}, {}]", {"task": "../../jobs/worker.run_task"}),
    "a line break in the id": Kind("header 'id'", b"[[], {}, {}]", {"id": "a\nb"}),
    "a table as id": Kind("header 'id'", b"[[], {}, {}]", {"id": {"x": [1]}}),
    "retries as text": Kind("header 'retries'", b"[[], {}, {}]", {"retries": "three"}),
    "a path as the lab of a stop": Kind(
        "lab_instance_id", headers={"task": DELETE_LAB_POD}, arguments={"lab_instance_id": "../../nodes/x"}
    ),
    "YAML in the image": Kind(
        "docker_image", arguments={"docker_image": "demo:1\n  hostNetwork: true\n---\nkind: Secret"}
    ),
    "a path as image": Kind("docker_image", arguments={"docker_image": "../../../etc/passwd"}),
    "a placeholder as image": Kind("docker_image", arguments={"docker_image": "${namespace}/demo:1"}),
    "a label in lab_id": Kind("lab_id", arguments={"lab_id": '7"\n    lab_instance_id: "1'}),
    "labels in student_id": Kind("student_id", arguments={"student_id": "42,lab_instance_id=1"}),
    "YAML in a quantity": Kind(
        "resources.memory",
        arguments={"resources": {"memory": '1Gi"}\n      securityContext: {privileged: true}'}},
    ),
    "YAML in a key": Kind("resources.", arguments={"resources": {"cpu: 1\n      privileged": "true"}}),
    "YAML in a flag": Kind("network_isolated", arguments={"network_isolated": "false\n  policyTypes: []"}),
    "an unknown argument": Kind("is not an argument", arguments={"namespace": "kube-system"}),
    "a chain": Kind("asks for chain", embed={"chain": [{"task": CREATE_LAB_POD}]}),
}


@dataclass(frozen=True)
class Poison:
    """One message; `lab` becomes FAILED by it."""

    id: str
    kind: str
    body: bytes = field(repr=False)
    properties: pika.BasicProperties = field(repr=False)
    lab: int | None

    @property
    def reason(self) -> str:
        return KINDS[self.kind].reason


def make_poison(run: str, labs: Iterator[int], *, copies: int, image: str) -> list[Poison]:
    """Return `copies` messages of each kind, mixed; `labs` gives a PENDING lab to each that names one."""
    return [
        _make(f"{run}-{copy}-{number}", name, kind, labs, image)
        for copy in range(copies)
        for number, (name, kind) in enumerate(KINDS.items())
    ]


def _make(task_id: str, name: str, kind: Kind, labs: Iterator[int], image: str) -> Poison:
    lab = next(labs) if kind.fails_its_lab else None
    headers = {"task": CREATE_LAB_POD, "id": task_id, "lang": "py", **kind.headers}
    body = _arguments(kind, lab, image) if kind.body is None else kind.body
    properties = pika.BasicProperties(
        headers=headers, content_type=kind.content_type, correlation_id=task_id, delivery_mode=2
    )
    return Poison(task_id, name, body, properties, lab)


def _arguments(kind: Kind, lab: int | None, image: str) -> bytes:
    if kind.headers.get("task") == DELETE_LAB_POD:
        # Of no lab: nobody would ask again for the stop of a real one.
        arguments = {"lab_instance_id": 2**62}
    else:
        arguments = create_kwargs(lab_instance_id=lab, docker_image=image)
    return json.dumps([[], {**arguments, **kind.arguments}, kind.embed]).encode()
