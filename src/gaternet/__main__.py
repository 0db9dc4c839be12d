"""`python -m gaternet`."""

import sys

from gaternet.cli import main

sys.exit(main())
