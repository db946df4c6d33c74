"""Look at the schedules and change them while everything runs: the commands `autolabs schedule …`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispatcher.cli.arguments import natural, positive
from dispatcher.cli.program import EXIT_USAGE, Command, complain
from dispatcher.errors import DispatcherError
from dispatcher.wording import many, printable, table
from keda.podspec import pinned_image

if TYPE_CHECKING:
    from console.schedules.cron_jobs import Change, CronJobs
    from console.schedules.edit import Bucket, Document
    from cronjobs.timetable import Schedule

#: Times that an apply follows a document that others change meanwhile.
_ROUNDS = 10
#: Keys of an entry that `set` can change.
_SETTABLE = ("schedule", "time_zone", "concurrency", "starting_deadline_s", "deadline_s")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Say in one line what is away or refuses; libraries would use many."""
    from console.schedules.cron_jobs import api_errors

    logging.getLogger("jobs").setLevel(logging.CRITICAL)
    with api_errors():
        yield


@_one_line_errors()
def show_all(arguments: argparse.Namespace) -> int:
    """List the schedules: when each runs, when it ran last and how that ended, and when it runs next.

    IN THE CLUSTER says where the cluster differs from what is stored; `autolabs schedule apply` brings it
    to it, `apply --dry-run` says in what it differs. Settings: KUBECONFIG, S3_ENDPOINT, S3_ACCESS_KEY,
    S3_SECRET_KEY, S3_BUCKET.
    """
    from console.schedules.overview import as_table, overview

    document = _bucket().read()
    rows = overview(_cron_jobs(arguments), document.schedules)
    print(_as_json(rows) if arguments.json else as_table(rows))
    _tell_of_new(document)
    return 0


@_one_line_errors()
def show(arguments: argparse.Namespace) -> int:
    """Print the stored document, for `apply --file`, or all of one entry and its next runs.

    Settings: S3_ENDPOINT, S3_ACCESS_KEY, S3_SECRET_KEY, S3_BUCKET.
    """
    from console.schedules.overview import entry_fields

    document = _bucket().read()
    if not arguments.name:
        sys.stdout.write(document.content.decode(errors="backslashreplace"))
        return 0
    schedules = document.schedules
    if arguments.name not in schedules:
        raise DispatcherError(f"no schedule {printable(arguments.name)}; there are {', '.join(schedules)}")
    print(table(entry_fields(schedules[arguments.name])))
    return 0


@_one_line_errors()
def apply(arguments: argparse.Namespace) -> int:
    """Bring the CronJobs to the stored schedules, and print what changed.

    CronJobs of ours that are no longer listed are deleted, with their Jobs. A CronJob that somebody
    suspended by hand stays so, unless the entry says `suspend: false`. With --file the file is stored first,
    as a new version, once the API server took all of it; a file that is not acceptable changes nothing.
    Settings: KUBECONFIG, S3_ENDPOINT, S3_ACCESS_KEY, S3_SECRET_KEY, S3_BUCKET; JOB_IMAGE where there is no
    CronJob yet.
    """
    if not arguments.file:
        return _apply_stored(arguments, _bucket(), _cron_jobs(arguments), resumed=())
    content = _content(arguments.file)
    return _store_and_apply(arguments, lambda _old: content)


@_one_line_errors()
def set_values(arguments: argparse.Namespace) -> int:
    """Change an entry of the stored schedules, and apply them: in force at the next tick.

    The document keeps its comments. An entry that only this release has is added. Settings: as `apply`.
    """
    from console.schedules.edit import with_changes

    changes = {key: value for key in _SETTABLE if (value := getattr(arguments, key)) is not None}
    return _store_and_apply(arguments, lambda content: with_changes(content, arguments.name, changes))


def suspend(arguments: argparse.Namespace) -> int:
    """Let no run of a schedule begin any more; the stored schedules say so until `resume`.

    A run that goes on ends as it would. Settings: as `apply`.
    """
    return _suspend(arguments, suspended=True)


def resume(arguments: argparse.Namespace) -> int:
    """Let a suspended schedule run again, from its next time on.

    What was left out is not made up for, but for a run within starting_deadline_s. Settings: as `apply`.
    """
    return _suspend(arguments, suspended=False)


