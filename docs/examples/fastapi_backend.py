"""Labs over HTTP: FastAPI, SQLAlchemy, and the outbox of AutoLabs jobs.

    pip install 'autolabs-jobs[db]' fastapi uvicorn
    export AMQP_URL=amqp://user:password@host/ DATABASE_URL=postgresql://user:password@host/name
    autolabs db upgrade
    uvicorn fastapi_backend:app

    curl -H 'X-Student-Id: 42' --json '{"lab_id": 123}' http://127.0.0.1:8000/api/v1/lab-instances

The tables are those of `autolabs db upgrade`; a backend with Alembic of its own leaves them out of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import create_engine, func, make_url, select
from sqlalchemy.orm import Session

from dispatcher import DeleteLabPod, Dispatcher, InvalidTask, TooManyLabs, labs, outbox
from dispatcher.models import LabInstance

MAX_ID = 2**63 - 1
#: Seconds that a relay may keep its thread when the broker is away.
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


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    yield
    dispatcher.close()
    engine.dispose()


app = FastAPI(title="Labs", lifespan=lifespan)


class LabRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    lab_id: Annotated[int, Field(strict=True, ge=1, le=MAX_ID)]


class LabAnswer(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    lab_id: int
    #: PENDING, RUNNING, FAILED or STOPPED.
    status: str
    task_id: str | None = Field(validation_alias="celery_task_id")
    connection_url: str | None
    error_category: str | None
    error_message: str | None


def your_authentication(x_student_id: Annotated[str, Header()] = "") -> int:
    """Return who asks. Put your own here: anybody can send this header."""
    if not re.fullmatch(r"[1-9][0-9]{0,17}", x_student_id):
        raise HTTPException(401, "X-Student-Id is missing")
    return int(x_student_id)


def your_authorization(student_id: int, lab_id: int) -> None:
    """Raise unless the student may start the lab. Put your own here: this one lets everybody."""


StudentId = Annotated[int, Depends(your_authentication)]
LabInstanceId = Annotated[int, Path(ge=1, le=MAX_ID)]


@app.exception_handler(InvalidTask)
def refuse(_request: Request, error: InvalidTask) -> JSONResponse:
    """Answer as FastAPI does when a body does not fit its model."""
    problem = {"type": "invalid_task", "loc": ["body", *error.field.split(".")], "msg": error.problem}
    return JSONResponse({"detail": [problem]}, status_code=422)


@app.exception_handler(TooManyLabs)
def refuse_another(_request: Request, error: TooManyLabs) -> JSONResponse:
    return JSONResponse({"detail": str(error), "live": error.lab_instance_ids}, status_code=409)


@app.post("/api/v1/lab-instances", status_code=202)
def start_lab(
    wanted: LabRequest, student_id: StudentId, background: BackgroundTasks, response: Response
) -> LabAnswer:
    """Answer 202 with a new lab, or 200 with the one that a first click asked for."""
    if wanted.lab_id not in LABS:
        raise InvalidTask("lab_id", f"{wanted.lab_id} is not a lab")
    your_authorization(student_id, wanted.lab_id)
    # One transaction: no lab without its task, no task without its lab, whatever ends the process.
    with Session(engine) as session, session.begin():
        lab = labs.request(
            session, lab_id=wanted.lab_id, student_id=student_id, max_live=MAX_LIVE, **LABS[wanted.lab_id]
        )
        answer = LabAnswer.model_validate(session.get_one(LabInstance, lab.lab_instance_id))
    if not lab.created:
        response.status_code = 200
    # After the answer, and it never fails: with the broker away the task stays, and the sweep publishes it.
    background.add_task(dispatcher.relay_outbox, timeout=RELAY_TIMEOUT_S)
    return answer


@app.get("/api/v1/lab-instances/{lab_instance_id}")
def show_lab(lab_instance_id: LabInstanceId, student_id: StudentId) -> LabAnswer:
    """Polled by the student's page until RUNNING, with connection_url, or FAILED."""
    with Session(engine) as session:
        return LabAnswer.model_validate(find_lab(session, lab_instance_id, student_id))


@app.delete("/api/v1/lab-instances/{lab_instance_id}", status_code=202)
def stop_lab(lab_instance_id: LabInstanceId, student_id: StudentId, background: BackgroundTasks) -> LabAnswer:
    with Session(engine) as session, session.begin():
        lab = find_lab(session, lab_instance_id, student_id, lock=True)
        if lab.stop_requested_at is None:
            # From here on no create makes it RUNNING. A second DELETE has nothing to add: the cleanup
            # repeats a stop that got lost.
            lab.stop_requested_at = func.now()
            outbox.add(session, DeleteLabPod(lab_instance_id=lab.id))
        answer = LabAnswer.model_validate(lab)
    background.add_task(dispatcher.relay_outbox, timeout=RELAY_TIMEOUT_S)
    return answer


def find_lab(session: Session, lab_instance_id: int, student_id: int, *, lock: bool = False) -> LabInstance:
    """Return a lab of the student's; with `lock` nobody else changes it before the commit."""
    wanted = select(LabInstance).filter_by(id=lab_instance_id, student_id=student_id)
    lab = session.scalar(wanted.with_for_update() if lock else wanted)
    if lab is None:
        raise HTTPException(404, f"there is no lab instance {lab_instance_id} of yours")
    return lab
