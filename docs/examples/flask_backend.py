"""Labs over HTTP: Flask, SQLAlchemy, and the outbox of AutoLabs jobs.

    pip install 'autolabs-jobs[db]' flask
    export AMQP_URL=amqp://user:password@host/ DATABASE_URL=postgresql://user:password@host/name
    autolabs db upgrade
    flask --app flask_backend run

    curl -H 'X-Student-Id: 42' --json '{"lab_id": 123}' http://127.0.0.1:5000/api/v1/lab-instances

The tables are those of `autolabs db upgrade`; a backend with Alembic of its own leaves them out of it.
"""

from __future__ import annotations

import os
import re
from typing import Any

from flask import Flask, abort, request
from sqlalchemy import create_engine, func, make_url, select
from sqlalchemy.orm import Session
from werkzeug.exceptions import HTTPException

from dispatcher import DeleteLabPod, Dispatcher, InvalidTask, TooManyLabs, labs, outbox
from dispatcher.models import LabInstance

MAX_ID = 2**63 - 1
#: Seconds that a request may wait for a broker that is away.
RELAY_TIMEOUT_S = 2.0
#: Live labs that a student may have at a time.
MAX_LIVE = 2
#: Your own table of labs, by lab_id. The course says what a lab runs and may use, never the student.
LABS: dict[int, Any] = {
    123: {"docker_image": "registry.gitlab.com/autolabs/labs/demo:1.0.0"},
    456: {
        "docker_image": "registry.gitlab.com/autolabs/labs/nmap:v1.0.0",
        "resources": {"cpu": "500m", "memory": "512Mi"},
    },
}

# Both connect when they are first used: one pair per process, shared by its threads.
database_url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg2")
engine = create_engine(database_url, pool_pre_ping=True, hide_parameters=True)
dispatcher = Dispatcher(database=engine)
app = Flask(__name__)


def your_authentication() -> int:
    """Return who asks. Put your own here: anybody can send this header."""
    sent = request.headers.get("X-Student-Id", "")
    if not re.fullmatch(r"[1-9][0-9]{0,17}", sent):
        abort(401, "X-Student-Id is missing")
    return int(sent)


def your_authorization(student_id: int, lab_id: int) -> None:
    """Abort unless the student may start the lab. Put your own here: this one lets everybody."""


@app.errorhandler(InvalidTask)
def refuse(error: InvalidTask) -> tuple[dict[str, str], int]:
    return {"field": error.field, "problem": error.problem}, 422


@app.errorhandler(HTTPException)
def fail(error: HTTPException) -> tuple[dict[str, str | None], int]:
    return {"problem": error.description}, error.code or 500


@app.errorhandler(TooManyLabs)
def refuse_another(error: TooManyLabs) -> tuple[dict[str, Any], int]:
    return {"problem": str(error), "live": error.lab_instance_ids}, 409


@app.post("/api/v1/lab-instances")
def start_lab() -> tuple[dict[str, Any], int]:
    """Answer 202 with a new lab, or 200 with the one that a first click asked for."""
    student_id = your_authentication()
    lab_id = wanted_lab(request.get_json())
    your_authorization(student_id, lab_id)
    # One transaction: no lab without its task, no task without its lab, whatever ends the process.
    with Session(engine) as session, session.begin():
        lab = labs.request(session, lab_id=lab_id, student_id=student_id, max_live=MAX_LIVE, **LABS[lab_id])
        answer = as_json(session.get_one(LabInstance, lab.lab_instance_id))
    # Never fails: with the broker away the task stays in the outbox, and the sweep publishes it.
    dispatcher.relay_outbox(timeout=RELAY_TIMEOUT_S)
    return answer, 202 if lab.created else 200


def wanted_lab(body: Any) -> int:
    """Return the lab_id of a request; whatever else is in it, such as an image, is refused by name."""
    if not isinstance(body, dict):
        abort(400, "the body must be a JSON object")
    for field in body:
        if field != "lab_id":
            raise InvalidTask(f"{field:.80}", "is not a student's to say; allowed is lab_id")
    lab_id = body.get("lab_id")
    if type(lab_id) is not int or lab_id not in LABS:
        raise InvalidTask("lab_id", f"{lab_id!r:.80} is not a lab")
    return lab_id


@app.get("/api/v1/lab-instances/<int:lab_instance_id>")
def show_lab(lab_instance_id: int) -> dict[str, Any]:
    """Polled by the student's page until RUNNING, with connection_url, or FAILED."""
    with Session(engine) as session:
        return as_json(find_lab(session, lab_instance_id, your_authentication()))


@app.delete("/api/v1/lab-instances/<int:lab_instance_id>")
def stop_lab(lab_instance_id: int) -> tuple[dict[str, Any], int]:
    student_id = your_authentication()
    with Session(engine) as session, session.begin():
        lab = find_lab(session, lab_instance_id, student_id, lock=True)
        if lab.stop_requested_at is None:
            # From here on no create makes it RUNNING. A second DELETE has nothing to add: the cleanup
            # repeats a stop that got lost.
            lab.stop_requested_at = func.now()
            outbox.add(session, DeleteLabPod(lab_instance_id=lab.id))
        answer = as_json(lab)
    dispatcher.relay_outbox(timeout=RELAY_TIMEOUT_S)
    return answer, 202


def find_lab(session: Session, lab_instance_id: int, student_id: int, *, lock: bool = False) -> LabInstance:
    """Return a lab of the student's; with `lock` nobody else changes it before the commit."""
    wanted = select(LabInstance).filter_by(id=lab_instance_id, student_id=student_id)
    lab = session.scalar(wanted.with_for_update() if lock else wanted) if lab_instance_id <= MAX_ID else None
    if lab is None:
        abort(404, f"there is no lab instance {lab_instance_id} of yours")
    return lab


def as_json(lab: LabInstance) -> dict[str, Any]:
    return {
        "id": lab.id,
        "lab_id": lab.lab_id,
        "status": lab.status,  # PENDING, RUNNING, FAILED or STOPPED
        "task_id": lab.celery_task_id,
        "connection_url": lab.connection_url,
        "error_category": lab.error_category,
        "error_message": lab.error_message,
    }