@_one_line_errors()
def run_now(arguments: argparse.Namespace) -> int:
    """Run a schedule once, now, and show its log as it comes.

    It is a Job of the CronJob as it is in the cluster, suspended or not. Refused while another run goes on,
    if concurrency is Forbid, unless it is a dry run. Ctrl-C leaves the Job running. 0: the Job is complete,
    or --no-follow. 1: it failed, or was not made. 130: interrupted. Settings: KUBECONFIG.
    """
    from console.schedules.run_now import create, follow, job_for
    from cronjobs.timetable import option_word

    cron_jobs = _cron_jobs(arguments)
    words = [option_word(name) for name in ("dry_run", "force") if getattr(arguments, name)]
    job = job_for(cron_jobs, arguments.name, words)
    name = job["metadata"]["name"]
    where = f"kubectl logs --follow job/{name} --namespace {cron_jobs.namespace}"
    made = False
    # From the request on: whoever interrupts has to know what goes on without them.
    try:
        create(cron_jobs, job)
        made = True
        print(f"Job {name} is made; its log: {where}", file=sys.stderr)
        return 0 if arguments.no_follow else follow(cron_jobs, name)
    except KeyboardInterrupt:
        goes_on = "goes on" if made else "may have been made, and then goes on"
        return complain(f"the Job {name} {goes_on}; its log: {where}", 130)


@_one_line_errors()
def history(arguments: argparse.Namespace) -> int:
    """List the runs of a schedule, the latest first: when, how long, how it ended, what it did.

    From the ledger, which has the runs of messages too, and the Jobs that are still there. Settings:
    KUBECONFIG; DATABASE_URL for the ledger, in which all tasks but outbox are.
    """
    from console.schedules.history import as_table, runs_of

    found = runs_of(_cron_jobs(arguments), arguments.name, limit=arguments.limit, environ=os.environ)
    print(_as_json(found) if arguments.json else as_table(found))
    return 0


@_one_line_errors()
def _suspend(arguments: argparse.Namespace, *, suspended: bool) -> int:
    from console.schedules.edit import with_changes

    if bool(arguments.name) == arguments.all:
        return complain("name a schedule, or give --all", EXIT_USAGE)
    value = True if suspended else None

    def change(content: bytes) -> bytes:
        from cronjobs.timetable import parse_schedules

        for name in parse_schedules(content) if arguments.all else arguments.name:
            content = with_changes(content, name, {"suspend": value})
        return content

    # A suspension by hand is not in the document.
    resumed = () if suspended else None if arguments.all else tuple(arguments.name)
    return _store_and_apply(arguments, change, resumed=resumed)


def _store_and_apply(
    arguments: argparse.Namespace,
    change: Callable[[bytes], bytes],
    *,
    resumed: tuple[str, ...] | None = (),
) -> int:
    """Store a change that the API server takes, then apply what is stored."""
    from cronjobs.timetable import parse_schedules

    bucket, cron_jobs = _bucket(), _cron_jobs(arguments)

    def check(schedules: dict[str, Schedule]) -> list[Change]:
        return cron_jobs.apply(_awake(schedules, resumed), image=arguments.image, dry_run=True)

    if arguments.dry_run:
        _print_changes(check(parse_schedules(change(bucket.read().content))), dry_run=True)
        return 0
    bucket.change(change, check=check)
    return _apply_stored(arguments, bucket, cron_jobs, resumed=resumed)


def _apply_stored(
    arguments: argparse.Namespace, bucket: Bucket, cron_jobs: CronJobs, *, resumed: tuple[str, ...] | None
) -> int:
    """Apply what is stored, again if it changed meanwhile: who applies last has seen the last version."""
    document = bucket.read()
    for _ in range(_ROUNDS):
        schedules = _awake(document.schedules, resumed)
        changes = cron_jobs.apply(schedules, image=arguments.image, dry_run=arguments.dry_run)
        _print_changes(changes, dry_run=arguments.dry_run)
        before, document = document, bucket.read()
        if arguments.dry_run or before.content == document.content:
            _tell_of_new(document)
            return 0
        print("somebody else changed the schedules meanwhile; they are applied again", file=sys.stderr)
    raise DispatcherError("others change the schedules all the time; run `autolabs schedule apply` again")


