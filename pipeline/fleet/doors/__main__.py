"""`python -m pipeline.fleet.doors HOME`."""

import sys

from pipeline.fleet.doors.keeper import main

if __name__ == "__main__":
    sys.exit(main())
