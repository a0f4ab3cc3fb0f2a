"""Where this home's replicas run."""

from pipeline.agent import AgentClient
from pipeline.fleet.local_replicas import LocalReplicas, VllmEngine
from pipeline.fleet.remote_replicas import RemoteReplicas
from pipeline.fleet.replicas import ReplicaHost
from pipeline.settings import Settings
from pipeline.stack.layout import LOOPBACK, Layout
from pipeline.stack.supervisor import Supervisor


def replica_host(settings: Settings, layout: Layout) -> ReplicaHost:
    """Containers where there is an agent to start them, else processes of this machine."""
    if settings.agent_path is not None:
        return RemoteReplicas(AgentClient(settings.agent_path))
    addresses = tuple(layout.ports().regions.values()) or (LOOPBACK,)
    return LocalReplicas(Supervisor(layout.home_path), VllmEngine(layout, settings.python_path("serve")), addresses)
