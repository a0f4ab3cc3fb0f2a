"""Loaded by vLLM into each replica's engine process (`--distributed-executor-backend`), in the serve environment."""

from vllm.v1.executor.multiproc_executor import MultiprocExecutor

import pipeline.fleet.replica_waiting  # noqa: F401 (the engine waits for its worker's answers)


class Executor(MultiprocExecutor):  # type: ignore[misc]
    """vLLM's own, with the worker in a process of its own. Loading it is all that is wanted."""
