"""Build a task, validate it, publish it confirmed, ask what became of it: the backend's entry point."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dispatcher import lab_time, tasks
from dispatcher.errors import InvalidTask, PublishError, needs_extra
from dispatcher.forks import call_in_forked_children
from dispatcher.handle import TaskHandle, wait_seconds
from dispatcher.message.request import Results, TaskPublisher, TaskRequest
from dispatcher.settings import BrokerSettings, database_url, read_settings
from dispatcher.task_status import TaskStatus

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from dispatcher.lab_time import LabTime
    from dispatcher.outbox.relay import RelayReport


@dataclass(frozen=True, slots=True)
class SendResult:
    """One task of `send_many`: confirmed, or why not."""

    task_id: TaskHandle
    error: PublishError | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


class Dispatcher:
    """Publish lab tasks; one instance per process is enough, shared by its threads.

    Sends return the task id, which belongs in `lab_instances.celery_task_id`, as a TaskHandle. An
    argument that is not acceptable raises InvalidTask (a ValueError) before anything is sent;
    a publish that is not confirmed raises NotConfirmed or Unroutable.
    """

    def __init__(
        self,
        amqp_url: str | None = None,
        *,
        database: str | Engine | None = None,
        settings: BrokerSettings | None = None,
    ) -> None:
        """Take where the broker and the platform's database are; nothing is connected to yet.

        Args:
            amqp_url: amqp(s)://user:password@host:port/vhost; AMQP_URL of the environment if left out.
            database: a postgresql:// URL or an Engine of the backend's, for results and the outbox;
                DATABASE_URL of the environment if left out, read when first needed.
            settings: the broker with its timeouts, instead of `amqp_url`.
        """
        if settings is None:
            environ = os.environ if amqp_url is None else {**os.environ, "AMQP_URL": amqp_url}
            settings = read_settings(environ, BrokerSettings.from_environment)
        # A process that only imports the package does not pay for pika.
        from dispatcher.broker.publisher import Publisher

        self._publisher: TaskPublisher = Publisher(settings)
        if isinstance(database, str):
            given = {"DATABASE_URL": database, "CA_FILE": settings.ca_file}
            database = read_settings(given, database_url)
        self._database = database
        self._engine: Engine | None = None
        self._results: Results | None = None
        self._opening = threading.RLock()
        call_in_forked_children(self._renew_lock)

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
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
    ) -> TaskHandle:
        """Ask for a lab to be started; its row must be committed as PENDING before.

        `countdown` and a numeric `expires` are seconds from now; see TaskRequest.
        """
        payload = tasks.CreateLabPod(
            lab_instance_id=lab_instance_id,
            lab_id=lab_id,
            student_id=student_id,
            docker_image=docker_image,
            resources=tasks.own_mapping(resources),
            network_isolated=network_isolated,
        )
        return self._send(TaskRequest(payload, task_id, countdown, eta, expires))

    def delete_lab(
        self,
        *,
        lab_instance_id: int,
        k8s_pod_name: str | None = None,
        force: bool = False,
        task_id: str | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
    ) -> TaskHandle:
        """Ask for a lab to be stopped; deleting one that is already gone succeeds."""
        payload = tasks.DeleteLabPod(lab_instance_id=lab_instance_id, k8s_pod_name=k8s_pod_name, force=force)
        return self._send(TaskRequest(payload, task_id, countdown, eta, expires))

    def scale_lab(
        self,
        *,
        lab_instance_id: int,
        new_resources: Mapping[str, str],
        task_id: str | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
    ) -> TaskHandle:
        """Ask for other limits of cpu, memory or both for a lab that runs; it goes on without a restart.

        `get()` of the answer gives {"before", "after", "seconds"}, or raises TaskFailed with the reason: the
        lab then has what it had.
        """
        # A value that is not a mapping is passed on: the check of the task names it.
        given = dict(new_resources) if isinstance(new_resources, Mapping) else new_resources
        payload = tasks.ScaleLabResources(lab_instance_id=lab_instance_id, new_resources=given)
        return self._send(TaskRequest(payload, task_id, countdown, eta, expires))

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        task_id: str | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
        timeout: float | None = None,
    ) -> TaskHandle:
        """Publish a task by its Celery name, as `celery_app.send_task` would, and wait for the confirm.

        Args:
            name: such as `celery_workers.create_lab_pod`.
            args: positional arguments, in the order of the payload's fields.
            kwargs: arguments by name.
            task_id: 1 to 255 printable bytes; made up if left out. The same id again is safe.
            countdown: seconds until the task may begin; the broker holds it back.
            eta: aware time instead of `countdown`.
            expires: seconds or an aware time after which it is not begun any more.
            timeout: seconds for all attempts; the setting AMQP_PUBLISH_TIMEOUT_S (10) if left out.
        """
        payload = tasks.parse_payload(name, args or (), kwargs)
        return self._send(TaskRequest(payload, task_id, countdown, eta, expires), timeout)

    def send_many(
        self, requests: Iterable[tasks.Payload | TaskRequest], *, timeout: float | None = None
    ) -> list[SendResult]:
        """Publish many tasks without waiting for each; return one result per task, in their order.

        About ten times as fast as one by one. `timeout` bounds the whole call, in seconds. What is not
        confirmed is reported, not raised, and may be sent again under its id. Raises InvalidTask, before
        anything is sent, if any of them is not acceptable or two have the same id.
        """
        messages = [
            (request if isinstance(request, TaskRequest) else TaskRequest(request)).to_message()
            for request in requests
        ]
        if len({task.id for task in messages}) != len(messages):
            raise InvalidTask("task_id", "is the same for two tasks; each needs its own")
        errors = self._publisher.publish_tasks(messages, timeout_s=timeout)
        return [
            SendResult(TaskHandle(task.id, self), error) for task, error in zip(messages, errors, strict=True)
        ]

    def relay_outbox(self, *, timeout: float = 10.0) -> RelayReport:
        """Publish what the outbox holds; call it after the commit that filled it.

        One thread per process and engine relays; the calls of others leave their tasks to it. Raises
        nothing of the broker or the database, because the tasks are safe: what could not be published
        within `timeout` seconds is in the report, and left to the next call or the sweep. For some
        seconds after the broker was found away no call tries.
        """
        with needs_extra("db"):
            from dispatcher.outbox.relay_turns import relay_after_commit

        return relay_after_commit(self._open_engine(), self._publisher, timeout_s=timeout)

    def extend_lab(self, lab_instance_id: int, minutes: int, *, ends_at: datetime | None = None) -> LabTime:
        """Move the end of a lab by `minutes`, and return when it ends then: what a student may be shown.

        Needs the database alone, in a transaction of its own; `dispatcher.lab_time.extend` is for one of the
        backend's, and says what `ends_at` is for and what is raised. Besides, DispatcherError: the database
        did not answer; whether the end was moved is not known then.
        """
        with self._transaction() as connection:
            return lab_time.extend(connection, lab_instance_id, minutes, ends_at=ends_at)

    def lab_time(self, lab_instance_id: int) -> LabTime:
        """Return when a lab ends, and by how much that may be moved. Raises LabUnknown, DispatcherError."""
        with self._transaction() as connection:
            return lab_time.read(connection, lab_instance_id)

    def status(self, task_id: str) -> TaskStatus:
        """Return what the ledger knows of a task; PENDING for an id that nobody knows.

        Raises DispatcherError when the database does not answer.
        """
        return self.results.status(str(task_id))

    def wait(self, task_id: str, timeout: float | None = None) -> TaskStatus:
        """Return the status once it is SUCCESS, FAILURE or REVOKED.

        Raises TaskTimeout if that takes longer than `timeout` seconds, 60 if left out.
        """
        return self.results.wait(str(task_id), wait_seconds(timeout))

    def cancel(self, task_id: str) -> TaskStatus:
        """Ask that a task is not begun any more; REVOKED in the answer means that it will not be.

        STARTED: a container works on it; a create leaves off at its next step. SUCCESS, FAILURE: it is over.
        """
        return self.results.cancel(str(task_id))

    # The name that Celery has for it.
    def AsyncResult(self, task_id: str) -> TaskHandle:
        """Return the handle of a task sent earlier, perhaps by another process."""
        return TaskHandle(str(task_id), self)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._publisher.close()
        with self._opening:
            results, self._results = self._results, None
            engine, self._engine = self._engine, None
        if results is not None:
            results.close()
        if engine is not None and engine is not self._database:
            engine.dispose()

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def results(self) -> Results:
        """The ledger of tasks; the database is connected to when first asked."""
        with self._opening:
            if self._results is None:
                with needs_extra("db"):
                    from dispatcher.results import ResultStore

                self._results = ResultStore(self._open_engine())
            return self._results

    def _renew_lock(self) -> None:
        self._opening = threading.RLock()

    def _open_engine(self) -> Engine:
        with self._opening:
            if self._engine is None:
                given = self._database or read_settings(os.environ, database_url)
                if isinstance(given, str):
                    with needs_extra("db"):
                        from dispatcher.engine import make_engine

                    name = "autolabs-dispatcher"
                    given = make_engine(
                        given, application_name=name, statement_timeout_s=10, pool_size=5, pool_pre_ping=True
                    )
                self._engine = given
            return self._engine

    def _transaction(self) -> AbstractContextManager[Connection]:
        with needs_extra("db"):
            from dispatcher.engine import transaction

        return transaction(self._open_engine(), what="the lab's row was not read or written", locks=True)

    def _send(self, request: TaskRequest, timeout: float | None = None) -> TaskHandle:
        task = request.to_message()
        self._publisher.publish_task(task, timeout_s=timeout)
        return TaskHandle(task.id, self)
