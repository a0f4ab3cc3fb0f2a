"""From the id of a request to everything behind its answer: the replica, the rollout, the version, the runs, the
recipe, the quantization, the validation report and the data set.

Reads the gateway's access log, the fleet's state, the audit log, MLflow and the artifact store; writes nothing. As a
program it prints the `Trace` as JSON, for a page that may not import the registry:

    python -m pipeline.trace REQUEST_ID
"""

from pipeline.trace.tracing import trace

__all__ = ["trace"]
