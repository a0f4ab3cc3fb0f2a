"""`python -m slipway_airflow.agent serve|check`: the agent on the socket SLIPWAY_AGENT, and whether it is well."""

import argparse
import signal
import sys
from pathlib import Path

from pipeline import settings
from pipeline.agent import AgentClient
from pipeline.errors import SlipwayError, SpecError
from pipeline.settings import Settings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m slipway_airflow.agent", description=__doc__)
    parser.add_argument("action", choices=("serve", "check"), help="serve: run until SIGTERM; check: ask a running one")
    action = parser.parse_args().action
    try:
        configured = settings.load()
        serve(configured) if action == "serve" else check(configured)
    except SlipwayError as error:
        print(f"error {error.exit_code} {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def serve(configured: Settings) -> None:
    """Runs until SIGTERM. Jobs and replicas go on without it, unless the whole stack is being removed."""
    import uvicorn

    from slipway_airflow.agent.farewell import end_with_the_stack
    from slipway_airflow.agent.replica_containers import ReplicaContainers
    from slipway_airflow.agent.server import agent_app
    from slipway_airflow.backends.docker import DockerBackend

    path = socket_path(configured)
    replicas = ReplicaContainers(configured)
    for failure in replicas.restore():
        print(failure, file=sys.stderr)
    app = agent_app(configured, DockerBackend(configured), replicas)
    path.parent.mkdir(parents=True, exist_ok=True)
    # uvicorn raises the signal once more when it has finished.
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.run(app, uds=str(path), log_level="warning", lifespan="off")
    if ended := end_with_the_stack(configured):
        print(f"the stack is being removed: ended {ended} replicas and steps", file=sys.stderr)


def check(configured: Settings) -> None:
    """Prints how many replicas the agent knows.

    Raises:
        TransientError: it does not answer, or its Docker engine does not.
    """
    print(AgentClient(socket_path(configured)).call("GET", "/health"))


def socket_path(configured: Settings) -> Path:
    if configured.agent_path is None:
        raise SpecError("SLIPWAY_AGENT is not set; expected the path of the agent's socket")
    return configured.agent_path


if __name__ == "__main__":
    sys.exit(main())
