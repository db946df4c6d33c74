from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support.source_tree import ROOT, imports, modules

#: Library -> the only files that may import it.
OWNERS = {
    "minio": {"jobs/config/stored.py"},
    "sqlalchemy": {
        "console/dlq/actions.py",
        "console/explain/reading.py",
        "dispatcher/outbox/relay_turns.py",  # types alone
        "dispatcher/cli/labs.py",  # types alone
        "dispatcher/client.py",  # types alone
        "dispatcher/models.py",
        "dispatcher/migrations/migrate.py",
        "dispatcher/engine.py",
        "dispatcher/labs.py",
        "dispatcher/lab_time.py",
        "dispatcher/outbox/__init__.py",
        "dispatcher/outbox/listener.py",
        "dispatcher/outbox/relay.py",
        "dispatcher/results.py",
        "dispatcher/testing.py",  # types alone
    },
    "alembic": {"dispatcher/migrations/"},
    "kubernetes": set(),
    "psycopg2": {"jobs/database/connection.py", "dispatcher/stored_times.py"},
    "redis": {"jobs/notify/redis_results.py"},
    "tenacity": {"jobs/waiting.py"},
    "kombu": {"dispatcher/celery_config.py"},
    "celery": set(),
}
#: File -> what it does to imports at run time; in no other file could test_import_directions.py miss one.
BY_NAME = {
    "console/src/autolabs_console/__init__.py": "sys.path",  # the installed packages, in one folder
    "dispatcher/__main__.py": "entry_points",
    "jobs/checks/run.py": "import_module",  # of its own package
}


def test_nothing_is_imported_by_a_text() -> None:
    ways = r"import_module|__import__|entry_points|sys\.path|run_module|run_path|spec_from"
    found = {module.file: way for module in modules() for way in re.findall(ways, module.text)}
    assert found == BY_NAME


@pytest.mark.parametrize("library", OWNERS)
def test_each_library_has_its_owner(library: str) -> None:
    wrong = {
        module.file
        for module in modules()
        if library in {name.partition(".")[0] for name in imports(module)}
        and not any(module.file.startswith(own) for own in OWNERS[library])
    }
    assert wrong == set()


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


HEAVY = {
    "kubernetes",
    "sqlalchemy",
    "alembic",
    "minio",
    "yaml",
    "urllib3",
    "psycopg2",
    "celery",
    "kombu",
    "redis",
    "tenacity",
}


def test_a_backend_that_publishes_pays_for_pika_alone() -> None:
    publisher = "from dispatcher import Dispatcher, outbox, testing; Dispatcher('amqp://host/')"
    assert loaded_by("import dispatcher") & {*HEAVY, "pika", "hashlib"} == set()
    assert loaded_by(publisher) & {*HEAVY, "pika"} == {"pika"}


@pytest.mark.parametrize(
    "call",
    [
        "Dispatcher('amqp://host/').status('x')",
        "sys.exit(main(['task', 'status', 'x']))",
        "sys.exit(main(['outbox', 'relay']))",
        "sys.exit(main(['outbox', 'relay', '--once']))",
        "sys.exit(main(['outbox', 'discard', '1']))",
        "sys.exit(main(['dlq', 'requeue', 'x']))",
        "Dispatcher('amqp://host/', database='postgresql://host/x').relay_outbox()",
        "sys.exit(main(['outbox', 'list']))",
        "sys.exit(main(['explain', '1']))",
        "sys.exit(main(['db', 'upgrade']))",
    ],
)
def test_a_missing_extra_is_named(call: str) -> None:
    for missing in ("['sqlalchemy'] = sys.modules['alembic']", "['psycopg2']"):
        said = complaint(call, f"sys.modules{missing} = None")
        assert said.endswith("is not installed; it comes with: pip install 'autolabs-jobs[db]'")


@pytest.mark.parametrize(
    ("command", "missing"),
    [(["outbox", "list"], "dispatcher.outbox.relay"), (["topology", "declare"], "pika")],
)
def test_no_extra_is_blamed_for_what_it_does_not_bring(command: list[str], missing: str) -> None:
    said = complaint(f"sys.exit(main({command}))", f"sys.modules[{missing!r}] = None")
    assert missing in said
    assert "pip install" not in said


def complaint(call: str, missing: str) -> str:
    """Return the last line that a call writes in a process that misses something."""
    code = f"""
import sys
from dispatcher import Dispatcher
from console.__main__ import main
{missing}
{call}
"""
    environ = {**os.environ, "DATABASE_URL": "postgresql://host/x", "AMQP_URL": "amqp://host/"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


def test_a_container_claims_before_it_imports_what_an_operation_needs() -> None:
    assert loaded_by("import jobs.__main__") & HEAVY == set()


def test_a_task_runs_without_the_heavy_clients() -> None:
    assert (
        loaded_by("import jobs.container.run_task")
        & {"kubernetes", "sqlalchemy", "minio", "redis", "tenacity", "celery"}
        == set()
    )
