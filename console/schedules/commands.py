"""The commands `autolabs schedule …`: schedules are changed while everything runs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from console.schedules import options as options
from dispatcher.cli.program import Command
from dispatcher.errors import DispatcherError
from dispatcher.wording import many, printable, table

if TYPE_CHECKING:
    from console.schedules.cron_jobs import Change, CronJobs
    from console.schedules.edit import Bucket, Document
    from cronjobs.timetable import Schedule

#: Times that an apply follows a document that others change meanwhile.
_ROUNDS = 10


def show_all(arguments: argparse.Namespace) -> int:
    """List the schedules: when each runs, when it ran last and how that ended, and when it runs next.

    IN THE CLUSTER says where the cluster differs from what is stored; `autolabs schedule apply` brings it
    to it, `apply --dry-run` says in what it differs. Settings: KUBECONFIG, S3_ENDPOINT, S3_ACCESS_KEY,
    S3_SECRET_KEY, S3_BUCKET.
    """
    from console.schedules.overview import as_json, as_table, overview

    with _told():
        document = _bucket().read()
        rows = overview(_cron_jobs(arguments), document.schedules)
    print(as_json(rows) if arguments.json else as_table(rows))
    _tell_of_new(document)
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Print the stored document, for `apply --file`, or all of one entry and its next runs.

    Settings: S3_ENDPOINT, S3_ACCESS_KEY, S3_SECRET_KEY, S3_BUCKET.
    """
    from console.schedules.overview import entry_fields

    with _told():
        document = _bucket().read()
    if not arguments.name:
        sys.stdout.write(document.content.decode(errors="backslashreplace"))
        return 0
    print(table(entry_fields(_entry(document, arguments.name))))
    return 0


def apply(arguments: argparse.Namespace) -> int:
    """Bring the CronJobs to the stored schedules, and print what changed.

    CronJobs of ours that are no longer listed are deleted, with their Jobs. A CronJob that somebody
    suspended by hand stays so, unless the entry says `suspend: false`. With --file the file is stored first,
    as a new version, once the API server took all of it; a file that is not acceptable changes nothing.
    Settings: KUBECONFIG, S3_ENDPOINT, S3_ACCESS_KEY, S3_SECRET_KEY, S3_BUCKET; JOB_IMAGE where there is no
    CronJob yet.
    """
    bucket = _bucket()
    with _told():
        cron_jobs = _cron_jobs(arguments)
        if not arguments.file:
            return _apply_stored(bucket, cron_jobs, arguments)
        content = _content(arguments.file)
        return _store_and_apply(bucket, cron_jobs, lambda _old: content, arguments)


def set_values(arguments: argparse.Namespace) -> int:
    """Change an entry of the stored schedules, and apply them: in force at the next tick.

    The document keeps its comments. An entry that only this release has is added. Settings: as `apply`.
    """
    from console.schedules.edit import with_changes

    changes = {key: value for key in options.SETTABLE if (value := getattr(arguments, key)) is not None}
    bucket = _bucket()
    with _told():
        return _store_and_apply(
            bucket,
            _cron_jobs(arguments),
            lambda content: with_changes(content, arguments.name, changes),
            arguments,
        )


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


def run_now(arguments: argparse.Namespace) -> int:
    """Run a schedule once, now, and show its log as it comes.

    It is a Job of the CronJob as it is in the cluster, suspended or not. Refused while another run goes on,
    if concurrency is Forbid, unless it is a dry run. Ctrl-C leaves the Job running. 0: the Job is complete,
    or --no-follow. 1: it failed, or was not made. 130: interrupted. Settings: KUBECONFIG.
    """
    from console.schedules.run_now import create, follow, job_for
    from cronjobs.timetable import option_word

    with _told():
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
            print(f"autolabs: the Job {name} {goes_on}; its log: {where}", file=sys.stderr)
            return 130


