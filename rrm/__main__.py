"""`python -m rrm`."""

import os
import sys

if __name__ == "__main__":
    if os.environ.get("RRM_PRELOADED"):
        from rrm.preload import end_as, run_there

        if (status := run_there(sys.argv[1:])) is not None:
            end_as(status)
    from rrm.cli import main

    sys.exit(main())
