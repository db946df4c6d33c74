"""The contract once more, with the oldest Celery that is supported."""

from __future__ import annotations

import subprocess
import sys

from tests.support.broker.celery_versions import ROOT, VERSIONS

OLDEST = VERSIONS[0]


def test_the_oldest_celery_keeps_the_contract_too() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["tests/contract/test_celery_messages.py", "tests/contract/test_celery_results.py"]
    answer = subprocess.run(command, cwd=ROOT, env=OLDEST.environ(), capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout[-8000:]


def test_the_oldest_celery_is_the_one_that_is_named() -> None:
    command = [sys.executable, "-c", "import celery, kombu; print(celery.__version__, kombu.__version__)"]
    found = subprocess.check_output(command, cwd=ROOT, env=OLDEST.environ(), text=True).split()
    pins = (ROOT / "tests/contract/celery-oldest.txt").read_text().splitlines()
    assert f"celery=={found[0]}" in pins
    assert f"kombu=={found[1]}" in pins
    assert f'"celery>={found[0].removesuffix(".0")},' in (ROOT / "pyproject.toml").read_text()
