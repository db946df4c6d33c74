"""The bridge, the one masquerading rule, and the kernel settings; each is undone by `remove`."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from deploy.local import journal
from deploy.local.errors import CommandError
from deploy.local.paths import Layout
from deploy.local.settings import (
    BRIDGE,
    NFT_TABLE,
    NODE_IP,
    POD_CIDR,
    SERVICE_CIDR,
)
from deploy.local.shell import run

SYSCTL = Path("/proc/sys")
#: Set by us.
WANTED = {
    "net/ipv4/ip_forward": "1",
    # A pod that calls a Service answered on the same bridge gets its reply through netfilter.
    "net/bridge/bridge-nf-call-iptables": "1",
}
#: Changed by the kubelet when it starts: kept here only to be restored.
CHANGED_BY_KUBELET = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
PROXY_TABLES = ("ip kube-proxy", "ip6 kube-proxy")
ALIAS = "autolabs local cluster"  # tells our bridge from one of the same name

RULES = f"""\
table ip {NFT_TABLE} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {POD_CIDR} ip daddr != {{ {POD_CIDR}, {SERVICE_CIDR} }} masquerade
  }}
}}
"""


def create(layout: Layout) -> None:
    """Make the bridge with the node's address, the rules and the kernel settings."""
    for name in (*WANTED, *CHANGED_BY_KUBELET):
        with contextlib.suppress(OSError):
            journal.remember(layout, "sysctl", name, (SYSCTL / name).read_text().strip())
    for table in (f"ip {NFT_TABLE}", *PROXY_TABLES):
        journal.remember(layout, "nft", table, "made by us")
    if not (SYSCTL / "net/bridge").exists():
        run(["modprobe", "br_netfilter"])
    for name, value in WANTED.items():
        (SYSCTL / name).write_text(value)
    if not is_ours():
        run(["ip", "link", "add", BRIDGE, "type", "bridge"])
        run(["ip", "link", "set", BRIDGE, "alias", ALIAS])
    run(["ip", "address", "replace", f"{NODE_IP}/{POD_CIDR.partition('/')[2]}", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    # Service addresses are rewritten before they leave; what is not, must not go to the gateway.
    run(["ip", "route", "replace", SERVICE_CIDR, "dev", BRIDGE, "src", NODE_IP])
    _delete_table(f"ip {NFT_TABLE}")
    run(["nft", "-f", "-"], stdin=RULES)


def remove(layout: Layout) -> None:
    """Undo everything that `create`, the CNI plugins and kube-proxy made."""
    if is_ours():
        for name in _members():
            _quietly("ip", "link", "delete", name)
        _quietly("ip", "link", "delete", BRIDGE)
    for table in journal.entries(layout, "nft"):
        _delete_table(table)
    for name, value in journal.entries(layout, "sysctl").items():
        with contextlib.suppress(OSError):
            if (SYSCTL / name).read_text().strip() != value:
                (SYSCTL / name).write_text(value)
    shutil.rmtree(layout.state / "cni", ignore_errors=True)


def is_ours() -> bool:
    """Whether the bridge is there and was made by us."""
    return (bridge := _link()) is not None and bridge.get("ifalias") == ALIAS


def is_foreign() -> bool:
    """Whether somebody else has an interface of that name."""
    return (bridge := _link()) is not None and bridge.get("ifalias") != ALIAS


def conflicts(layout: Layout) -> Iterator[str]:
    """Yield a sentence for each name or address range of ours that somebody else uses."""
    if is_foreign():
        yield f"the interface name {BRIDGE}: somebody else has one"
    wanted = [ipaddress.IPv4Network(cidr) for cidr in (POD_CIDR, SERVICE_CIDR)]
    for route in json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]"):
        destination = route.get("dst", "default")
        if destination == "default" or route.get("dev") in (BRIDGE, "lo"):
            continue
        taken = ipaddress.IPv4Network(destination, strict=False)
        for cidr in wanted:
            # A wider route stays as it is: ours are more specific and win while they are there.
            if taken.subnet_of(cidr) and route.get("type", "unicast") != "broadcast":
                yield f"the address range {cidr}: {taken} is routed to {route.get('dev', '?')}"
    if shutil.which("nft"):
        ours = journal.entries(layout, "nft")
        for table in (f"ip {NFT_TABLE}", *PROXY_TABLES):
            if table not in ours and _has_table(table):
                yield f"the nftables table {table}: another kube-proxy or cluster made it"


def _has_table(table: str) -> bool:
    try:
        return f"table {table}" in run(["nft", "list", "tables"]).splitlines()
    except CommandError:
        return False


def _link() -> dict[str, object] | None:
    try:
        found = json.loads(run(["ip", "-json", "link", "show", "dev", BRIDGE]))
    except CommandError:
        return None
    return found[0] if found else None


def _members() -> list[str]:
    found = json.loads(run(["ip", "-json", "link", "show", "master", BRIDGE]) or "[]")
    return [link["ifname"] for link in found if "ifname" in link]


def _delete_table(table: str) -> None:
    _quietly("nft", "delete", "table", *table.split())


def _quietly(*argv: str) -> None:
    with contextlib.suppress(CommandError):  # absent is what we want
        run(argv)
