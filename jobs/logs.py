"""JSON lines on standard output; every line carries the task it belongs to."""

from __future__ import annotations

import io
import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

from dispatcher.text import cut

#: Attributes of every LogRecord; whatever else it has came in through `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
#: Characters of a field of the task. No id that can be read has more; one that cannot is on every line too.
_MAX_FIELD = 255


class JsonFormatter(logging.Formatter):
    """Format a record as one JSON object: ts, level, message, the task's fields, then its own."""

    def __init__(self) -> None:
        super().__init__()
        self.task_fields: dict[str, Any] = {"task_id": None}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": record.getMessage(),
            **self.task_fields,
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


_formatter = JsonFormatter()


def configure(level: str) -> None:
    """Send all logging to standard output; pika's own chatter only from WARNING on."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Without a locale it may be ASCII; what UTF-8 cannot say comes out as a JSON escape.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # pika logs an ERROR with a traceback for what its exceptions tell us anyway.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def set_task(**fields: Any) -> None:
    """Put these fields on every line from now on, long texts cut; one container has one task."""
    _formatter.task_fields = {
        name: cut(value, _MAX_FIELD) if isinstance(value, str) else value for name, value in fields.items()
    }
