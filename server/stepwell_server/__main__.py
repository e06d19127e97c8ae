"""`python -m stepwell_server` is the `stepwell` command."""

import sys

from stepwell_server.cli import main

sys.exit(main())
