"""`python -m rrm`."""

import sys

from rrm.cli import main

if __name__ == "__main__":
    sys.exit(main())
