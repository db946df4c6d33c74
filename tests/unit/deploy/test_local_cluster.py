from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.local import (
    cgroups,
    daemons,
    existing,
    journal,
    mounts,
    network,
    node,
    outside,
    platform_part,
    ports,
    preflight,
    settings,
    spares,
)
from deploy.local.errors import CommandError, LocalClusterError
from deploy.local.lock import exclusive
from deploy.local.paths import Layout
from deploy.local.services import Addresses, Urls
from tests.support.cluster.local_credentials import MADE


def test_node_settings_stay_clear_of_other_software(layout: Layout) -> None:
    kubelet = node.kubelet_config(layout)
    assert kubelet["cgroupRoot"] == f"/{settings.CGROUP}"
    assert kubelet["makeIPTablesUtilChains"] is False
    assert node.kube_proxy_config(layout)["mode"] == "nftables"
    (bridge,) = node.cni_config(layout)["plugins"]
    assert bridge["bridge"] == settings.BRIDGE
    assert len(settings.BRIDGE) <= 15


def test_all_that_is_missing_is_named_in_one_error(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: tuple[Callable[[Layout], Iterator[str]], ...] = (
        lambda _: iter(["root"]),
        lambda _: iter([]),
        lambda _: iter(["disk", "port"]),
    )
    monkeypatch.setattr(preflight, "CHECKS", checks)
    with pytest.raises(LocalClusterError) as caught:
        preflight.check(layout)
    assert str(caught.value).splitlines()[1:] == ["- root", "- disk", "- port"]


@pytest.mark.parametrize(
    ("route", "named"),
    [
        ({"dst": "10.96.0.0/16", "dev": "docker0"}, True),
        ({"dst": "10.244.0.7", "dev": "tun0", "type": "local"}, True),
        ({"dst": "10.0.0.0/8", "dev": "eth0"}, False),
        ({"dst": "10.244.0.0/24", "dev": settings.BRIDGE}, False),
        ({"dst": "default", "dev": "eth0"}, False),
    ],
    ids=["same range", "one address", "wider route", "our own", "default"],
)
def test_an_address_range_of_somebody_else_is_named(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, route: dict[str, str], named: bool
) -> None:
    def answers(argv: list[str]) -> str:
        return json.dumps([route]) if "route" in argv else "[]"

    monkeypatch.setattr(network, "run", answers)
    found = [sentence for sentence in network.conflicts(layout) if "address range" in sentence]
    assert [route["dev"] in sentence for sentence in found] == ([True] if named else [])


def test_an_nftables_table_we_did_not_make_is_named(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(network, "run", lambda argv: "table ip kube-proxy\n" if argv[0] == "nft" else "[]")
    assert any("ip kube-proxy" in sentence for sentence in network.conflicts(layout))
    journal.remember(layout, "nft", "ip kube-proxy", "made by us")
    assert not any("kube-proxy" in sentence for sentence in network.conflicts(layout))


def test_a_port_of_somebody_else_is_named_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(ports, "PORTS", (("127.0.0.1", port, "etcd"),))
        monkeypatch.setattr(cgroups, "members", lambda part="": set())
        (sentence,) = ports.conflicts()
    assert f"TCP port {port} for etcd" in sentence
    assert f"pid {os.getpid()}" in sentence


def test_a_port_of_our_own_leftovers_is_no_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(ports, "PORTS", (("127.0.0.1", port, "etcd"),))
        monkeypatch.setattr(cgroups, "members", lambda part="": {os.getpid()})
        assert list(ports.conflicts()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0100007F:1F90", ("127.0.0.1", 8080)),
        ("00000000000000000000000000000000:0016", ("::", 22)),
        ("0000000000000000FFFF00000100007F:0050", ("127.0.0.1", 80)),
    ],
    ids=["v4", "v6 any", "v4 in v6"],
)
def test_kernel_addresses_are_parsed(text: str, expected: tuple[str, int]) -> None:
    assert ports.parse_address(text) == expected


def test_mounts_are_found_below_our_folders_only_and_the_last_comes_first() -> None:
    mountinfo = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        "2 1 0:5 / /var/lib/ours/a rw - tmpfs t rw\n"
        "3 1 0:5 / /var/lib/ours/with\\040space rw - tmpfs t rw\n"
        "4 1 0:5 / /var/lib/ours-not/b rw - tmpfs t rw\n"
    )
    found = mounts.parse(mountinfo, ["/var/lib/ours/"])
    assert found == ["/var/lib/ours/with space", "/var/lib/ours/a"]


