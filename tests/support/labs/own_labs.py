"""Labs of a module's own platform: asked for as a backend does, served by one container a task."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from urllib.request import urlopen

from dispatcher import Dispatcher
from dispatcher.broker import topology
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.waiting import eventually

#: Seconds after which something hangs, on however slow a machine.
HANGS_S = 180


@dataclass(frozen=True)
class OwnLabs:
    platform: OwnPlatform
    dispatcher: Dispatcher

    def ask_for(self) -> int:
        """Return a lab whose create waits for a container."""
        lab = self.platform.database.add_lab()
        self.dispatcher.create_lab(
            lab_instance_id=lab, lab_id=7, student_id=42, docker_image=os.environ["LAB_IMAGE"]
        )
        return lab

    def create(self) -> int:
        """Return a RUNNING lab."""
        lab = self.ask_for()
        self.serve(topology.QUEUE_NORMAL)
        assert self.status(lab) == "RUNNING", self.platform.database.lab(lab)
        return lab

    def delete(self, lab: int) -> None:
        self.dispatcher.delete_lab(lab_instance_id=lab, force=True)
        self.serve(topology.QUEUE_HIGH)
        assert self.status(lab) == "STOPPED"

    def serve(self, queue: str) -> None:
        assert self.platform.containers.start(queue=queue).wait(HANGS_S) == 0

    def status(self, lab: int) -> str:
        return str(self.platform.database.lab(lab)["status"])

    def name(self, lab: int) -> str:
        return str(self.platform.database.lab(lab)["k8s_pod_name"])

    def names_of(self, lab: int) -> list[str]:
        return self.platform.namespace.names_of(lab)

    def kubectl(self, *words: str, stdin: object = None) -> str:
        return self.platform.namespace.kubectl(*words, stdin=stdin)

    def specs_beside(self, lab: int) -> dict[str, object]:
        """Return kind -> spec and owner of what is beside the lab's Pod."""
        found = json.loads(
            self.kubectl(
                "get", "services,networkpolicies", f"--selector=lab_instance_id={lab}", "--output=json"
            )
        )
        return {item["kind"]: (item["spec"], item["metadata"]["ownerReferences"]) for item in found["items"]}

    def wait_answers(self, lab: int) -> None:
        """Wait until somebody answers at the URL in the lab's row."""
        url = self.platform.database.lab(lab)["connection_url"]

        def answers() -> bool:
            try:
                with urlopen(url, timeout=5) as answer:  # of a Service on this machine
                    return bool(answer.status == 200)
            except OSError:
                return False

        eventually(answers, HANGS_S, what=f"an answer at {url}")

    def wait_gone(self, *labs: int) -> None:
        """Wait until nothing of these labs is in the cluster."""
        eventually(
            lambda: not [name for lab in labs for name in self.names_of(lab)],
            HANGS_S,
            what=f"objects of {labs} gone",
        )

    def stray(self, name: str, like: int, **labels: str) -> None:
        """Make a Pod like that of a lab, without its Service and NetworkPolicy."""
        pod = json.loads(self.kubectl("get", "pod", self.name(like), "--output=json"))
        (container,) = pod["spec"]["containers"]
        spec = {
            "automountServiceAccountToken": False,
            "securityContext": pod["spec"]["securityContext"],
            "containers": [{key: container[key] for key in ("name", "image", "securityContext")}],
        }
        metadata = {"name": name, "labels": pod["metadata"]["labels"] | labels}
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        self.kubectl("create", "--filename=-", stdin=manifest)
