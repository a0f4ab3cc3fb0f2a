"""Loaded by vLLM into each replica's worker process (`--worker-extension-cls`), in the serve environment.

The 4-bit kernel for CPUs uses AMX tiles, for which Linux wants each process to ask first (arch_prctl with
ARCH_REQ_XCOMP_PERM; the permission does not survive exec). oneDNN asks when it is used; a model whose first layer is
quantized reaches the kernel before that, and its worker dies of an illegal instruction. So the worker asks when it
loads this module. On a CPU without AMX this does nothing.
"""

import torch

import pipeline.fleet.replica_waiting  # noqa: F401 (the worker waits for the engine's requests)

torch.cpu._init_amx()


class Amx:
    """Adds nothing to the worker: loading it is all that is wanted."""
