"""Labs over HTTP: Django, and the outbox of AutoLabs jobs.

    pip install 'autolabs-jobs[db]' django
    export AMQP_URL=amqp://user:password@host/ DATABASE_URL=postgresql://user:password@host/name
    autolabs db upgrade
    python django_backend.py runserver

    curl -H 'X-Student-Id: 42' --json '{"lab_id": 123}' http://127.0.0.1:8000/api/v1/lab-instances

One file, so that it can be pasted: in a project, `settings.configure` is settings.py, and the rest is
models.py, views.py and urls.py. The tables are those of `autolabs db upgrade`, hence `managed = False`:
`manage.py migrate` leaves them alone.
"""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import django
from django.conf import settings

database = urlsplit(os.environ["DATABASE_URL"])
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": database.hostname or "",
            "PORT": database.port or "",
            "USER": unquote(database.username or ""),
            "PASSWORD": unquote(database.password or ""),
            "NAME": unquote(database.path.removeprefix("/")),
            "OPTIONS": dict(parse_qsl(database.query)),  # such as sslmode
        }
    },
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"], "level": "INFO"},
    },
    ROOT_URLCONF=__name__,
    USE_TZ=True,
)
django.setup()

# Django wants its settings before these.
from django.core.management import execute_from_command_line  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection, models, transaction  # noqa: E402
from django.db.models.functions import Now  # noqa: E402
from django.http import Http404, HttpRequest, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.views import View  # noqa: E402

from dispatcher import DeleteLabPod, Dispatcher, InvalidTask, TooManyLabs, labs, outbox  # noqa: E402

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

# Connects when it is first used; one per process, shared by its threads.
dispatcher = Dispatcher()
relay = partial(dispatcher.relay_outbox, timeout=RELAY_TIMEOUT_S)


class LabInstance(models.Model):
    """The columns that this backend reads or writes; all others have a default or are a job's."""

    lab_id = models.BigIntegerField()
    student_id = models.BigIntegerField()
    #: PENDING, RUNNING, FAILED or STOPPED.
    status = models.TextField(default="PENDING")
    celery_task_id = models.TextField(null=True)
    connection_url = models.TextField(null=True)
    error_category = models.TextField(null=True)
    error_message = models.TextField(null=True)
    stop_requested_at = models.DateTimeField(null=True)

    class Meta:
        app_label = "labs"
        db_table = "lab_instances"
        managed = False

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.pk,
            "lab_id": self.lab_id,
            "status": self.status,
            "task_id": self.celery_task_id,
            "connection_url": self.connection_url,
            "error_category": self.error_category,
            "error_message": self.error_message,
        }


def your_authentication(request: HttpRequest) -> int | None:
    """Return who asks. Put your own here: anybody can send this header."""
    sent = request.headers.get("X-Student-Id", "")
    return int(sent) if re.fullmatch(r"[1-9][0-9]{0,17}", sent) else None


def your_authorization(student_id: int, lab_id: int) -> None:
    """Raise PermissionDenied unless the student may start the lab. Put your own here."""


class ApiView(View):
    """Know the student, and answer refusals with the field that is meant."""

    student_id: int

    def dispatch(self, request: HttpRequest, **arguments: Any) -> Any:
        student_id = your_authentication(request)
        if student_id is None:
            return JsonResponse({"problem": "X-Student-Id is missing"}, status=401)
        self.student_id = student_id
        try:
            return super().dispatch(request, **arguments)
        except InvalidTask as error:
            return JsonResponse({"field": error.field, "problem": error.problem}, status=422)
        except TooManyLabs as error:
            return JsonResponse({"problem": str(error), "live": error.lab_instance_ids}, status=409)
        except Http404 as error:
            return JsonResponse({"problem": str(error)}, status=404)


class LabInstancesView(ApiView):
    def post(self, request: HttpRequest) -> JsonResponse:
        try:
            wanted = json.loads(request.body)
        except ValueError:
            wanted = None
        if not isinstance(wanted, dict):
            return JsonResponse({"problem": "the body must be a JSON object"}, status=400)
        lab, created = start_lab(self.student_id, wanted)
        return JsonResponse(lab.as_json(), status=202 if created else 200)


class LabInstanceView(ApiView):
    def get(self, _request: HttpRequest, lab_instance_id: int) -> JsonResponse:
        """Polled by the student's page until RUNNING, with connection_url, or FAILED."""
        return JsonResponse(find_lab(LabInstance.objects.all(), lab_instance_id, self.student_id).as_json())

    def delete(self, _request: HttpRequest, lab_instance_id: int) -> JsonResponse:
        return JsonResponse(stop_lab(lab_instance_id, self.student_id).as_json(), status=202)


# One transaction: no lab without its task, no task without its lab, whatever ends the process.
@transaction.atomic
def start_lab(student_id: int, wanted: dict[str, Any]) -> tuple[LabInstance, bool]:
    """Return a new lab, or the one that a first click asked for, and whether it is new."""
    lab_id = wanted_lab(wanted)
    your_authorization(student_id, lab_id)
    with connection.cursor() as cursor:
        lab = labs.request_with_cursor(
            cursor, lab_id=lab_id, student_id=student_id, max_live=MAX_LIVE, **LABS[lab_id]
        )
    # Never fails: with the broker away the task stays in the outbox, and the sweep publishes it.
    transaction.on_commit(relay)
    return LabInstance.objects.get(pk=lab.lab_instance_id), lab.created


def wanted_lab(body: dict[str, Any]) -> int:
    """Return the lab_id of a request; whatever else is in it, such as an image, is refused by name."""
    for field in body:
        if field != "lab_id":
            raise InvalidTask(f"{field:.80}", "is not a student's to say; allowed is lab_id")
    lab_id = body.get("lab_id")
    if type(lab_id) is not int or lab_id not in LABS:
        raise InvalidTask("lab_id", f"{lab_id!r:.80} is not a lab")
    return lab_id


@transaction.atomic
def stop_lab(lab_instance_id: int, student_id: int) -> LabInstance:
    lab = find_lab(LabInstance.objects.select_for_update(), lab_instance_id, student_id)
    if lab.stop_requested_at is None:
        # From here on no create makes it RUNNING. A second DELETE has nothing to add: the cleanup
        # repeats a stop that got lost.
        lab.stop_requested_at = Now()
        lab.save(update_fields=["stop_requested_at"])
        with connection.cursor() as cursor:
            outbox.add_with_cursor(cursor, DeleteLabPod(lab_instance_id=lab_instance_id))
        transaction.on_commit(relay)
    return lab


def find_lab(labs: models.QuerySet[LabInstance], lab_instance_id: int, student_id: int) -> LabInstance:
    lab: LabInstance | None = labs.filter(pk=lab_instance_id, student_id=student_id).first()
    if lab is None:
        raise Http404(f"there is no lab instance {lab_instance_id} of yours")
    return lab


urlpatterns = [
    path("api/v1/lab-instances", LabInstancesView.as_view()),
    path("api/v1/lab-instances/<int:lab_instance_id>", LabInstanceView.as_view()),
]
application = get_wsgi_application()  # for gunicorn and its kind

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
