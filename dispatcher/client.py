"""The backend's entry point: build a task, validate it, publish it confirmed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from dispatcher import message, tasks
from dispatcher.errors import InvalidTask
from dispatcher.publisher import Publisher
from dispatcher.settings import BrokerSettings, read_settings


class Dispatcher:
    """Publish lab tasks; one instance per process is enough, shared by its threads.

    Every method returns the task id, which belongs in `lab_instances.celery_task_id`. An
    argument that is not acceptable raises InvalidTask (a ValueError) before anything is sent;
    a publish that is not confirmed raises NotConfirmed or Unroutable.
    """

    def __init__(self, amqp_url: str | None = None, *, settings: BrokerSettings | None = None) -> None:
        """Take a broker URL or settings; with neither, AMQP_URL is read from the environment."""
        if settings is None:
            environ = os.environ if amqp_url is None else {**os.environ, "AMQP_URL": amqp_url}
            settings = read_settings(environ, BrokerSettings.from_environment)
        self._publisher = Publisher(settings)

    def create_lab(
        self,
        *,
        lab_instance_id: int,
        lab_id: int,
        student_id: int,
        docker_image: str,
        resources: Mapping[str, str] | None = None,
        network_isolated: bool = True,
        task_id: str | None = None,
    ) -> str:
        """Ask for a lab to be started; its row must be committed as PENDING before."""
        payload = tasks.CreateLabPod(
            lab_instance_id=lab_instance_id,
            lab_id=lab_id,
            student_id=student_id,
            docker_image=docker_image,
            # What is no mapping goes on as it is, to be refused by name.
            resources=dict(resources or {}) if isinstance(resources, Mapping | None) else resources,
            network_isolated=network_isolated,
        )
        return self._publish(payload, task_id)

    def delete_lab(
        self,
        *,
        lab_instance_id: int,
        k8s_pod_name: str | None = None,
        force: bool = False,
        task_id: str | None = None,
    ) -> str:
        """Ask for a lab to be stopped; deleting one that is already gone succeeds."""
        payload = tasks.DeleteLabPod(lab_instance_id=lab_instance_id, k8s_pod_name=k8s_pod_name, force=force)
        return self._publish(payload, task_id)

    def send_task(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        task_id: str | None = None,
    ) -> str:
        """Publish a task by its Celery name, as `celery_app.send_task` would."""
        return self._publish(tasks.parse_payload(name, args, kwargs), task_id)

    def close(self) -> None:
        """Close the connection; the next publish opens a new one."""
        self._publisher.close()

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _publish(self, payload: tasks.Payload, task_id: str | None) -> str:
        if task_id is not None and not (task_id and message.is_short_text(task_id)):
            raise InvalidTask("task_id", f"{task_id!r:.80} must be a printable text of 1 to 255 bytes")
        task = message.TaskMessage(
            name=payload.task_name,
            id=task_id or message.new_task_id(),
            kwargs=tasks.payload_kwargs(payload),
        )
        self._publisher.publish_task(task)
        return task.id
