"""Make the Service or the NetworkPolicy of a RUNNING lab again, for jobs.verify.repairs.

It is as the lab's request in the ledger and the templates of now say; a Service gets the address that the
student knows, if that is still free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dispatcher.errors import InvalidTask
from dispatcher.tasks import CreateLabPod
from jobs.cluster.client import Manifest
from jobs.cluster.lab_objects import LabObjects
from jobs.config.lab_settings import LabSettings
from jobs.config.lab_url import address_in, lab_url, names_address
from jobs.config.manifests import LabManifests
from jobs.config.naming import LabIdentity, belongs_to
from jobs.config.stored import Configs
from jobs.database.lab_rows import LabState
from jobs.database.lab_store import LabStore
from jobs.database.ledger import last_request
from jobs.errors import PermanentError
from jobs.failures import Failure
from jobs.handlers.create import make_manifests


class CannotRebuild(Exception):
    """Raised with the reason why an object can never be made again; nothing was made."""


class RefusedByCluster(CannotRebuild):
    """Raised with the words of the API server: what it refuses may be the lab's, or everybody's."""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Make objects of labs in one namespace again."""

    labs: LabStore
    objects: LabObjects
    #: Called for each lab; raises JobError where there are none.
    configs: Callable[[], Configs]
    namespace: str

    def __call__(self, whose: LabIdentity, kind: str) -> str | None:
        """Make a Service or NetworkPolicy again, and return what was done; None: the lab has changed since.

        Raises:
            CannotRebuild: its request is not known, or the cluster refuses the object.
            JobError: a server is away or refuses access, or the templates are missing or have an error.
        """
        lab = self.labs.find(whose.lab_instance_id)
        pod = self.objects.find_pod(lab.k8s_pod_name or "") if lab and lab.runs else None
        if lab is None or pod is None or not belongs_to(pod, whose) or "deletionTimestamp" in pod["metadata"]:
            return None
        whose = whose._replace(object_label=lab.object_label)
        if not belongs_to(pod, whose):  # the id has come again since the row was read
            return None
        manifests, settings = self._manifests(whose, lab.k8s_pod_name)
        if kind == "NetworkPolicy":
            return "made it again" if self._create(pod, manifests.network_policy) else None
        service = self._create_service(pod, manifests.service, address_in(lab.connection_url))
        if service is None:
            return None
        url = lab_url(settings.connection_url, service, whose.lab_instance_id)
        if url == lab.connection_url:
            return "made it again"
        if not self._change_url(whose, lab, url):
            return None
        return f"made it again, the lab is at {url} now"

    def correct_url(self, whose: LabIdentity, seen: str | None) -> str | None:
        """Write a lab's URL by its Service's address of now; None: the lab has changed since, or all is well.

        Raises JobError: a server is away or refuses access, or the settings are missing or have an error.
        """
        lab = self.labs.find(whose.lab_instance_id)
        if lab is None or not lab.runs or lab.connection_url != seen or lab.k8s_pod_name is None:
            return None
        service = self.objects.find_named("Service", lab.k8s_pod_name)
        own = whose._replace(object_label=lab.object_label)
        if service is None or not belongs_to(service, own):
            return None
        settings = self.configs().lab_settings()
        url = lab_url(settings.connection_url, service, whose.lab_instance_id)
        if not names_address(settings.connection_url) or url == seen:
            return None
        return f"the lab is at {url} now" if self._change_url(whose, lab, url) else None

    def _change_url(self, whose: LabIdentity, lab: LabState, url: str) -> bool:
        return self.labs.change_url(
            whose.lab_instance_id, pod_name=lab.k8s_pod_name, seen=lab.connection_url, connection_url=url
        )

    def _manifests(self, whose: LabIdentity, pod_name: str | None) -> tuple[LabManifests, LabSettings]:
        request = self.labs.at_once(lambda cursor: last_request(cursor, whose.lab_instance_id))
        if request is None:
            raise CannotRebuild("the ledger does not say what was asked for")
        configs = self.configs()
        try:
            payload = CreateLabPod(**request)
        except (InvalidTask, TypeError) as exc:
            raise CannotRebuild(f"what was asked for is not valid any more: {exc}") from exc
        settings = configs.lab_settings()
        manifests = make_manifests(
            configs, settings, payload, namespace=self.namespace, object_label=whose.object_label
        )
        asked_for = (payload.lab_instance_id, payload.lab_id, payload.student_id)
        if asked_for != whose.numbers or manifests.pod["metadata"]["name"] != pod_name:
            raise CannotRebuild("the ledger knows another request than that of its Pod")
        return manifests, settings

    def _create_service(self, pod: Manifest, manifest: Manifest, address: str | None) -> Manifest | None:
        if address is not None:
            try:
                there = {**manifest, "spec": {**manifest["spec"], "clusterIP": address}}
                return self._create(pod, there)
            except CannotRebuild:  # taken by now, or of no range of this cluster
                pass
        return self._create(pod, manifest)

    def _create(self, pod: Manifest, manifest: Manifest) -> Manifest | None:
        try:
            return self.objects.create_beside(pod, manifest)
        except PermanentError as exc:
            if exc.failure is not Failure.CLUSTER_REFUSES_LAB:
                raise
            raise RefusedByCluster(exc.evidence) from exc
