"""The four commands for the cluster that this package starts itself."""

from __future__ import annotations

import functools
import time

from deploy.local import (
    addons,
    broker_users,
    cgroups,
    cluster,
    credentials,
    images,
    leftovers,
    platform_part,
    preflight,
    programs,
    services,
    spares,
)
from deploy.local.daemons import log_path, pid_of
from deploy.local.errors import CommandError, LocalClusterError
from deploy.local.lock import exclusive
from deploy.local.paths import Layout
from deploy.local.settings import JOB_IMAGE, LAB_IMAGE
from deploy.local.steps import note, step


def up(layout: Layout) -> None:
    """Have the whole system running; what is there already is kept."""
    started = time.monotonic()
    preflight.check(layout)
    with exclusive():
        layout.make_folders()
        _up(layout)
    note(f"up after {time.monotonic() - started:.1f} s; `make env` prints how to reach it")


def _up(layout: Layout) -> None:
    reason = cluster.down_reason(layout)
    if reason and leftovers.exist(layout):
        # Before anything is built: a killed build leaves mounts and children too.
        with step(f"Clear an earlier run ({reason})", "3 s"):
            leftovers.clear(layout)
        layout.make_folders()
    leftovers.end_builds(layout)
    cgroups.enter()
    preflight.install_packages(layout)
    programs.ensure_built(layout)
    wanted = images.wanted(layout)
    images.ensure_built(layout, wanted)
    cluster.ensure(layout, wanted)
    addons.apply(layout, wanted)
    with step("Wait for the node", "3 s"):
        cluster.wait_for_node(layout)
    addons.wait(layout)
    broker_users.bring_up_to_date(layout)
    names = {image.short: image.name for image in wanted}
    services.write_images(layout, {"JOB_IMAGE": names.get("job", JOB_IMAGE), "LAB_IMAGE": LAB_IMAGE})
    if "job" in names:
        place = target(layout, names["job"])
        platform_part.apply(layout, place)
        if count := spares.replace_outdated(place.kubectl, place.job_image):
            note(f"{count} spares of an earlier image make way for new ones")
    images.remove_old(layout, wanted)


def target(layout: Layout, job_image: str) -> platform_part.Target:
    """Return our own cluster as the place for the platform part."""
    made = credentials.ensure(layout)
    return platform_part.Target(
        kubectl=functools.partial(cluster.kubectl, layout),
        job_image=job_image,
        urls=services.Urls.of(made, services.Addresses()),
        s3_access_key="autolabs",
        s3_secret_key=made.minio,
        environ={
            name: value for name, value in services.environment(layout).items() if name.startswith("S3_")
        },
        data_since=services.data_since(layout),
    )


def down(layout: Layout, *, purge: bool = False) -> None:
    """Leave no process, mount, interface, rule, namespace or cgroup of ours."""
    preflight.require_root()
    with exclusive():
        with step("Stop the cluster and take away what it made", "3 s"):
            leftovers.clear(layout)
        if purge:
            with step("Remove the kept images, logs and the cache", "5 s"):
                leftovers.purge(layout)


def env(layout: Layout) -> list[str]:
    """Return `export` lines; raised is an error that says what to do when no cluster is up."""
    preflight.require_root()
    if reason := cluster.down_reason(layout):
        raise LocalClusterError(f"no cluster is up ({reason}): run `make up` first")
    return services.export_lines(services.environment(layout), path_first=str(layout.bin))


def status(layout: Layout) -> bool:
    """Print what runs; return whether all of it does."""
    preflight.require_root()
    for name in cluster.DAEMONS:
        pid = pid_of(layout, name)
        state = f"pid {pid}" if pid else "not running"
        print(f"{name:26} {state:14} log {log_path(layout, name)}")
    if reason := cluster.down_reason(layout):
        print(f"down: {reason}")
        return False
    for words in (("get", "nodes"), ("get", "pods", "--all-namespaces")):
        print("\n" + cluster.kubectl(layout, *words).rstrip())
    try:
        print("\n" + cluster.kubectl(layout, "get", "scaledjobs", "--all-namespaces").rstrip())
    except CommandError as exc:
        print(exc)
    return True
