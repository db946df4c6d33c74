"""A task id as a send returns it, with the habits of celery.result.AsyncResult."""

from __future__ import annotations

from typing import Any, Protocol

from dispatcher.errors import TaskFailed, TaskRevoked
from dispatcher.message.request import Results
from dispatcher.task_status import TaskState, TaskStatus

#: Seconds to wait for a task by default; longer than a lab takes to start.
DEFAULT_WAIT_S = 60.0


class ResultSource(Protocol):
    """The part of a Dispatcher that a handle asks."""

    @property
    def results(self) -> Results: ...


class TaskHandle(str):
    """A task id that can be asked about its task.

    It is a `str`, so it goes into a column, a JSON answer or a log as it is. All but `id` read the
    database, and raise DispatcherError when it does not answer.
    """

    _source: ResultSource

    def __new__(cls, task_id: str, source: ResultSource) -> TaskHandle:
        """Return the handle of an id, whether or not such a task was ever sent."""
        handle = super().__new__(cls, task_id)
        handle._source = source
        return handle

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Pickle and copy as the id alone; `Dispatcher.AsyncResult(id)` makes a handle again."""
        return str, (str(self),)

    def __str__(self) -> str:
        return "".join(self)

    @property
    def id(self) -> str:
        return str(self)

    @property
    def task_id(self) -> str:
        return str(self)

    @property
    def state(self) -> str:
        """PENDING, STARTED, RETRY, SUCCESS, FAILURE or REVOKED; PENDING for an id that nobody knows."""
        return self._look().state.value

    @property
    def status(self) -> str:
        return self.state

    @property
    def result(self) -> Any:
        """What a SUCCESS gave, a mapping; for FAILURE and REVOKED the exception; else None."""
        return _outcome(self._look())

    @property
    def info(self) -> Any:
        """The same as `result`; `Dispatcher.status(id)` has all that is known."""
        return self.result

    def ready(self) -> bool:
        return self._look().ready

    def successful(self) -> bool:
        return self._look().state is TaskState.SUCCESS

    def failed(self) -> bool:
        return self._look().state is TaskState.FAILURE

    def get(self, timeout: float | None = None, *, propagate: bool = True) -> Any:
        """Wait at most `timeout` seconds for the end and return the result; Celery would wait for ever.

        Raises TaskTimeout if it is not over yet, TaskFailed or TaskRevoked if it ended so; with `propagate`
        False these two are returned instead.
        """
        outcome = _outcome(self._source.results.wait(str(self), wait_seconds(timeout)))
        if propagate and isinstance(outcome, Exception):
            raise outcome
        return outcome

    def revoke(self) -> bool:
        """Ask that the task is not begun; False when it has begun or is over."""
        return self._source.results.cancel(str(self)).state is TaskState.REVOKED

    def _look(self) -> TaskStatus:
        return self._source.results.status(str(self))


def wait_seconds(timeout: float | None) -> float:
    return DEFAULT_WAIT_S if timeout is None else timeout


def _outcome(status: TaskStatus) -> Any:
    if status.state is TaskState.FAILURE:
        return TaskFailed(status.error_category or "UNKNOWN", status.error_message or "The task failed.")
    if status.state is TaskState.REVOKED:
        return TaskRevoked(f"task {status.task_id} was revoked: {status.error_message or 'cancelled'}")
    return status.result
