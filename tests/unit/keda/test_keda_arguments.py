from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from keda.__main__ import main
from keda.podspec import OVERRIDABLE
from keda.profiles import (
    CONSUMER_TIMEOUT_S,
    PROFILES,
    WORST_CASE_S,
    InvalidProfile,
    Profile,
    with_overrides,
)

IMAGE = "registry.example:5000/autolabs/jobs:1.2.3"


def rendered(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    assert main(["--image", IMAGE, *arguments]) == 0
    manifests = list(yaml.safe_load_all(capsys.readouterr().out))
    return {m["metadata"]["name"]: m for m in manifests}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""  # half a stream must not reach kubectl
    return captured.err


def spares_of(manifests: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {
        name: m["spec"]["minReplicaCount"] for name, m in manifests.items() if "minReplicaCount" in m["spec"]
    }


@pytest.mark.parametrize(
    ("arguments", "spares"),
    [
        ([], (1, 1, 0)),
        (["--spares", "0"], (0, 0, 0)),
        (["--spares", "2"], (2, 2, 2)),
        (["--spares", "lab-operations=3"], (1, 3, 0)),
        (["--spares", "0", "--spares", "lab-operations=3"], (0, 3, 0)),
        (["--spares", "lab-operations=3", "--spares", "0"], (0, 3, 0)),
    ],
)
def test_spares_for_all_or_by_name(
    capsys: pytest.CaptureFixture[str], arguments: list[str], spares: tuple[int, int, int]
) -> None:
    assert tuple(spares_of(rendered(capsys, *arguments)).values()) == spares


def test_a_bound_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    made = rendered(capsys, "--max-replicas", "lab-operations=7")
    assert made["lab-operations"]["spec"]["maxReplicaCount"] == 7
    assert made["lab-operations-high"]["spec"]["maxReplicaCount"] == 40


def test_more_spares_need_only_fit_the_new_bound(capsys: pytest.CaptureFixture[str]) -> None:
    made = rendered(capsys, "--spares", "lab-cleanup=9", "--max-replicas", "lab-cleanup=10")
    assert spares_of(made)["lab-cleanup"] == 9


def test_everything_is_in_the_namespace_of_the_base(capsys: pytest.CaptureFixture[str]) -> None:
    assert {m["metadata"]["namespace"] for m in rendered(capsys).values()} == {"platform"}


def test_a_setting_goes_to_every_container(capsys: pytest.CaptureFixture[str]) -> None:
    made = rendered(
        capsys,
        *("--env", "LOG_LEVEL=DEBUG", "--env", "KUBECONFIG_OBJECT=a=b", "--env", "LOG_LEVEL=WARNING"),
    )
    jobs = [m["spec"]["jobTargetRef"] for m in made.values() if m["kind"] == "ScaledJob"]
    assert len(jobs) == len(PROFILES)
    for job in jobs:
        (container,) = job["template"]["spec"]["containers"]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert len(env) == len(container["env"])
        assert (env["LOG_LEVEL"], env["KUBECONFIG_OBJECT"]) == ("WARNING", "a=b")


def test_what_may_be_set_is_known_to_the_container() -> None:
    root = Path(__file__).parents[3]
    code = "".join(
        (root / file).read_text() for file in ("jobs/config/environment.py", "dispatcher/settings.py")
    )
    assert all(f'"{name}"' in code for name in OVERRIDABLE)


def test_an_image_has_to_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--image" in refusal(capsys)


@pytest.mark.parametrize(
    "image",
    [
        "registry.gitlab.com/autolabs/jobs:0.1.0",
        "registry:5000/jobs:dev-0123456789ab",
        "jobs@sha256:" + "0" * 64,
        "registry:5000/jobs:1@sha256:" + "0" * 64,
    ],
)
def test_an_image_with_a_tag_or_a_digest_is_accepted(capsys: pytest.CaptureFixture[str], image: str) -> None:
    assert main(["--image", image]) == 0
    assert f"image: {image}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "image",
    ["", "jobs", "registry:5000/jobs", "jobs:latest", "jobs:", "jobs: 1", "jobs:1\n", ":1", "jobs@sha256:12"],
)
def test_an_image_that_may_change_is_refused(capsys: pytest.CaptureFixture[str], image: str) -> None:
    assert "argument --image: " in (said := refusal(capsys, "--image", image))
    assert "needs a tag other than latest, or a digest" in said


def bounds_of(manifests: dict[str, dict[str, Any]]) -> tuple[int, ...]:
    return tuple(m["spec"]["maxReplicaCount"] for m in manifests.values() if "maxReplicaCount" in m["spec"])


@pytest.mark.parametrize(
    ("arguments", "bounds"),
    [
        ([], (40, 100, 5)),
        (["--cores", "2"], (32, 32, 5)),
        (["--cores", "1.93"], (30, 30, 5)),
        (["--cores", "0.1"], (2, 2, 1)),
        (["--cores", "64"], (40, 100, 5)),
        (["--cores", "2", "--max-replicas", "lab-operations=60"], (32, 60, 5)),
    ],
)
def test_no_more_containers_than_the_nodes_start(
    capsys: pytest.CaptureFixture[str], arguments: list[str], bounds: tuple[int, ...]
) -> None:
    assert bounds_of(rendered(capsys, *arguments)) == bounds


@pytest.mark.parametrize("cores", ["", "0", "0.0", "-2", "x", "2,5", "1e3", "²"])
def test_cores_that_are_no_number_are_refused(capsys: pytest.CaptureFixture[str], cores: str) -> None:
    assert "argument --cores: " in refusal(capsys, "--image", IMAGE, f"--cores={cores}")


@pytest.mark.parametrize("spares", ["", "-1", "x", "1.5", "=3", "lab-operations=", "lab-operations=x", "²"])
def test_spares_that_are_no_number_are_refused(capsys: pytest.CaptureFixture[str], spares: str) -> None:
    said = refusal(capsys, "--image", IMAGE, f"--spares={spares}")
    assert "argument --spares: " in said
    assert "allowed are N and NAME=N" in said


@pytest.mark.parametrize(
    "setting",
    ["", "LOG_LEVEL", "LOG_LEVEL=", "LOG_LEVEL= ", "LOG_LEVEL=a\nb", "log_level=DEBUG", "READY_PORT=1", "=x"],
)
def test_a_setting_that_is_not_to_be_changed_is_refused(
    capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    assert "argument --env: " in (said := refusal(capsys, "--image", IMAGE, f"--env={setting}"))
    assert "CELERY_TASK_MAX_RETRIES, " in said


def test_a_secret_is_no_argument(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "--image", IMAGE, "--env=AMQP_URL=amqp://user:swordfish@host")
    assert "argument --env: 'AMQP_URL' cannot be set so" in said
    assert "swordfish" not in said


def test_every_problem_is_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(
        capsys,
        *("--image", IMAGE, "--spares", "lab-creates=1", "--spares", "lab-operations=100"),
        *("--max-replicas", "lab-cleanup=0"),
    )
    assert (
        "spares: no profile 'lab-creates'; allowed are lab-operations-high, lab-operations, lab-cleanup"
        in said
    )
    assert "spares of lab-operations is 100; allowed is 0 to 99" in said
    assert "max_replicas of lab-cleanup is 0; allowed is 1 or more" in said


@pytest.mark.parametrize(("spares", "max_replicas"), [(-1, 5), (5, 5), (6, 5), (0, 0), (0, -1)])
def test_a_profile_that_could_not_work_is_refused(spares: int, max_replicas: int) -> None:
    with pytest.raises(InvalidProfile, match=r"of p is .* allowed is "):
        Profile(
            name="p",
            queue="q",
            priority="low",
            task="t",
            max_replicas=max_replicas,
            per_core=1,
            spares=spares,
        )


def test_a_profile_that_outlasts_the_broker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keda.profiles._SPARE_WAIT_S", CONSUMER_TIMEOUT_S - WORST_CASE_S)
    with pytest.raises(InvalidProfile, match=r"allowed is less than 1800 s in all"):
        with_overrides(PROFILES, spares={"lab-operations": 2})


def test_overrides_leave_the_profiles_themselves_alone() -> None:
    before = tuple(PROFILES)
    with_overrides(PROFILES, spares={"*": 2})
    assert before == PROFILES
