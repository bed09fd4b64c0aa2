"""`python -m respec_server` is `respec`."""

import sys

from respec_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
