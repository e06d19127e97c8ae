"""`python -m stepwell_server` is the `stepwell` command."""

import sys

from stepwell.command import main

if __name__ == "__main__":
    sys.exit(main())
