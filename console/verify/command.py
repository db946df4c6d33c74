"""Prove that database, cluster and broker say the same, and repair what is safe: `autolabs verify`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dispatcher.cli.arguments import row_id, seconds
from dispatcher.cli.program import EXIT_USAGE, complain
from dispatcher.errors import InvalidSettings
from dispatcher.settings import BrokerSettings, Environment, database_url, read_settings

if TYPE_CHECKING:
    from console.verify.report import Report
    from dispatcher.interrupts import Stop
    from jobs.verify.snapshot import Comparison, Sources

EXIT_CLEAN = 0
EXIT_DIFFERENT = 1
EXIT_COULD_NOT_LOOK = 3
#: The shell's exit code of a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130

#: Seconds between lines of progress.
PROGRESS_S = 2.0


def run(arguments: argparse.Namespace) -> int:
    """Prove that database, cluster and broker say the same.

    Every RUNNING lab has a Ready Pod, a Service and a NetworkPolicy; every object of ours has a live lab;
    every message waits for a lab that needs it; every lab that waits for its start or its stop has somebody
    at it. What differs is looked at twice, because labs move meanwhile. With LABs, the ids of some in
    lab_instances, only what is about them is told and repaired.

    0: nothing differs. 1: something does (with --repair: is left). 2: the command line or a setting is wrong.
    3: a server is away, or not all messages could be looked at. 130: interrupted. Settings: DATABASE_URL,
    AMQP_URL, AMQP_HEARTBEAT_S (as the containers have it), LAB_NAMESPACE, RABBITMQ_API_URL (to count what
    consumers hold), and KUBECONFIG, a file with inline data; without it KUBECONFIG_OBJECT in the bucket, or
    the container's ServiceAccount. S3_ENDPOINT and the other S3 settings say where the templates are of what
    --repair makes again.
    """
    from dispatcher.interrupts import Interrupted, stop_on_signals
    from jobs.verify.snapshot import CouldNotLook

    # They log many lines about a server that is away; the command says it in one.
    for library in ("pika", "jobs", "dispatcher"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    for option in ("dry_run", "force"):
        if getattr(arguments, option) and not arguments.repair:
            complain(f"--{option.replace('_', '-')} changes nothing without --repair", EXIT_CLEAN)
    started = time.monotonic()
    try:
        with stop_on_signals() as stop:
            report = _verify(arguments, started, stop)
    except (Interrupted, KeyboardInterrupt):
        sentence = "interrupted; what was repaired is in the ledger, no message is lost"
        return complain(sentence, EXIT_INTERRUPTED)
    except InvalidSettings as exc:
        return complain(str(exc), EXIT_USAGE)
    except CouldNotLook as exc:
        return complain(f"could not look at {exc}", EXIT_COULD_NOT_LOOK)
    print(report.as_json() if arguments.json else report.as_text())
    if report.left:
        return EXIT_DIFFERENT
    return EXIT_COULD_NOT_LOOK if report.inventory.queues and report.inventory.queues.gaps else EXIT_CLEAN


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("labs", nargs="*", type=row_id, metavar="LAB", help="only what is about these labs")
    parser.add_argument("--repair", action="store_true", help="mend what is safe, and print what was done")
    parser.add_argument("--dry-run", action="store_true", help="only look, even with --repair")
    parser.add_argument(
        "--force", action="store_true", help="with --repair: however many labs are affected (a fifth, or 10)"
    )
    parser.add_argument("--no-queues", action="store_true", help="leave the broker out")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    number: dict[str, Any] = {"type": seconds, "metavar": "SECONDS"}
    parser.add_argument("--settle", default=3.0, **number, help="between the looks (default: 3)")
    younger = "younger objects and requests are no difference (default: 60)"
    parser.add_argument("--grace", default=60.0, **number, help=younger)


def _verify(arguments: argparse.Namespace, started: float, stop: Stop) -> Report:
    from console.verify.report import Report
    from jobs.verify.differences import unneeded
    from jobs.verify.snapshot import find_differences

    sources = _sources(arguments, stop)
    try:
        findings = find_differences(sources, settle_s=arguments.settle, only=arguments.labs)
        report = Report(
            findings.differences,
            findings.inventory,
            time.monotonic() - started,
            undecided=findings.undecided,
            looked_at=sources.looked_at,
            unneeded=unneeded(findings.inventory),
        )
        if arguments.labs:
            report.left_out.append(f"only labs {', '.join(map(str, arguments.labs))} are reported")
            if other := [str(lab) for lab in arguments.labs if lab not in findings.inventory.rows]:
                report.left_out[-1] += f"; over, with nothing left, or unknown: {', '.join(other)}"
        if arguments.no_queues:
            report.left_out.append("messages were not looked at (--no-queues)")
        elif sources.management_url is None:
            report.left_out.append("what consumers hold was not counted: RABBITMQ_API_URL is not set")
        if arguments.repair and not arguments.dry_run:
            _repair(sources, findings, report, force=arguments.force)
        report.seconds = time.monotonic() - started
    finally:
        sources.labs.close()
    return report


def _repair(sources: Sources, findings: Comparison, report: Report, *, force: bool) -> None:
    from console.access import open_configs
    from jobs.database.snapshot_rows import why_read_only
    from jobs.errors import JobError
    from jobs.verify.repairs import Repairs, refusal
    from jobs.verify.snapshot import CouldNotLook

    report.repaired = {}
    try:
        report.refusal = why_read_only(sources.labs)
    except JobError as exc:
        raise CouldNotLook(f"the database: {exc.evidence or exc}") from exc
    if report.refusal is None and not force:
        refused = refusal(findings.differences, findings.inventory)
        report.refusal = refused.sentence if refused else None
    if report.refusal:
        return
    index = {id(one): at for at, one in enumerate(findings.differences)}
    repairs = Repairs(
        sources=sources,
        as_of=findings.inventory.now,
        pod_name=os.environ.get("POD_NAME"),
        force=force,
        configs=lambda: open_configs(os.environ),
    )
    for one, done, what in repairs.run(findings.differences):
        report.repaired[index[id(one)]] = (done, what)


def _sources(arguments: argparse.Namespace, stop: Stop) -> Sources:
    """Return what to look at. Raises InvalidSettings, and CouldNotLook for a cluster without access."""
    from console.access import open_cluster
    from jobs.database.lab_store import LabStore
    from jobs.errors import JobError
    from jobs.verify.snapshot import CouldNotLook, Sources

    def build(env: Environment) -> tuple[str, BrokerSettings | None, str | None, str]:
        broker = None if arguments.no_queues else BrokerSettings.from_environment(env)
        api = "RABBITMQ_API_URL"
        management = env.url(api, ("http", "https")) if env.find(api) is not None else None
        return database_url(env), broker, management, env.text("LAB_NAMESPACE", "labs")

    url, broker, management, namespace = read_settings(os.environ, build)
    try:
        cluster = open_cluster(os.environ)
    except JobError as exc:
        raise CouldNotLook(f"the cluster: {exc}") from exc
    labs = LabStore(url, application_name="autolabs-verify")
    places = _looked_at(url, cluster.server, namespace, broker)
    return Sources(
        labs,
        cluster,
        namespace,
        broker,
        management,
        stop,
        places,
        grace_s=arguments.grace,
        progress=_Progress(),
        url_template=_url_template(),
    )


def _url_template() -> str | None:
    """Return how URLs of labs are made; None without access to the settings: rows are not compared then."""
    from console.access import open_configs
    from jobs.errors import JobError

    try:
        return open_configs(os.environ).lab_settings().connection_url
    except JobError:
        return None


def _looked_at(url: str, server: str, namespace: str, broker: BrokerSettings | None) -> dict[str, str]:
    """Return where everything is, without passwords, for whoever has several platforms."""
    from dispatcher.broker.connection import url_parameters

    parts = urlsplit(url)
    looked_at = {
        "database": f"{parts.path.lstrip('/')} at {parts.netloc.rpartition('@')[2]}",
        "cluster": server,
        "namespace": namespace,
    }
    if broker is not None:
        parameters = url_parameters(broker)
        looked_at["broker"] = f"{parameters.host}:{parameters.port} vhost {parameters.virtual_host}"
    return looked_at


class _Progress:
    """Say on standard error where a look is, now and then."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PROGRESS_S

    def __call__(self, where: str) -> None:
        if time.monotonic() >= self._next:
            print(f"... {where}", file=sys.stderr)
            self._next = time.monotonic() + PROGRESS_S
