"""Prints a trace as JSON; the error, and its exit code, if there is no such request."""

import sys
from pathlib import Path

from pipeline import settings
from pipeline.errors import SlipwayError, SpecError
from pipeline.stack.layout import Layout
from pipeline.trace import trace


def main() -> int:
    try:
        if len(sys.argv) != 2:
            raise SpecError(f"expected one argument, the id of a request, and got {len(sys.argv) - 1}")
        print(trace(Layout(Path(settings.load().home_path)), sys.argv[1]).model_dump_json())
    except SlipwayError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


sys.exit(main())
