"""Name all commands of `autolabs`: a backend administrator's, and the operators'.

`python -m console` and the installed `autolabs` (autolabs_console) read COMMANDS.
"""

from __future__ import annotations

from console.dlq import commands as dlq
from console.explain import commands as explain
from console.schedules import commands as schedules
from console.verify import command as verify
from dispatcher.cli import program
from dispatcher.cli.program import Command, Commands, Group

COMMANDS: Commands = {
    **program.COMMANDS,
    "dlq": Group(
        "Look at, requeue and discard what is in the dead-letter queue.",
        {
            "list": Command(dlq.show_all, dlq.show_all_options),
            "show": Command(dlq.show, dlq.show_options),
            "requeue": Command(dlq.requeue, dlq.requeue_options),
            "discard": Command(dlq.discard, dlq.discard_options),
        },
    ),
    "explain": Command(explain.run, explain.options),
    "verify": Command(verify.run, verify.options),
    "schedule": Group("Look at and change when periodic tasks run.", schedules.VERBS),
}
