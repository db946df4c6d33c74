"""RUNNING labs on the real cluster that break when they are told to, and health checks as real processes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import yaml

from dispatcher.broker.topology import QUEUE_HIGH, QUEUE_NORMAL
from dispatcher.tasks import CREATE_LAB_POD, HEALTH_CHECK_PODS
from jobs.config.manifests import POD_TEMPLATE
from jobs.config.naming import lab_object_name
from jobs.config.stored import DEFAULTS, LIFE_SETTINGS
from tests.support.cluster.fake_nodes import FakeNodes
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.containers.container import Process
from tests.support.factories import create_kwargs
from tests.support.labs.many_labs import lab_manifests
from tests.support.waiting import eventually

#: Seconds after which something hangs, on however slow a machine.
HANGS_S = 180
Manifest = dict[str, Any]

#: A lab that serves, and does what a file in its workspace is called; that stays over restarts.
PROGRAM = """
b=/bin/busybox; w=/workspace
misbehave() {
  if [ -e $w/crash ]; then exit 3; fi
  if [ -e $w/eat ]; then exec $b tail /dev/zero; fi
  if [ -e $w/eat-once ]; then $b rm $w/eat-once; exec $b tail /dev/zero; fi
  if [ -e $w/fill ]; then $b dd if=/dev/zero of=/tmp/x bs=1M count=100; $b rm $w/fill; fi
}
misbehave
$b httpd -f -p 8080 -h /workspace & server=$!
while :; do
  misbehave
  if [ -e $w/silent ]; then $b kill $server; exec $b sleep 1000; fi
  $b sleep 0.2
