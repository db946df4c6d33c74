"""A pile of messages that are no tasks, in the real queues, with KEDA starting containers for each."""

from __future__ import annotations

import os
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pika
import pytest
from kubernetes import client

from console.dlq.queue import Browsed, browse
from deploy.demo.platform import PLATFORM, Platform, eventually
from deploy.demo.timeline import JobWatch
from dispatcher.broker import topology
from dispatcher.settings import BrokerSettings
from jobs.__main__ import EXIT_GIVEN_BACK, EXIT_OK
from keda.profiles import PROFILES
from keda.scaledjob import make_scaled_job
from tests.support.broker.poison import KINDS, Poison, make_poison

StartLab = Callable[..., tuple[int, str]]

#: Messages of each kind.
COPIES = 8
GOOD = 4
#: Small, as the benchmark's: what is measured is the claim.
SMALL = {"cpu": "250m", "memory": "128Mi", "storage": "64Mi"}
#: Copy -> queue; most lie before the good creates.
QUEUES = [*[topology.QUEUE_NORMAL] * (COPIES - 2), topology.QUEUE_HIGH, topology.QUEUE_LOW]
INVALID = "PERMANENT_INVALID_REQUEST"


def poll_s() -> float:
    """Return the seconds after which KEDA looks at a queue again."""
    return float(make_scaled_job(PROFILES[0], image="x", env={})["spec"]["pollingInterval"])


@pytest.fixture
def channel() -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
    yield connection.channel()
    connection.close()


@pytest.fixture
def run() -> Iterator[str]:
    """What the ids of the messages begin with; none of them is left in the dead-letter queue."""
    run = f"poison-{uuid.uuid4().hex[:8]}"
    yield run
    settings = BrokerSettings(os.environ["AMQP_URL"])
    browse(settings, lambda found: str(found.properties.correlation_id).startswith(run))


def _wait_until_at_rest(platform: Platform, channel: Any) -> None:
    """Wait until the queues are empty, the spares wait at theirs, and no other container is there."""
    spares = {profile.queue: profile.spares for profile in PROFILES}
    seen: list[object] = [None]

    def at_rest() -> bool:
        # A pod that is listed as Running may have ended, and one that runs may not have connected yet.
        queues = {queue: channel.queue_declare(queue, passive=True).method for queue in topology.BINDINGS}
        waiting = {queue: (found.message_count, found.consumer_count) for queue, found in queues.items()}
        if any(waiting[queue] != (0, count) for queue, count in spares.items()):
            seen[0] = waiting
            return False
        active = len(_active(platform))
        seen[0] = (waiting, f"{active} Jobs")
        # A spare's Job is counted by KEDA until it is Complete, and keeps its successor away.
        return active == sum(spares.values())

    eventually(at_rest, timeout_s=180, what="empty queues and their spares", last=lambda: seen[0])


def _active(platform: Platform) -> set[str]:
    """Return the Jobs that are not over."""
    jobs = platform.batch.list_namespaced_job(PLATFORM, label_selector="autolabs.io/queue").items
    return {job.metadata.name for job in jobs if not job.status.completion_time and not job.status.failed}


def _depth(channel: Any, queue: str) -> int:
    return int(channel.queue_declare(queue, passive=True).method.message_count)


