from __future__ import annotations

from deploy.local.errors import CommandError
from deploy.local.evidence import shown_by


def test_a_command_that_fails_does_not_hide_the_others() -> None:
    def kubectl(*words: str) -> str:
        if words[0] == "logs":
            raise CommandError(["kubectl", *words], 1, "no such pod", None)
        return f"{words[1]} are fine"

    shown = shown_by(kubectl, [("logs", "job/x"), ("get", "pods")])
    assert "no such pod" in shown
    assert shown.endswith("kubectl get pods\npods are fine")
