"""The command line: `slipway up`, `release`, `status` and the rest. See `./slipway --help`."""
