"""Start a lab (celery_workers.create_lab_pod): from PENDING it becomes RUNNING, or FAILED with a reason."""

from __future__ import annotations

import logging

from dispatcher.tasks import CreateLabPod, payload_kwargs
from jobs.cluster.client import Manifest
from jobs.cluster.lab_objects import LabGone
from jobs.config import naming
from jobs.config.lab_settings import LabSettings
from jobs.config.lab_url import lab_url
from jobs.config.manifests import LabManifests, make_lab_manifests
from jobs.config.stored import Configs
from jobs.database.lab_rows import LabState
from jobs.database.lab_store import lab_result
from jobs.database.ledger import Ending
from jobs.errors import TransientError
from jobs.failures import Failure, objects_left
from jobs.handlers.context import TaskContext
from jobs.steps import mark, reached
from jobs.waiting import wait_answers

logger = logging.getLogger(__name__)

#: Seconds; the deadline of the container (keda.profiles) has room for this and for what surrounds it.
MAX_READY_TIMEOUT_S = 240


def create_lab(context: TaskContext, payload: CreateLabPod) -> None:
    """Start the lab unless it was stopped, failed or started already.

    A JobError leaves the lab PENDING and its objects as they are: another attempt adopts them, and
    jobs.handlers.give_up takes them down when there is none.
    """
    lab = context.need_lab(payload.lab_instance_id)
    if lab.should_start:
        _check_whose(payload, lab)
    own_name = naming.lab_object_name(payload.lab_instance_id, payload.docker_image)
    if lab.should_start and (
        lab.starting_run is None
        or context.labs.take_over(context.record, payload.lab_instance_id, pod_name=own_name)
    ):
        _start(context, payload, lab)
        return
    if lab.objects_to_keep == own_name:
        _end_without(context, payload, lab)
    else:
        # An attempt of ours may have died between making objects and finding this out.
        try:
            _take_down(context, payload, lab)
            _end_without(context, payload, lab)
        except TransientError as exc:
            raise objects_left(exc) from exc
    state = "stop requested" if lab.stop_requested else lab.status
    logger.info("nothing to create: lab is %s", state, extra={"action": "create_noop"})


def _check_whose(payload: CreateLabPod, lab: LabState) -> None:
    """Refuse a task that names another lab or student than the row: labels and limits go by both."""
    for name in ("lab_id", "student_id"):
        said, is_so = getattr(payload, name), getattr(lab, name)
        if said != is_so:
            problem = f"{name}: {said} is not that of the lab in the database, which is {is_so}"
            raise Failure.REQUEST_INVALID.error(problem=problem)


def _start(context: TaskContext, payload: CreateLabPod, lab: LabState) -> None:
    # By which the lab can be started again should its Pod be lost (jobs.database.restarts).
    context.record.details["request"] = payload_kwargs(payload)
    settings = context.configs.lab_settings()
    settings.check_image(payload.docker_image)
    manifests = make_manifests(
        context.configs,
        settings,
        payload,
        namespace=context.settings.namespace,
        object_label=lab.object_label,
    )
    name: str = manifests.pod["metadata"]["name"]
    mark(context.record, "rendered")
    # A lack of room is often over once a node was added: later attempts wait longer.
    timeout_s = min(settings.ready_timeout_s * context.record.attempt, MAX_READY_TIMEOUT_S)

    def take_over() -> None:
        # What another create of this lab made RUNNING meanwhile, or is replacing, is not ours to replace.
        _check_wanted(context, payload.lab_instance_id)
        if not context.labs.take_over(context.record, payload.lab_instance_id, pod_name=name):
            raise _NotWanted

    def meanwhile() -> None:
        try:
            _check_wanted(context, payload.lab_instance_id)
        except TransientError as exc:
            # Without an answer the lab is still wanted: a Pod that starts well must not be lost for it.
            extra = {"action": "not_asked", "evidence": exc.evidence}
            logger.warning("whether the lab is still wanted is not known", extra=extra)

    try:
        pod, service = context.lab_objects.ensure(
            payload.lab_instance_id, manifests, before_replacing=take_over
        )
        mark(context.record, "applied")
        context.lab_objects.wait_ready(pod, payload.docker_image, timeout_s=timeout_s, meanwhile=meanwhile)
        mark(context.record, "ready")
        _wait_answers(context, service)
        url = lab_url(settings.connection_url, service, payload.lab_instance_id)
        reached("committing")
        if not context.labs.mark_running(
            context.record, payload.lab_instance_id, pod_name=name, connection_url=url
        ):
            raise _NotWanted
    except LabGone:
        _give_up(context, payload, name, "its pod was deleted while it started")
    except _NotWanted:
        _give_up(context, payload, name, "it was stopped while it started")
    else:
        mark(context.record, "running")
        extra = {"action": "lab_running", "pod": name, "connection_url": url}
        logger.info("lab is RUNNING", extra=extra)


def make_manifests(
    configs: Configs,
    settings: LabSettings,
    payload: CreateLabPod,
    *,
    namespace: str,
    object_label: str | None,
) -> LabManifests:
    """Return a lab's objects by the templates of now. Raises JobError."""
    return make_lab_manifests(
        payload,
        settings,
        namespace=namespace,
        pod_template=configs.pod_template(),
        network_policy_template=configs.network_policy_template(),
        object_label=object_label,
    )


def _wait_answers(context: TaskContext, service: Manifest) -> None:
    cluster_ip, port = service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]
    if wait_answers(cluster_ip, port):
        mark(context.record, "answers")
    else:
        extra = {"action": "not_answering", "service": cluster_ip}
        logger.warning("service does not answer yet, though its pod is Ready", extra=extra)


class _NotWanted(Exception):
    """Raised when the lab was stopped, or taken over by another create, while this one was at it."""


def _check_wanted(context: TaskContext, lab_instance_id: int) -> None:
    """Raise when nobody wants the lab any more: its delete may still wait in a queue."""
    lab = context.find_lab(lab_instance_id)
    if lab is not None and lab.cancelled:
        raise Failure.CANCELLED.error(evidence="cancelled while it started")
    if lab is None or not lab.should_start:
        raise _NotWanted


def _give_up(context: TaskContext, payload: CreateLabPod, pod_name: str, why: str) -> None:
    """Take down what was made for a lab that is no longer wanted, or try again if it still is."""
    lab = context.find_lab(payload.lab_instance_id)
    if lab is not None and lab.should_start:
        if lab.cancelled:
            raise Failure.CANCELLED.error(evidence="cancelled while it started")
        if lab.starting_run in (None, context.record.run_id):
            raise Failure.REMOVED_MEANWHILE.error(evidence=why)
        why = "another create took it over"
    if lab is None or lab.objects_to_keep != pod_name:
        _take_down(context, payload, lab)
    _end_without(context, payload, lab)
    logger.info("lab was not started: %s", why, extra={"action": "create_superseded"})


def _take_down(context: TaskContext, payload: CreateLabPod, lab: LabState | None) -> None:
    from jobs.handlers.give_up import take_down  # which no lab that starts needs

    take_down(context, payload.lab_instance_id, lab)


def _end_without(context: TaskContext, payload: CreateLabPod, lab: LabState | None) -> None:
    result = lab_result(payload.lab_instance_id, lab) if lab else None
    context.labs.record(context.record, Ending("noop", result=result))