def test_a_reused_pid_is_not_taken_for_a_daemon_of_ours(layout: Layout) -> None:
    record = layout.pids / "etcd.json"
    started = daemons.start_time(os.getpid())
    record.write_text(json.dumps({"pid": os.getpid(), "start": started, "argv": []}))
    assert daemons.pid_of(layout, "etcd") == os.getpid()
    record.write_text(json.dumps({"pid": os.getpid(), "start": 1, "argv": []}))
    assert daemons.pid_of(layout, "etcd") is None


def test_a_process_outside_our_cgroup_is_never_ended() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        daemons.end([other.pid], grace_s=0)
        survived = other.poll() is None
        other.kill()
    assert survived


def test_the_journal_keeps_the_value_from_before_our_first_change(layout: Layout) -> None:
    journal.remember(layout, "sysctl", "net/ipv4/ip_forward", "0")
    journal.remember(layout, "sysctl", "net/ipv4/ip_forward", "1")
    assert journal.entries(layout, "sysctl") == {"net/ipv4/ip_forward": "0"}
    journal.forget(layout)
    assert journal.read(layout) == {}


def test_sockets_and_notes_of_our_containers_are_found_by_their_bundles(
    layout: Layout, tmp_path: Path
) -> None:
    runtime = tmp_path / "runtime"
    bundle = layout.run / "containerd/io.containerd.runtime.v2.task/k8s.io/abc"
    bundle.mkdir(parents=True)
    (bundle / "address").write_text(f"unix://{runtime}/s/123")
    found = outside.of_containers(layout, runtime)
    assert found == [runtime / "runc/k8s.io/abc", runtime / "s/123"]
    (bundle / "address").write_text("unix:///etc/passwd")
    assert outside.of_containers(layout, runtime) == [runtime / "runc/k8s.io/abc"]


def test_only_folders_that_were_not_there_before_are_removed_and_only_if_empty(
    layout: Layout, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    folders = tuple(str(tmp_path / name) for name in ("theirs", "ours/deep", "shared/deep"))
    outside.remember(layout, folders)
    for folder in folders:
        Path(folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "shared" / "file").write_text("somebody's")
    outside.remove(layout, [])
    left = {path.name for path in tmp_path.iterdir()}
    assert left >= {"theirs", "shared"}
    assert "ours" not in left
    assert not (tmp_path / "shared" / "deep").exists()


def test_a_second_up_finds_the_lock_taken(tmp_path: Path) -> None:
    second = exclusive(tmp_path / "lock", wait=False)
    with (
        exclusive(tmp_path / "lock"),
        pytest.raises(LocalClusterError, match="another up or down"),
        second,
    ):
        pass


def test_an_existing_cluster_must_have_everything_named_at_once() -> None:
    kubectl = existing.Kubectl("/nonexistent/kubectl")
    found = "\n".join(existing.problems(kubectl, {}))
    for name, _ in existing.NEEDED:
        assert name in found


def test_an_unreachable_service_is_named_without_its_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environ = {"AMQP_URL": f"amqp://user:secret@127.0.0.1:{port}/"}
    found = [p for p in existing.problems(existing.Kubectl("k"), environ) if "AMQP_URL" in p]
    assert len(found) == 1
    assert f"127.0.0.1:{port}" in found[0]
    assert "secret" not in found[0]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"REDIS_URL": "redis://:p@h"}, "redis://:p@h"),
        ({"REDIS_URL": "redis://:p@here", "JOBS_REDIS_URL": "redis://:p@pods"}, "redis://:p@pods"),
    ],
    ids=["without", "with", "another for pods"],
)
def test_redis_is_optional_on_an_existing_cluster(environ: dict[str, str], expected: str | None) -> None:
    needed = {name: "http://h" for name, _ in existing.NEEDED}
    target = existing.target(existing.Kubectl("k"), {**needed, **environ})
    (jobs,) = (s for s in platform_part.secrets(target) if s["metadata"]["name"] == "autolabs-jobs")
    assert jobs["stringData"].get("CELERY_RESULT_BACKEND") == expected


