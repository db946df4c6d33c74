"""The commands `autolabs lab …`: when a lab ends, and its extension."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from dispatcher import lab_time
from dispatcher.cli.arguments import moment, positive, row_id
from dispatcher.extras import needs_extra
from dispatcher.lab_time import LabTime
from dispatcher.settings import database_url, read_settings
from dispatcher.terminal import fields

if TYPE_CHECKING:
    from sqlalchemy import Connection


def show_time(arguments: argparse.Namespace) -> int:
    """Show when a lab ends, until when it may be extended, and whether its student was warned.

    Settings: DATABASE_URL.
    """
    _show(_in_transaction(lambda connection: lab_time.read(connection, arguments.lab)), arguments.json)
    return 0


def extend(arguments: argparse.Namespace) -> int:
    """Move the end of a lab by some minutes, at most to its latest end, and show when it ends then.

    1: it was not moved, and standard error says why. Settings: DATABASE_URL.
    """
    given = {"ends_at": arguments.ends_at}
    found = _in_transaction(
        lambda connection: lab_time.extend(connection, arguments.lab, arguments.minutes, **given)
    )
    _show(found, arguments.json)
    return 0


def time_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lab time`."""
    parser.add_argument("lab", metavar="ID", type=row_id, help="the lab's id, lab_instances.id")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def extend_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lab extend`."""
    time_options(parser)
    parser.add_argument("minutes", metavar="MINUTES", type=positive, help="by how much, from 1")
    parser.add_argument(
        "--ends-at",
        metavar="TIME",
        type=moment,
        help="the end as it is now, with its offset (2026-03-01T11:00:00Z): nothing is added if it was moved"
        " meanwhile, nor twice if the command is repeated",
    )


def _in_transaction(work: Callable[[Connection], LabTime]) -> LabTime:
    url = read_settings(os.environ, database_url)
    with needs_extra("db"):
        from dispatcher.engine import in_transaction, make_engine
    engine = make_engine(url, application_name="autolabs-lab", statement_timeout_s=10)
    try:
        return in_transaction(engine, work, what="the lab's row was not read or written")
    finally:
        engine.dispose()


def _show(found: LabTime, as_json: bool) -> None:
    values = {
        name: value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else value
        for name, value in asdict(found).items()
    }
    print(json.dumps(values, indent=2) if as_json else fields(values))
