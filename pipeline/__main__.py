"""`python -m pipeline STEP --spec SPEC --out URI`: the one way in which any backend runs a step."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
