"""Entry point of `./slipway`."""

import sys

from pipeline.commands.app import main

sys.exit(main())
