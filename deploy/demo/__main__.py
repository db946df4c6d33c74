"""Show a lab's whole life on the running platform: `python -m deploy.demo`.

Exit code 0 if everything happened as it should; 1 with what was seen last otherwise; 130 after Ctrl-C, which
stops the demo's labs too.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
import time
import urllib.request
from datetime import datetime, timezone

from deploy.demo.platform import PLATFORM, LabRow, NotInTime, Platform, eventually
from deploy.demo.timeline import JobWatch, print_timeline, task_timeline
from dispatcher import DispatcherError

CLEANUP = "cleanup-timeout-labs"


def say(text: str) -> None:
    """Print a headline."""
    print(f"\n== {text}", flush=True)


def show(*command: str) -> None:
    """Print a command that an operator would type, and what it answers."""
    print(f"  $ {' '.join(command)}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    for line in (done.stdout + done.stderr).splitlines():
        print(f"  {line}")


def start(platform: Platform, jobs: JobWatch) -> LabRow:
    """Ask for a lab and follow it until it is RUNNING."""
    published_at = datetime.now(timezone.utc)
    lab_instance_id, task_id = platform.start_lab()
    print(f"  lab {lab_instance_id} is PENDING, task {task_id} is published")
    row = platform.wait_for_status(lab_instance_id, "RUNNING", "FAILED")
    if row.status == "FAILED":
        raise NotInTime(f"lab {row.id} is FAILED: {row.error_category}: {row.error_message}")
    run = platform.runs(lab_instance_id)[-1]
    created_at = jobs.created.get(run["job_name"])
    assert row.started_at is not None  # noqa: S101  # RUNNING has it
    print_timeline(task_timeline(run, published_at, created_at, ("lab RUNNING", row.started_at)))
    return row


def fetch_page(row: LabRow) -> None:
    """Fetch the lab's page from its connection_url; it must name the lab."""
    assert row.connection_url is not None  # noqa: S101  # RUNNING has it
    with urllib.request.urlopen(row.connection_url, timeout=10) as response:  # noqa: S310  # http
        page = response.read().decode()
    text = html.unescape(re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL))
    print(f"  {row.connection_url} says: {' '.join(text.split())[:160]}")
    if str(row.id) not in text:
        raise NotInTime(f"the page does not show lab {row.id}")


def stop(platform: Platform, jobs: JobWatch, row: LabRow) -> None:
    """Delete the lab and check that nothing of it is left."""
    published_at = datetime.now(timezone.utc)
    platform.dispatcher.delete_lab(lab_instance_id=row.id, k8s_pod_name=row.k8s_pod_name)
    stopped = platform.wait_for_status(row.id, "STOPPED")
    run = platform.runs(row.id)[-1]
    assert stopped.stopped_at is not None  # noqa: S101  # STOPPED has it
    created_at = jobs.created.get(run["job_name"])
    print_timeline(task_timeline(run, published_at, created_at, ("lab STOPPED", stopped.stopped_at)))
    expect_no_objects(platform, row)


def expire(platform: Platform, row: LabRow) -> None:
    """Let the lab's time be over, run the cleanup CronJob now, and wait for the end."""
    platform.query("UPDATE lab_instances SET expires_at = now() WHERE id = %s", row.id)
    name = f"cleanup-demo-{row.id}"
    show("kubectl", "create", "job", f"--from=cronjob/{CLEANUP}", name, "-n", PLATFORM)
    started = time.monotonic()
    platform.wait_for_status(row.id, "STOPPED")
    print(f"  lab {row.id} was expired and is STOPPED {time.monotonic() - started:.1f} s later")
    expect_no_objects(platform, row)


def expect_no_objects(platform: Platform, row: LabRow) -> None:
    """Raise unless Pod, Service and NetworkPolicy of the lab are gone."""
    eventually(
        lambda: not platform.objects_of(row.id),
        timeout_s=10,
        what=f"objects of lab {row.id} gone",
        last=lambda: platform.objects_of(row.id),
    )
    print("  Pod, Service and NetworkPolicy are gone")


def run(platform: Platform) -> None:
    """Tell the story."""
    with JobWatch(platform) as jobs:
        say("A student starts a lab: row in PostgreSQL, task through the dispatcher")
        row = start(platform, jobs)
        say("The lab answers at its connection_url")
        fetch_page(row)
        show(
            "kubectl", "get", "pods,services,networkpolicies", "-n", "labs", "-l", f"lab_instance_id={row.id}"
        )
        say("One task, one Job, one log")
        show("kubectl", "logs", "-n", PLATFORM, f"job/{platform.runs(row.id)[-1]['job_name']}")
        show("kubectl", "get", "scaledjobs,jobs,pods", "-n", PLATFORM)
        say("The student stops the lab")
        stop(platform, jobs, row)
        say("Another lab is left running past its time; the cleanup CronJob finds it")
        expire(platform, start(platform, jobs))


def clear_up(platform: Platform) -> None:
    """Ask for the end of the labs that an interrupted demo leaves."""
    for lab in platform.labs:
        if platform.lab(lab).status in ("PENDING", "RUNNING"):
            platform.dispatcher.delete_lab(lab_instance_id=lab)
            print(f"lab {lab} is stopped as well", file=sys.stderr)


def main() -> int:
    """Run the demo against the platform of the environment."""
    started = time.monotonic()
    platform = Platform()
    try:
        run(platform)
    except (KeyboardInterrupt, BrokenPipeError) as exc:
        # Nobody reads on, and the interpreter flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("\ndemo interrupted", file=sys.stderr)
        clear_up(platform)
        return 130 if isinstance(exc, KeyboardInterrupt) else 1
    except (NotInTime, DispatcherError, OSError) as exc:
        print(f"\ndemo failed: {exc}", file=sys.stderr)
        show("kubectl", "get", "scaledjobs,jobs,pods", "-n", PLATFORM)
        show("kubectl", "get", "events", "-n", "labs", "--sort-by=.lastTimestamp")
        return 1
    print(f"\ndemo done in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