def history(arguments: argparse.Namespace) -> int:
    """List the runs of a schedule, the latest first: when, how long, how it ended, what it did.

    From the ledger, which has the runs of messages too, and the Jobs that are still there. Settings:
    KUBECONFIG; DATABASE_URL for the ledger, in which all tasks but outbox are.
    """
    from console.schedules.history import as_json, as_table, runs_of

    with _told():
        found = runs_of(_cron_jobs(arguments), arguments.name, limit=arguments.limit, environ=os.environ)
    print(as_json(found) if arguments.json else as_table(found))
    return 0


def _suspend(arguments: argparse.Namespace, *, suspended: bool) -> int:
    from console.schedules.edit import with_changes

    if bool(arguments.name) == arguments.all:
        print("autolabs: name a schedule, or give --all", file=sys.stderr)
        return 2
    value = True if suspended else None

    def change(content: bytes) -> bytes:
        from cronjobs.timetable import parse_schedules

        for name in parse_schedules(content) if arguments.all else arguments.name:
            content = with_changes(content, name, {"suspend": value})
        return content

    bucket = _bucket()
    with _told():
        # What somebody suspended by hand is not in the document.
        awake = () if suspended else (None if arguments.all else tuple(arguments.name))
        return _store_and_apply(bucket, _cron_jobs(arguments), change, arguments, resumed=awake)


def _store_and_apply(
    bucket: Bucket,
    cron_jobs: CronJobs,
    change: Callable[[bytes], bytes],
    arguments: argparse.Namespace,
    *,
    resumed: tuple[str, ...] | None = (),
) -> int:
    """Store a change that the API server takes, then apply what is stored."""
    from cronjobs.timetable import parse_schedules

    image = arguments.image
    if arguments.dry_run:
        schedules = _awake(parse_schedules(change(bucket.read().content)), resumed)
        return _print_changes(cron_jobs.apply(schedules, image=image, dry_run=True), dry_run=True)

    def check(schedules: dict[str, Schedule]) -> None:
        cron_jobs.apply(_awake(schedules, resumed), image=image, dry_run=True)

    bucket.change(change, check=check)
    return _apply_stored(bucket, cron_jobs, arguments, resumed=resumed)


def _apply_stored(
    bucket: Bucket,
    cron_jobs: CronJobs,
    arguments: argparse.Namespace,
    *,
    resumed: tuple[str, ...] | None = (),
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
    from dataclasses import replace

    chosen = schedules if names is None else names
    return {
        name: replace(one, suspend=False) if name in chosen and one.suspend is None else one
        for name, one in schedules.items()
    }


def _print_changes(changes: list[Change], *, dry_run: bool) -> int:
    for change in changes:
        print(f"{change.name}: {'would be ' if dry_run and change.what != 'unchanged' else ''}{change.what}")
        for line in change.lines:
            print(f"  {line}")
    return 0


def _tell_of_new(document: Document) -> None:
    from cronjobs.timetable import SHIPPED, parse_schedules

    if missing := [n for n in parse_schedules(SHIPPED.read_bytes()) if n not in document.schedules]:
        names = many(len(missing), "schedule")
        print(
            f"autolabs: {names} of this release not stored: {', '.join(missing)};"
            " `autolabs schedule set NAME` adds one",
            file=sys.stderr,
        )


def _entry(document: Document, name: str) -> Schedule:
    schedules = document.schedules
    if name not in schedules:
        raise DispatcherError(f"no schedule {printable(name)}; there are {', '.join(schedules)}")
    return schedules[name]


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


@contextmanager
def _told() -> Iterator[None]:
    """Tell in one line what is away or refuses; libraries would use many."""
    from console.schedules.cron_jobs import api_errors

    logging.getLogger("jobs").setLevel(logging.CRITICAL)
    with api_errors():
        yield


VERBS = {
    "list": Command(show_all, options.list_options),
    "show": Command(show, options.show_options),
    "apply": Command(apply, options.apply_options),
    "set": Command(set_values, options.set_options),
    "suspend": Command(suspend, options.suspend_options),
    "resume": Command(resume, options.suspend_options),
    "run-now": Command(run_now, options.run_now_options),
    "history": Command(history, options.history_options),
}
