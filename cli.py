"""Starts the command ``speclrm``."""

from __future__ import annotations

import os
import re
import signal

_COMPLETED = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")
"""Where bash, and other shells, say what is to be completed."""
_NAMES = re.compile(r"^\S+\s+\w+|(?<=\s)--[\w-]+")
"""In such a line: the command, and the options."""


def main() -> None:
    """Runs the program as its arguments say."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until a command runs (``commands.errors.guard``) there is nothing to clean up.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from speclrm.commands.program import app, with_dashes

    for name in _COMPLETED:  # completion looks for the names as they are written in the help
        if line := os.environ.get(name):
            os.environ[name] = _NAMES.sub(lambda found: with_dashes(found.group()), line)
    app()


if __name__ == "__main__":
    main()
