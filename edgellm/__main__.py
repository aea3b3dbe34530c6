"""`python -m edgellm` is the command line."""

import sys

from edgellm.apps.cli import main

if __name__ == "__main__":
    sys.exit(main())
