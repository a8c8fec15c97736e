"""The command ``fusedrnn``: makes sure that its libraries are there, then hands over to :mod:`fusedrnn.lm.commands`."""

from __future__ import annotations

import importlib.util
import sys

_LIBRARIES = ("click", "inflect", "matplotlib", "tqdm")


def main() -> None:
    """Runs the command line and exits; with status 1 and one sentence where a library is missing."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"fusedrnn: the command line needs {', '.join(missing)}: pip install 'fusedrnn[lm]'")
    from .commands import commands

    commands(prog_name="fusedrnn")


if __name__ == "__main__":
    main()
