"""A backend as a real HTTP server process, started as the example's docstring says."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.waiting import HANG_S, eventually

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
#: Example -> what its command gets so that the system chooses the port and one process serves.
ANY_PORT = {
    "fastapi_backend": ("--port", "0"),
    "flask_backend": ("--port", "0"),
    "django_backend": ("--noreload", "0"),
}
LABS = "/api/v1/lab-instances"


def command_of(example: str) -> list[str]:
    """Return the command that the example's docstring gives, with this Python's programs."""
    text = (EXAMPLES / f"{example}.py").read_text()
    (line,) = re.findall(rf"^    ((?:uvicorn|flask|python) .*{example}.*)$", text, flags=re.MULTILINE)
    program, *arguments = shlex.split(line)
    return [str(Path(sys.executable).with_name(program)), *arguments, *ANY_PORT[example]]


@dataclass(frozen=True)
class Answer:
    status: int
    #: What the JSON says; the text if it is none.
    content: Any


class Backend:
    """One server process; its log goes to a file that the report of a failed test shows."""

    def __init__(self, example: str, environ: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._forgotten = 0
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command_of(example),
                cwd=EXAMPLES,
                env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **environ},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            self._port = int(eventually(self._announced, 2 * HANG_S, what=f"the port of {example}"))
        except AssertionError as exc:
            self.end()
            raise AssertionError(f"{exc}\n{log.read_text()}") from exc

    def forget_log(self) -> None:
        """Let `logged` return only what comes from now on."""
        self._forgotten = len(self.log.read_text())

    def logged(self) -> str:
        return self.log.read_text()[self._forgotten :]

    def _announced(self) -> str | None:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.log.read_text())
        return found and found[1]

    def request(
        self, method: str, path: str, body: Any = None, *, student: int | None = 42, timeout_s: float = 30
    ) -> Answer:
        """Send a request; a body of bytes goes as it is."""
        headers = {"Content-Type": "application/json"}
        if student is not None:
            headers["X-Student-Id"] = str(student)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout_s)
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return Answer(answer.status, json.loads(text) if is_json else text)

    def post(self, body: Any, **options: Any) -> Answer:
        return self.request("POST", LABS, body, **options)

    def get(self, lab_instance_id: int, **options: Any) -> Answer:
        return self.request("GET", f"{LABS}/{lab_instance_id}", **options)

    def delete(self, lab_instance_id: int, **options: Any) -> Answer:
        return self.request("DELETE", f"{LABS}/{lab_instance_id}", **options)

    def end(self) -> None:
        """Stop the server as a platform does, by SIGTERM."""
        self._process.terminate()
        try:
            self._process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
