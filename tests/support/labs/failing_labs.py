"""Cases of labs that fail in the cluster: their image, their program, room, what the API server refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from dispatcher import DELETE_LAB_POD
from dispatcher.broker import topology
from jobs.config.naming import lab_labels
from jobs.failures import Failure
from tests.support.cluster.own_namespace import kubectl
from tests.support.labs.failing import Case, Manifest, Scene, change_container, change_pod

#: Of the LimitRange and the quota of the cases' namespace: the one to run into, the other not to.
MOST_MEMORY, MOST_CPU = "1Gi", "2000"

_SOON = {"ready_timeout_s": 3}
_HUGE = {"max_resources": {"cpu": MOST_CPU, "memory": "8Gi", "storage": "10Gi"}, "cpu_request_ratio": 1.0}
_NOWHERE = {"nodeSelector": {"autolabs.io/no-such-node": "yes"}}


def _shell(command: str) -> Callable[[Manifest], None]:
    return change_container(command=["/bin/sh", "-c", command])


def operators_pod(name: str, labels: dict[str, str] | None = None, **spec: Any) -> Manifest:
    """Return a Pod of an operator that Pod Security lets pass; without a spec no node takes it."""
    container = {
        "name": "x",
        "image": os.environ["LAB_IMAGE"],
        "command": ["/bin/busybox", "sleep", "1000"],  # which as process 1 does not heed SIGTERM
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    restricted = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"securityContext": restricted, "containers": [container], **(spec or _NOWHERE)},
    }


def _on_the_node(pod: Manifest) -> None:
    """Go past the scheduler, so that the kubelet has to refuse."""
    pod["spec"]["nodeName"] = kubectl("get", "nodes", "--output=jsonpath={.items[0].metadata.name}")


def _take_name(scene: Scene) -> None:
    scene.kubectl("create", "--filename=-", stdin=operators_pod(scene.pod_name))


def _remove_pod(scene: Scene) -> None:
    scene.wait_for_step("applied")
    scene.kubectl("delete", "pod", scene.pod_name, "--wait=false")


def _evict(scene: Scene) -> None:
    """Ask for the Pod's eviction as a drain of its node does."""
    scene.wait_for_step("applied")
    metadata = {"name": scene.pod_name, "namespace": scene.platform.namespace.name}
    path = f"{scene.platform.namespace.collections['Pod']}/{scene.pod_name}/eviction"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    kubectl("create", "--raw", path, "--filename=-", stdin=eviction)


def _end_for_room(scene: Scene) -> None:
    """Write what a kubelet without memory writes; this Pod has none that would object."""
    scene.wait_for_step("applied")
    status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
    patch = json.dumps({"status": status})
    scene.kubectl("patch", "pod", scene.pod_name, "--subresource=status", f"--patch={patch}")


def _start_slow_stopper(scene: Scene) -> None:
    labels = lab_labels(scene.lab, 7, 42)
    scene.kubectl(
        "create",
        "--filename=-",
        stdin=operators_pod(scene.pod_name, labels, terminationGracePeriodSeconds=75),
    )
    scene.kubectl("wait", "--for=condition=Ready", f"pod/{scene.pod_name}", "--timeout=90s")


def _publish_delete(scene: Scene) -> str:
    return scene.platform.broker.publish_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": scene.lab})


def _pass_kubeconfig(scene: Scene) -> None:
    scene.environ["KUBECONFIG"] = os.environ["KUBECONFIG"]
    # Without a HOME kubectl keeps what it learnt in the folder that it is started in.
    scene.environ["KUBECACHEDIR"] = scene.platform.containers.folder / "kubectl"


