"""Prints docs/options.md: ``python tests/options_table.py > docs/options.md``."""

from __future__ import annotations

from speclrm.app.options import RUN_DECLARED
from speclrm.commands.from_options import table

HEAD = """# Options of `speclrm run`

Each option is also an environment variable (`SPECLRM_TOKEN_BUDGET`) and a key of a `--config` file (`token_budget`). The
command line takes precedence over the environment, and the environment over the file. This page is made from the fields that
declare the options (`strategies/recipe.py`, `app/engine_options.py`, `app/options.py`) by
`python tests/options_table.py > docs/options.md`.
"""

if __name__ == "__main__":
    print(HEAD)
    print(table(RUN_DECLARED), end="")