done
"""


@dataclass
class BreakableLabs:
    """Labs of one platform."""

    platform: OwnPlatform

    def start(self, count: int = 1, **spec: Any) -> list[int]:
        """Start labs as a backend does; `spec` changes that of their Pods."""
        documents = list(yaml.safe_load_all((DEFAULTS / POD_TEMPLATE).read_bytes()))
        documents[0]["spec"] |= spec
        documents[0]["spec"]["containers"][0]["command"] = ["/bin/sh", "-c", PROGRAM]
        self.platform.bucket.put(POD_TEMPLATE, yaml.safe_dump_all(documents).encode())
        labs = [self.platform.database.add_lab() for _ in range(count)]
        for lab in labs:
            kwargs = create_kwargs(lab_instance_id=lab, docker_image=os.environ["LAB_IMAGE"])
            self.platform.broker.publish_task(kwargs={**kwargs, "resources": {"memory": "32Mi"}})
        for container in [self.platform.containers.start() for _ in labs]:
            assert container.wait(HANGS_S) == 0
        while "PENDING" in self.statuses(labs):
            # A message of an earlier test was before theirs: a race may leave one.
            assert "no message" not in self.serve().log.read_text()
        assert self.statuses(labs) == ["RUNNING"] * count
        return labs

    def serve(self, queue: str = QUEUE_NORMAL) -> Process:
        """Let a container take one message."""
        container = self.platform.containers.start(queue=queue)
        assert container.wait(HANGS_S) == 0, container.log.read_text()
        return container

    def start_on(self, nodes: FakeNodes, node: str) -> int:
        """Return a RUNNING lab on a fake node; its create asked for what it has."""
        database, namespace = self.platform.database, self.platform.namespace
        lab = database.add_lab(status="RUNNING", connection_url="http://10.0.0.1/")
        earlier = "UPDATE lab_instances SET k8s_pod_name = %s, updated_at = now() - interval '1 minute'"
        database.rows(f"{earlier} WHERE id = %s", self.name(lab), lab)
        request = {
            "lab_instance_id": lab,
            "lab_id": 7,
            "student_id": 42,
            "docker_image": os.environ["LAB_IMAGE"],
        }
        database.rows(
            "INSERT INTO task_ledger (task_id, task_name, lab_instance_id, attempt, redelivered, queue,"
            " claimed_at, finished_at, outcome, details) SELECT 'c', %s, %s, 1, false, 'q', earlier, earlier,"
            " 'succeeded', %s FROM (SELECT now() - interval '1 minute' AS earlier) AS clock",
            CREATE_LAB_POD,
            lab,
            json.dumps({"request": request}),
        )
        pod = nodes.bound(lab_manifests(lab, namespace.name).pod, node)
        namespace.kubectl("create", "--filename=-", stdin=pod)
        eventually(lambda: self.ready(lab) == "True", HANGS_S, what=f"lab {lab} Ready on {node}")
        return lab

    def stop(self, *labs: int) -> None:
        """Let labs be over, for checks that are not about them."""
        for lab in labs:
            self.platform.database.rows("UPDATE lab_instances SET status = 'STOPPED' WHERE id = %s", lab)
            pod = f"pod/{self.name(lab)}"
            force = ("--grace-period=0", "--force", "--wait=false", "--ignore-not-found")
            self.platform.namespace.kubectl("delete", pod, *force)

    def tell(self, lab: int, what: str) -> None:
        """Let a lab misbehave."""
        file = f"/workspace/{what}"
        self.platform.namespace.kubectl("exec", self.name(lab), "--", "/bin/busybox", "touch", file)

    def name(self, lab: int) -> str:
        return lab_object_name(lab, os.environ["LAB_IMAGE"])

    def pod(self, lab: int) -> Manifest:
        namespace = self.platform.namespace
        found = namespace.cluster.get(f"{namespace.collections['Pod']}/{self.name(lab)}")
        assert found is not None, f"lab {lab} has no Pod"
        return found

    def container(self, lab: int) -> Manifest:
        """Return the status of a lab's container."""
        return dict(self.pod(lab)["status"]["containerStatuses"][0])

    def ready(self, lab: int) -> str:
        conditions = self.pod(lab)["status"].get("conditions", [])
        return next((str(one["status"]) for one in conditions if one["type"] == "Ready"), "")

    def wait_gone(self, lab: int) -> None:
        """Wait until nothing of a lab is in the cluster."""
        eventually(lambda: not self.platform.namespace.objects_of(lab), HANGS_S, what=f"lab {lab} gone")

    def set(self, **settings: object) -> None:
        """Change the settings of labs that run."""
        self.platform.bucket.put(LIFE_SETTINGS, yaml.safe_dump({"unready_limit_s": 120, **settings}).encode())

    def statuses(self, labs: list[int]) -> list[str]:
        return [self.platform.database.lab(lab)["status"] for lab in labs]

    def run_of(self, lab: int) -> dict[str, Any]:
        """Return the ledger row of the check that failed a lab."""
        (row,) = self.platform.database.rows(
            "SELECT * FROM task_ledger WHERE lab_instance_id = %s AND task_name = %s", lab, HEALTH_CHECK_PODS
        )
        return row

    def cause(self, lab: int) -> str:
        """Return why a check failed a lab, after a look at all that has to follow from it."""
        row = self.platform.database.lab(lab)
        assert (row["status"], row["connection_url"]) == ("FAILED", None)
        run = self.run_of(lab)
        assert run["outcome"] == "succeeded"
        assert run["details"]["seen"]
        told = self.platform.database.rows(
            "SELECT cause, message FROM notifications WHERE event_type = 'lab.failed'"
            " AND lab_instance_id = %s",
            lab,
        )
        assert [one["cause"] for one in told] == [run["details"]["cause"]]
        assert row["error_message"].startswith(told[0]["message"])
        self.wait_gone(lab)
        return str(run["details"]["cause"])

    def begin_check(self, *words: str, **environ: Any) -> Process:
        """Start a check as its CronJob does."""
        return self.platform.containers.start(module=" ".join(("cronjobs", "health", *words)), **environ)

    def check(self, *words: str, code: int = 0, **environ: Any) -> dict[str, Any]:
        """Run a check as its CronJob does; return its last line."""
        process = self.begin_check(*words, **environ)
        assert process.wait(HANGS_S) == code, process.log.read_text()
        return process.lines()[-1]

    def check_by_message(self) -> dict[str, Any]:
        """Run a check as a message; return its result from the ledger."""
        task_id = self.platform.broker.publish_task(name=HEALTH_CHECK_PODS, kwargs={})
        self.serve(QUEUE_HIGH)
        (row,) = self.platform.database.rows("SELECT * FROM task_ledger WHERE task_id = %s", task_id)
        return dict(row["details"]["result"])