#: The slowest first, as they are played several at a time.
LABS: dict[str, Case] = {
    "a pod that does not stop": Case(
        failure=Failure.SLOW_STOP,
        module="tests.support.containers.odd_job",
        environ={"TEST_ODDITY": "hasty"},
        before=_start_slow_stopper,
        publish=_publish_delete,
        queue=topology.QUEUE_HIGH,
        says="still there: Pod lab-instance-",
    ),
    "a program that fills its disk": Case(
        failure=Failure.OUT_OF_DISK,
        pod=_shell("/bin/busybox dd if=/dev/zero of=/tmp/x bs=1M count=100; exec /bin/busybox sleep 600"),
        settings={"ready_timeout_s": 120},
        says='Usage of EmptyDir volume "tmp" exceeds the limit "64Mi"',
    ),
    "a program that does not listen": Case(
        failure=Failure.DOES_NOT_ANSWER,
        pod=change_container(command=["/bin/busybox", "sleep", "600"]),
        # It must run for most of it, on a busy node too, or it is called slow.
        settings={"ready_timeout_s": 30},
        says="not Ready after 30 s",
    ),
    "a registry that never answers": Case(
        failure=Failure.SLOW_START,
        image="{silent}/labs/lab:1",
        # Its Pod must be on the node by then, which is full for a moment when other tests fill it.
        settings={"ready_timeout_s": 20},
        says="after 20 s: ContainerCreating",
    ),
    # Image.
    "an image that is not in the registry": Case(
        failure=Failure.IMAGE_NOT_LOADABLE,
        image="{answering}/labs/nothing:1",
        says="/labs/nothing:1: not found",
    ),
    "a private image": Case(
        failure=Failure.IMAGE_NOT_LOADABLE,
        image="{answering}/private/lab:1",
        says="401 Unauthorized",
    ),
    "an image that is denied": Case(
        failure=Failure.IMAGE_NOT_LOADABLE,
        image="{answering}/denied/lab:1",
        says="403 Forbidden",
    ),
    "a registry that is busy": Case(
        failure=Failure.REGISTRY_AWAY,
        image="{answering}/busy/denied:not-found",
        says="503 Service Unavailable",
    ),
    "a registry that limits": Case(
        failure=Failure.REGISTRY_AWAY,
        image="{answering}/limited/lab:1",
        says="429 Too Many Requests",
    ),
    "a registry that is away": Case(
        failure=Failure.REGISTRY_AWAY,
        image="{absent}/labs/forbidden:denied",
        says="connection refused",
    ),
    "an image name that is too long": Case(
        failure=Failure.IMAGE_NAME_INVALID,
        image="registry.gitlab.com/" + "/".join(["labs"] * 60) + ":1",
        says="InvalidImageName",
    ),
    "an image that may not be pulled": Case(
        failure=Failure.IMAGE_NOT_ON_SERVER,
        image="registry.gitlab.com/autolabs/labs/nowhere:1",
        pod=change_container(imagePullPolicy="Never"),
        says="ErrImageNeverPull",
    ),
    # Program.
    "a program that ends with an error": Case(
        failure=Failure.PROGRAM_ENDS,
        pod=_shell("echo no licence; exit 1"),
        says="CrashLoopBackOff",
    ),
    "a program that ends without an error": Case(
        failure=Failure.PROGRAM_ENDS,
        pod=_shell("exit 0"),
        says="CrashLoopBackOff",
    ),
    "a program of another format": Case(
        failure=Failure.PROGRAM_ENDS,
        pod=change_container(command=["/start.sh"]),
        says="CrashLoopBackOff",
    ),
    "a program that ends for good": Case(
        failure=Failure.PROGRAM_ENDS,
        pod=lambda pod: (_shell("exit 3")(pod), change_pod(restartPolicy="Never")(pod)),
        says="phase Failed",
    ),
    "a program that eats memory": Case(
        failure=Failure.OUT_OF_MEMORY,
        pod=change_container(command=["/bin/busybox", "tail", "/dev/zero"]),
        payload={"resources": {"memory": "24Mi"}},
        says="CrashLoopBackOff",
    ),
    "a command that does not exist": Case(
        failure=Failure.PROGRAM_NOT_STARTED,
        pod=change_container(command=["/no/such/program"]),
        says="stat /no/such/program: no such file or directory",
    ),
    "a seccomp profile that the node lacks": Case(
        failure=Failure.CONTAINER_NOT_CREATED,
        pod=change_container(
            securityContext={
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "Localhost", "localhostProfile": "no-such.json"},
            }
        ),
        says="CreateContainerError: ",
    ),
    "a program that wants to be root": Case(
        failure=Failure.CONTAINER_NOT_ALLOWED,
        pod=change_container(securityContext={"runAsUser": 0}),
        says="CreateContainerConfigError: container's runAsUser breaks non-root policy",
    ),
    "a ConfigMap that is missing": Case(
        failure=Failure.TEMPLATE_INVALID,
        pod=change_container(
            env=[{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "no-such", "key": "x"}}}]
        ),
        says='CreateContainerConfigError: configmap "no-such" not found',
    ),
    # Room.
    "more cpu than a node has": Case(
        failure=Failure.NO_ROOM,
        payload={"resources": {"cpu": "500"}},
        settings=_SOON | _HUGE,
        says="Insufficient cpu",
    ),
    "no node with its label": Case(
        failure=Failure.NO_FITTING_SERVER,
        pod=change_pod(**_NOWHERE),
        settings=_SOON,
        says="didn't match Pod's node affinity/selector",
    ),
    "a node that refuses the pod": Case(
        failure=Failure.NODE_ENDED_IT,
        payload={"resources": {"cpu": "500"}},
        settings=_HUGE,
        pod=_on_the_node,
        says="OutOfcpu",
    ),
    "a node without memory": Case(
        failure=Failure.NODE_ENDED_IT,
        pod=change_pod(**_NOWHERE),
        meanwhile=_end_for_room,
        says="phase Failed Evicted The node was low on resource",
    ),
    "a pod that is evicted": Case(
        failure=Failure.REMOVED_MEANWHILE,
        pod=change_pod(**_NOWHERE),
        meanwhile=_evict,
        says="its pod was deleted while it started",
    ),
    "a pod that is deleted": Case(
        failure=Failure.REMOVED_MEANWHILE,
        pod=change_pod(**_NOWHERE),
        meanwhile=_remove_pod,
        says="its pod was deleted while it started",
    ),
    "a pod that somebody else makes and removes": Case(
        failure=Failure.CHANGED_MEANWHILE,
        module="tests.support.containers.odd_job",
        before=_pass_kubeconfig,
        environ={"TEST_ODDITY": "rival"},
        says="comes and goes",
    ),
    # What the API server refuses.
    "a name that is taken": Case(
        failure=Failure.NAME_TAKEN,
        before=_take_name,
        says="is not managed by autolabs-jobs",
    ),
    "a limit beyond the LimitRange": Case(
        failure=Failure.CLUSTER_REFUSES_LAB,
        payload={"resources": {"memory": "2Gi"}},
        says=f"maximum memory usage per Container is {MOST_MEMORY}",
    ),
    "a pod that Pod Security refuses": Case(
        failure=Failure.CLUSTER_REFUSES_LAB,
        pod=change_container(securityContext={"privileged": True}),
        says='violates PodSecurity "baseline:latest"',
    ),
    "a field that does not exist": Case(
        failure=Failure.CLUSTER_REFUSES_LAB,
        pod=change_container(imagePolicy="Never"),
        says='unknown field "spec.containers[0].imagePolicy"',
    ),
}
