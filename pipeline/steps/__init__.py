"""The steps, one a module: `run(spec, job) -> result`. They never import each other."""