def _publish(channel: Any, poison: list[Poison]) -> None:
    """Publish all as fast as the socket takes them; what is lost would be missed in the dead letters."""
    for number, message in enumerate(poison):
        queue = QUEUES[number // len(KINDS)]
        channel.basic_publish("", queue, message.body, message.properties)
    _depth(channel, topology.QUEUE_NORMAL)  # answered after everything before it was taken


@dataclass(frozen=True)
class Claim:
    """A create that became a RUNNING lab."""

    job: str
    published_at: datetime
    claimed_at: datetime

    @property
    def seconds(self) -> float:
        return (self.claimed_at - self.published_at).total_seconds()


def _claims(platform: Platform, labs: list[int]) -> list[Claim]:
    """Wait until the labs run; return how their creates were claimed, the quickest first."""
    found = []
    for lab in labs:
        row = platform.wait_for_status(lab, "RUNNING", "FAILED", timeout_s=240)
        assert row.status == "RUNNING", row
        run = platform.runs(lab)[0]
        claimed_at = datetime.fromisoformat(run["details"]["claimed_at"])
        found.append(Claim(run["job_name"], run["published_at"], claimed_at))
    return sorted(found, key=lambda claim: claim.seconds)


def _most_containers(platform: Platform) -> int:
    """Return how many containers KEDA may have at once, for all queues."""
    custom = client.CustomObjectsApi(platform.core.api_client)
    found = custom.list_namespaced_custom_object("keda.sh", "v1alpha1", PLATFORM, "scaledjobs")
    return sum(item["spec"]["maxReplicaCount"] for item in found["items"])


def _start_s(jobs: JobWatch, claims: list[Claim]) -> float:
    """Return the seconds from a Job to the claim of the container that took longest to start."""
    waits = [
        (claim.claimed_at - jobs.created[claim.job]).total_seconds()
        for claim in claims
        if jobs.created[claim.job] > claim.published_at
    ]
    assert waits, "spares took all of them"
    return max(waits)


def _take_dead_letters(ids: set[str]) -> dict[str, list[dict[Any, Any]]]:
    """Take these out of the dead-letter queue as they come; return their headers.

    One may be there twice: a busy broker may confirm 10 MB too late, and they are published again.
    """
    taken: dict[str, list[dict[Any, Any]]] = defaultdict(list)

    def look(found: Browsed) -> bool:
        wanted = found.properties.correlation_id in ids
        if wanted:
            taken[str(found.properties.correlation_id)].append(dict(found.properties.headers or {}))
        return wanted

    def all_taken() -> bool:
        browse(BrokerSettings(os.environ["AMQP_URL"]), look)
        return taken.keys() == ids

    eventually(all_taken, timeout_s=120, what="dead letters", last=lambda: f"{len(taken)} of {len(ids)}")
    return taken


def _exit_codes(platform: Platform, names: set[str]) -> Counter[int]:
    """Return how the containers of these Jobs ended, those that did."""
    states = [
        one.state.terminated
        for pod in platform.core.list_namespaced_pod(PLATFORM, label_selector="autolabs.io/queue").items
        if pod.metadata.labels["batch.kubernetes.io/job-name"] in names
        for one in pod.status.container_statuses or ()
    ]
    codes = Counter(int(state.exit_code) for state in states if state)
    assert codes, "no container is left to look at"
    return codes


@pytest.mark.timeout(400)
def test_200_messages_that_are_no_tasks_delay_none_behind_them(
    platform: Platform,
    channel: Any,
    run: str,
    jobs: JobWatch,
    started: list[int],
    start_lab: StartLab,
    capsys: pytest.CaptureFixture[str],
) -> None:
    labs = [platform.add_lab() for kind in KINDS.values() if kind.fails_its_lab for _ in range(COPIES)]
    started += labs
    poison = make_poison(run, iter(labs), copies=COPIES, image=platform.lab_image)
    assert len(poison) == 200
    _wait_until_at_rest(platform, channel)
    before, began = set(jobs.created), datetime.now(timezone.utc)
    _publish(channel, poison)
    behind = _claims(platform, [start_lab(resources=SMALL)[0] for _ in range(GOOD)])
    dead = _take_dead_letters({message.id for message in poison})

    for message in poison:
        for headers in dead[message.id]:
            assert message.reason in headers["x-autolabs-reason"], message
            assert headers["x-autolabs-category"] == INVALID
            assert headers["x-autolabs-attempts"] == 1
            assert "x-death" not in headers, "the broker gave it up, no container did"
    for lab in labs:
        row = platform.lab(lab)
        assert (row.status, row.error_category) == ("FAILED", INVALID)
        assert row.error_message
        assert row.error_message.endswith(".")

    new = set(jobs.created) - before
    letters = [headers for copies in dead.values() for headers in copies]
    served = {headers["x-autolabs-job"] for headers in letters}
    assert len(new) <= _most_containers(platform) + GOOD

    gone_at = max(datetime.fromisoformat(headers["x-autolabs-dead-at"]) for headers in letters)
    pile_s = (gone_at - began).total_seconds()

    # Nothing comes back, and what is not needed leaves.
    _wait_until_at_rest(platform, channel)
    later = set(jobs.created) - before - new
    assert len(later) <= GOOD, "containers are started for messages that are gone"
    codes = _exit_codes(platform, new | served)
    assert set(codes) <= {EXIT_OK, EXIT_GIVEN_BACK}, "containers died over it"
    assert codes[EXIT_GIVEN_BACK] <= COPIES

    # At rest, as the pile began.
    ordinary = _claims(platform, [start_lab(resources=SMALL)[0] for _ in range(GOOD)])
    ordinary_s, start_s = ordinary[-1].seconds, _start_s(jobs, ordinary)
    with capsys.disabled():
        print(
            f"\n{len(poison)} messages of {len(KINDS)} kinds put aside by {len(served)} containers in"
            f" {pile_s:.1f} s ({len(letters) - len(poison)} of them twice); {len(new)} Jobs were started"
            f"\nseconds from publish to claim of {GOOD} creates: on empty queues"
            f" {_shown(ordinary)} (start of a container {start_s:.2f}), behind the pile {_shown(behind)}"
        )
    # How long a container takes to start, beside those for the pile, is the machine's: printed, not judged.
    for claim in behind:
        waited_s = (jobs.created[claim.job] - max(claim.published_at, gone_at)).total_seconds()
        assert waited_s <= ordinary_s + poll_s(), "its container was not asked for when the pile was gone"
    assert pile_s / len(poison) < start_s / 5, "a container is started for each"


def _shown(claims: list[Claim]) -> str:
    return ", ".join(f"{claim.seconds:.2f}" for claim in claims)
