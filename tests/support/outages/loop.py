"""A backend that starts and stops labs one after the other, whatever answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from dispatcher import CreateLabPod, DeleteLabPod, Dispatcher, outbox
from dispatcher.engine import make_engine
from dispatcher.models import LabInstance, OutboxTask
from jobs.cluster.client import Cluster, Manifest
from jobs.cluster.lab_objects import collections
from tests.support.database.postgres import Database, Server
from tests.support.waiting import eventually

LABS = 8
#: Seconds from one request to the next, and from the start of a lab to its stop.
PACE_S, LIFE_S = 0.5, 4.0
#: Seconds for which the backend asks again.
PATIENCE_S = 90.0
#: Seconds in which stopped labs are gone; they only end a hang.
CLEARED_S = 180.0
SMALL = {"cpu": "250m", "memory": "128Mi", "storage": "64Mi"}


@dataclass(frozen=True)
class Place:
    """A platform, as its backend and an operator see it."""

    amqp_url: str
    database_url: str
    namespace: str
    cluster: Cluster = field(repr=False)
    image: str
    #: For `autolabs verify`.
    environ: Mapping[str, str] = field(repr=False)

    @property
    def database(self) -> Database:
        name = self.database_url.rpartition("/")[2]
        return Database(Server(self.database_url), name)


class Backend:
    """One engine and one dispatcher, which live through all outages as a backend's do."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.engine = make_engine(place.database_url, application_name="backend", pool_size=2)
        self.dispatcher = Dispatcher(place.amqp_url, database=self.engine)

    def close(self) -> None:
        self.dispatcher.close()
        self.engine.dispose()


class Loop:
    """LABS labs of one student, every second of them stopped again."""

    def __init__(self, backend: Backend, student_id: int) -> None:
        self.place = backend.place
        self.student_id = student_id
        self._engine, self._dispatcher = backend.engine, backend.dispatcher
        self._thread = threading.Thread(target=self._run, name=f"backend of {student_id}")
        self._problem: BaseException | None = None
        #: How often the backend had to ask the database again.
        self.asked_again = 0
        self.requested = 0

    @property
    def to_be_stopped(self) -> set[int]:
        """The lab_id of those that are stopped."""
        return set(range(1, LABS + 1, 2))

    def start(self) -> None:
        self._thread.start()

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def is_served(self) -> bool:
        """Tell whether a container is at work for one of its labs."""
        return any(run["outcome"] == "started" for run in self.ledger())

    def gave_back(self, cause: str) -> bool:
        """Tell whether all labs are asked for, and a container gave a task back for this cause."""
        given_back = [run["details"].get("cause") for run in self.ledger() if run["outcome"] == "retried"]
        return len(self.rows()) == LABS and cause in given_back

    def end(self) -> None:
        """Wait until all is requested and published; raises what the backend could not get over."""
        self.leave()
        if self._problem is not None:
            raise self._problem
        if self._thread.is_alive():
            raise AssertionError("the backend is still at it")

    def leave(self) -> None:
        """Wait until the backend is done with it, whatever came of it."""
        if self.runs:
            self._thread.join(2 * PATIENCE_S)

    def clear(self) -> None:
        """Stop what still runs, and wait until nothing of it is left."""
        self.leave()
        self._stop_all()
        eventually(lambda: all(row["status"] in ("STOPPED", "FAILED") for row in self.rows()), CLEARED_S)
        eventually(lambda: not self.objects(), CLEARED_S, what="objects gone")

    def _run(self) -> None:
        try:
            self._request_all()
        except BaseException as exc:
            self._problem = exc

    def _request_all(self) -> None:
        began = time.monotonic()
        todo = [(number * PACE_S, "start", number) for number in range(1, LABS + 1)]
        todo += [(number * PACE_S + LIFE_S, "stop", number) for number in self.to_be_stopped]
        for at_s, what, number in sorted(todo):
            time.sleep(max(0.0, began + at_s - time.monotonic()))
            self._persist(self._start if what == "start" else self._stop, number)
            self._dispatcher.relay_outbox(timeout=2.0)
            self.requested += 1
        deadline = time.monotonic() + PATIENCE_S
        # A relay is complete without the rows that wait for their next try. A backend with more to ask for
        # publishes them then, before the sweep that comes every minute.
        while not self._dispatcher.relay_outbox(timeout=2.0).complete or self._unpublished():
            if time.monotonic() > deadline:
                raise AssertionError("the outbox is not empty")
            time.sleep(0.2)

    def _unpublished(self) -> bool:
        labs = select(LabInstance.id).where(LabInstance.student_id == self.student_id)
        waiting = select(OutboxTask.id).where(OutboxTask.lab_instance_id.in_(labs))
        try:
            with Session(self._engine) as session:
                return session.scalars(waiting).first() is not None
        except SQLAlchemyError:
            return True

    def _persist(self, request: Any, number: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with Session(self._engine) as session, session.begin():
                    request(session, number)
                return
            except SQLAlchemyError:
                if time.monotonic() > deadline:
                    raise
                self.asked_again += 1
                time.sleep(0.2)

    def _find(self, session: Session, number: int) -> LabInstance | None:
        mine = select(LabInstance).where(
            LabInstance.student_id == self.student_id, LabInstance.lab_id == number
        )
        return session.scalars(mine).one_or_none()

    def _start(self, session: Session, number: int) -> None:
        # The answer to the commit may have been lost: the first request stands then.
        if self._find(session, number):
            return
        lab = LabInstance(lab_id=number, student_id=self.student_id)
        session.add(lab)
        session.flush()
        create = CreateLabPod(
            lab_instance_id=lab.id,
            lab_id=number,
            student_id=self.student_id,
            docker_image=self.place.image,
            resources=SMALL,
        )
        lab.celery_task_id = outbox.add(session, create)

    def _stop(self, session: Session, number: int) -> None:
        lab = self._find(session, number)
        assert lab is not None
        outbox.add(session, DeleteLabPod(lab_instance_id=lab.id, force=True))

    def _stop_all(self) -> None:
        for lab in self.rows():
            if lab["status"] in ("RUNNING", "PENDING"):
                self._dispatcher.delete_lab(lab_instance_id=lab["id"], force=True)

    def rows(self) -> list[dict[str, Any]]:
        return self.place.database.rows(
            "SELECT * FROM lab_instances WHERE student_id = %s ORDER BY id", self.student_id
        )

    def ledger(self) -> list[dict[str, Any]]:
        ids = [row["id"] for row in self.rows()]
        statement = "SELECT * FROM task_ledger WHERE lab_instance_id = ANY(%s) ORDER BY id"
        return self.place.database.rows(statement, ids)

    def objects(self) -> dict[int, list[Manifest]]:
        """Return lab -> its objects in the cluster."""
        found: dict[int, list[Manifest]] = {}
        for kind, path in collections(self.place.namespace).items():
            for item in self.place.cluster.list_items(path, labelSelector=f"student_id={self.student_id}")[0]:
                lab = int(item["metadata"]["labels"]["lab_instance_id"])
                found.setdefault(lab, []).append({**item, "kind": kind})
        return found
