"""``python -m sslseg`` and the console script."""

from __future__ import annotations

import os
import sys
import warnings


def main() -> None:
    # Read when torch is loaded. Threads that spin while they wait take the CPU from the loader's processes, and from other
    # programs: on two busy cores an iteration took six times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.warnoptions:
        # Third parties' warnings do not help our users; python -W shows them.
        warnings.simplefilter("ignore")
    from sslseg.cli.app import app
    from sslseg.cli.console import run

    sys.exit(run(lambda: app(standalone_mode=False, prog_name="sslseg")))


if __name__ == "__main__":
    main()