def test_down_on_an_existing_cluster_spares_namespaces() -> None:
    rendered = "kind: Namespace\nmetadata: {}\n---\nkind: Role\nmetadata: {}\n"
    assert existing.without_namespaces(rendered).splitlines()[0] == "kind: Role"


class Recorder:
    """Stands for kubectl: remembers the calls and answers `get job` with one text."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.deleted: list[tuple[str, ...]] = []

    def __call__(self, *words: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        if words[0] == "delete":
            self.deleted.append(words)
        elif not self.job:
            raise CommandError(["kubectl"], 1, "not found", None)
        return self.job


@pytest.mark.parametrize(
    ("job", "deleted"),
    [
        ("jobs:1 1 2026-01-01T10:00:05Z", False),
        ("jobs:0 1 2026-01-01T10:00:05Z", True),
        ("jobs:1 2026-01-01T10:00:05Z", True),
        ("jobs:1 1 2026-01-01T09:00:00Z", True),
        ("", False),
    ],
    ids=["up to date", "other image", "not succeeded", "before the services", "absent"],
)
def test_the_setup_runs_again_only_when_it_has_to(job: str, deleted: bool) -> None:
    kubectl = Recorder(job)
    target = platform_part.Target(
        kubectl=kubectl,
        job_image="jobs:1",
        urls=Urls.of(MADE, Addresses()),
        s3_access_key="a",
        s3_secret_key="b",
        data_since="2026-01-01T10:00:00Z",
    )
    platform_part.remove_outdated_setup(target)
    assert bool(kubectl.deleted) is deleted


def spare(name: str, image: str, phase: str, ready: str) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"batch.kubernetes.io/job-name": name}},
        "spec": {"containers": [{"image": image}]},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
    }


def test_only_waiting_spares_of_an_earlier_image_are_replaced() -> None:
    pods = [
        spare("old-waits", "jobs:1", "Running", "False"),
        spare("old-works", "jobs:1", "Running", "True"),
        spare("old-done", "jobs:1", "Succeeded", "False"),
        spare("new-waits", "jobs:2", "Running", "False"),
    ]
    assert spares.outdated(pods, "jobs:2") == {"old-waits"}


def test_the_cache_follows_xdg_unless_named() -> None:
    environ = {"HOME": "/home/u"}
    assert Layout.from_env(environ).cache == Path("/home/u/.cache/autolabs")
    assert Layout.from_env(environ | {"XDG_CACHE_HOME": "/x"}).cache == Path("/x/autolabs")
    assert Layout.from_env(environ | {"AUTOLABS_CACHE": "/y"}).cache == Path("/y")


def test_the_state_does_not_depend_on_the_checkout(layout: Layout) -> None:
    made = Layout.from_env({"HOME": "/home/u"})
    assert replace(made, checkout=Path("/other")).state == made.state


def test_cores_are_those_of_nodes_that_take_our_pods() -> None:
    def node(cpu: str, *effects: str) -> dict[str, Any]:
        taints = [{"key": "x", "effect": effect} for effect in effects]
        return {"spec": {"taints": taints} if taints else {}, "status": {"allocatable": {"cpu": cpu}}}

    nodes = [
        node("2"),
        node("1930m"),
        node("4", "PreferNoSchedule"),
        node("10k", "NoSchedule"),
        node("8", "NoExecute"),
    ]
    listed = json.dumps({"items": nodes})
    assert platform_part.node_cores(lambda *_: listed) == pytest.approx(7.93)
