"""``python -m sslseg`` and the console script."""

from __future__ import annotations

import sys
import warnings


def main() -> None:
    if not sys.warnoptions:
        # Third parties' warnings do not help our users; python -W shows them.
        warnings.simplefilter("ignore")
    from sslseg.cli.app import app
    from sslseg.cli.console import run

    sys.exit(run(lambda: app(standalone_mode=False, prog_name="sslseg")))


if __name__ == "__main__":
    main()