def _awake(schedules: dict[str, Schedule], names: tuple[str, ...] | None) -> dict[str, Schedule]:
    """Return the schedules with these (None: all) said not to be suspended, unless their entry says so."""
    chosen = schedules if names is None else names
    return {
        name: replace(one, suspend=False) if name in chosen and one.suspend is None else one
        for name, one in schedules.items()
    }


def _print_changes(changes: list[Change], *, dry_run: bool) -> None:
    for change in changes:
        print(f"{change.name}: {'would be ' if dry_run and change.what != 'unchanged' else ''}{change.what}")
        for line in change.lines:
            print(f"  {line}")


def _tell_of_new(document: Document) -> None:
    from cronjobs.timetable import SHIPPED, parse_schedules

    if missing := [n for n in parse_schedules(SHIPPED.read_bytes()) if n not in document.schedules]:
        stored = f"{many(len(missing), 'schedule')} of this release not stored: {', '.join(missing)}"
        complain(f"{stored}; `autolabs schedule set NAME` adds one", 0)


def _as_json(rows: Iterable[Any]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2, default=lambda moment: moment.isoformat())


def _content(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as exc:
        raise DispatcherError(f"cannot read {printable(file)}: {exc.strerror}") from exc


def _bucket() -> Bucket:
    from console.schedules.edit import Bucket

    return Bucket()


def _cron_jobs(arguments: argparse.Namespace) -> CronJobs:
    from console.access import open_cluster
    from console.schedules.cron_jobs import CronJobs

    first_image = os.environ.get("JOB_IMAGE") or None
    return CronJobs(open_cluster(os.environ), arguments.namespace, first_image)


def list_options(parser: argparse.ArgumentParser) -> None:
    _add_namespace(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON array")


def show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="one entry, and when it runs next")


def apply_options(parser: argparse.ArgumentParser) -> None:
    _add_change(parser)
    parser.add_argument("--file", metavar="FILE", help="store this document first; - is standard input")


def set_options(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    _add_change(parser)
    parser.add_argument("--schedule", metavar="CRON", help='five cron fields, "*/10 * * * *", or @hourly')
    parser.add_argument("--time-zone", metavar="NAME", help="such as Europe/Moscow")
    parser.add_argument("--concurrency", metavar="POLICY", help="Forbid, Allow or Replace")
    seconds: dict[str, Any] = {"type": natural, "metavar": "SECONDS"}
    late, most = "by which a run may begin late", "that a run may take"
    parser.add_argument("--starting-deadline", dest="starting_deadline_s", **seconds, help=late)
    parser.add_argument("--deadline", dest="deadline_s", **seconds, help=most)


def suspend_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="*", metavar="NAME", help="names of `schedule list`")
    parser.add_argument("--all", action="store_true", help="every schedule")
    _add_change(parser)


def run_now_options(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    _add_namespace(parser)
    parser.add_argument("--dry-run", action="store_true", help="the task only says what it would do")
    parser.add_argument("--force", action="store_true", help="the task does it however many labs it is")
    parser.add_argument("--no-follow", action="store_true", help="do not wait for it")


def history_options(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    _add_namespace(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument(
        "--limit", type=positive, default=20, metavar="N", help="show at most N runs (default: 20)"
    )


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a name of `schedule list`")


def _add_namespace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--namespace", default="platform", metavar="NAME", help="of the CronJobs (default: platform)"
    )


def _add_change(parser: argparse.ArgumentParser) -> None:
    _add_namespace(parser)
    parser.add_argument("--dry-run", action="store_true", help="only print what would change")
    parser.add_argument(
        "--image", type=pinned_image, metavar="IMAGE", help="of the containers (default: as it is)"
    )


VERBS = {
    "list": Command(show_all, list_options),
    "show": Command(show, show_options),
    "apply": Command(apply, apply_options),
    "set": Command(set_values, set_options),
    "suspend": Command(suspend, suspend_options),
    "resume": Command(resume, suspend_options),
    "run-now": Command(run_now, run_now_options),
    "history": Command(history, history_options),
}
