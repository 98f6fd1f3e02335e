"""`python -m rrm`."""

import sys

if __name__ == "__main__":
    from rrm.preload import end_as, run_there

    if (status := run_there(sys.argv[1:])) is not None:
        end_as(status)
    from rrm.cli import main  # after that: it loads what the forked process has already

    sys.exit(main())
