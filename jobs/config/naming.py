"""Name and label a lab's objects, and tell whose an object is.

A name is a DNS-1035 label of at most 63 characters, starts with `lab-instance-<id>-`, and is the
same for every attempt. Ids may come again after a restore of the database; the object label does not.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

MANAGED_BY = "autolabs-jobs"
#: An object of the API, as JSON.
Manifest = dict[str, Any]
SPEC_HASH = "autolabs.io/spec-hash"
#: Label that only this lab's objects have (jobs.database.object_label); a release before this one set none.
OBJECT = "autolabs.io/object"
_MAX_NAME = 63  # https://kubernetes.io/docs/concepts/overview/working-with-objects/names/


class LabIdentity(NamedTuple):
    """Labels that tell whose an object is: as ids begin at 1 everywhere, one alone proves nothing."""

    lab_instance_id: int
    lab_id: int
    student_id: int
    #: What an object has to carry if it carries the label at all; None: not known.
    object_label: str | None = None

    @property
    def numbers(self) -> tuple[int, int, int]:
        return self[:3]


#: The labels that every release has set.
NUMBERS = LabIdentity._fields[:3]


def image_base_name(image: str) -> str:
    """Return the last path component of an image reference, without tag and digest, DNS-safe."""
    last = image.split("@", 1)[0].rsplit("/", 1)[-1].split(":", 1)[0]
    return re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")


def lab_object_name(lab_instance_id: int, image: str) -> str:
    """Return the name that a lab's Pod, Service and NetworkPolicy share."""
    return f"lab-instance-{lab_instance_id}-{image_base_name(image)}"[:_MAX_NAME].rstrip("-")


def is_object_name(text: str) -> bool:
    """Tell whether an object can have this name: a row may say anything, and a path must not."""
    return len(text) <= _MAX_NAME and re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", text) is not None


def lab_labels(
    lab_instance_id: int, lab_id: int, student_id: int, object_label: str | None = None
) -> dict[str, str]:
    return {
        **({OBJECT: object_label} if object_label else {}),
        "lab_instance_id": str(lab_instance_id),
        "lab_id": str(lab_id),
        "student_id": str(student_id),
        "app.kubernetes.io/name": "lab",
        "app.kubernetes.io/instance": f"lab-instance-{lab_instance_id}",
        "app.kubernetes.io/component": "lab",
        "app.kubernetes.io/part-of": "autolabs",
        "app.kubernetes.io/managed-by": MANAGED_BY,
    }


def lab_selector(*lab_instance_ids: int) -> str:
    """Return the label selector for what we made for these labs, and for nothing of anybody else."""
    labs = ",".join(map(str, lab_instance_ids))
    which = f"lab_instance_id={labs}" if len(lab_instance_ids) == 1 else f"lab_instance_id in ({labs})"
    return f"{which},app.kubernetes.io/managed-by={MANAGED_BY}"


def lab_of(manifest: Manifest) -> str | None:
    """Return the label of an object that names its lab; None for an object that we did not make."""
    metadata = manifest.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    if not isinstance(labels, dict) or labels.get("app.kubernetes.io/managed-by") != MANAGED_BY:
        return None
    return labels.get("lab_instance_id")


def belongs_to_lab(manifest: Manifest, lab_instance_id: int) -> bool:
    """Tell whether an object carries our labels of this lab."""
    return lab_of(manifest) == str(lab_instance_id)


def belongs_to(manifest: Manifest, whose: LabIdentity) -> bool:
    """Tell whether an object carries our labels of this lab instance, lab and student."""
    if lab_of(manifest) is None:
        return False
    labels = manifest["metadata"]["labels"]
    same = all(labels.get(name) == str(value) for name, value in zip(NUMBERS, whose.numbers, strict=True))
    return same and not is_anothers(labels.get(OBJECT), whose.object_label)


def is_anothers(label: str | None, own: str | None) -> bool:
    """Tell by its object label that an object is another lab's, of the same id; without one it is not."""
    return bool(label and own) and label != own


def object_label_of(manifest: Manifest) -> str | None:
    """Return the object label that an object carries, or None."""
    label: str | None = (manifest["metadata"].get("labels") or {}).get(OBJECT)
    return label


def pod_selector(pod: Manifest) -> dict[str, str]:
    """Return the labels by which a lab's Service and NetworkPolicy select this Pod, and no other lab's."""
    labels = pod["metadata"]["labels"]
    return {name: labels[name] for name in ("lab_instance_id", OBJECT) if labels.get(name)}
