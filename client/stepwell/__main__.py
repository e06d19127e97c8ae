"""`python -m stepwell` is the `stepwell` script."""

import sys

from stepwell.command import main

if __name__ == "__main__":
    sys.exit(main())
