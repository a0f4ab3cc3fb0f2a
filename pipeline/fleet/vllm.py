"""How one replica runs: `vllm serve` with the settings of its version, whoever starts it.

Reads a verified bundle folder; the engine keeps its compile cache in a folder that replicas may share.
"""

import hashlib
from pathlib import Path

from pydantic import Field

from pipeline import settings
from pipeline.adapter_files import adapter_of
from pipeline.contracts.base import Contract
from pipeline.contracts.rollout import Rollout
from pipeline.fleet.replica_middleware import LOG_PROMPTS
from pipeline.fleet.state import Replica
from pipeline.settings import ROOT

LOGGING_PATH = ROOT / "pipeline" / "fleet" / "replica_logging.json"
DRAIN_S = 60
"""How long a replica that is asked to end may go on answering what it has begun."""


class ReplicaPlan(Contract):
    """What one replica has to serve, and as what it answers."""

    replica: Replica
    model: str
    version: str
    generation: int
    bundle_path: Path
    bundle_digest: str = ""
    """What was signed, which each start of its process is held to; "" in plans of earlier releases."""
    settings: Rollout
    core: int
    """The processor core that its arithmetic is bound to."""
    door: str = Field(default="", repr=False)
    """The secret that opens it; without one, as in plans of earlier releases, whoever reaches it may ask."""


def command(plan: ReplicaPlan, python_path: Path) -> tuple[str, ...]:
    """`python_path` is the interpreter of the serve environment."""
    checked = (str(python_path), "-m", "pipeline.fleet.replica_start", plan.bundle_digest, str(plan.bundle_path))
    return (
        *(checked if plan.bundle_digest else ()),
        *(str(python_path), "-m", "vllm.entrypoints.cli.main", "serve", str(plan.bundle_path)),
        *_names(plan),
        *("--host", plan.replica.host, "--port", str(plan.replica.port)),
        *("--max-model-len", str(plan.settings.max_model_len)),
        *("--kv-cache-memory-bytes", str(plan.settings.kv_cache_mib << 20)),
        *("--shutdown-timeout", str(DRAIN_S)),
        # vLLM wants it once for each, and warns of an option that comes twice, unless its value comes with `=`.
        *(f"--middleware={name}" for name in _middleware(plan)),
        "--enable-force-include-usage",
        *("--distributed-executor-backend", "pipeline.fleet.replica_executor.Executor"),
        *("--worker-extension-cls", "pipeline.fleet.replica_worker.Amx"),
        *("--uvicorn-log-level", "warning"),
        *(("--enable-log-requests", "--enable-log-outputs") if settings.load().log_prompts else ()),
        "--enforce-eager",
    )


def _middleware(plan: ReplicaPlan) -> tuple[str, ...]:
    """From the innermost to the outermost."""
    door = ("pipeline.fleet.replica_middleware.Door",) if plan.door else ()
    return ("pipeline.fleet.replica_middleware.Version", "pipeline.fleet.replica_usage.Usage", *door)


def _names(plan: ReplicaPlan) -> tuple[str, ...]:
    """Clients ask for `plan.model`: the model, or the adapter that is applied to it."""
    adapter = adapter_of(plan.bundle_path)
    if adapter is None:
        return ("--served-model-name", plan.model)
    return (
        *("--served-model-name", f"{plan.model}.base"),
        *("--enable-lora", "--max-lora-rank", str(adapter.room), "--lora-target-modules", *adapter.targets),
        *("--lora-modules", f"{plan.model}={adapter.path}"),
    )


def variables(plan: ReplicaPlan, cache_path: Path) -> dict[str, str]:
    """The engine's settings, and what the replica's middleware says of itself."""
    return {
        "PYTHONPATH": str(ROOT),
        "SLIPWAY_REPLICA_MODEL": plan.model,
        "SLIPWAY_REPLICA_VERSION": plan.version,
        "SLIPWAY_REPLICA_GENERATION": str(plan.generation),
        **({"SLIPWAY_REPLICA_DOOR": hashlib.sha256(plan.door.encode()).hexdigest()} if plan.door else {}),
        # `--enforce-eager` leaves some small compiled functions: 20 s at a replica's first request.
        "TORCHDYNAMO_DISABLE": "1",
        # Replicas share their cores with jobs: threads that wait must sleep, not spin.
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_CPU_OMP_THREADS_BIND": str(plan.core),
        "VLLM_CACHE_ROOT": str(cache_path),
        "TORCHINDUCTOR_CACHE_DIR": str(cache_path / "inductor"),
        "VLLM_LOGGING_CONFIG_PATH": str(LOGGING_PATH),
        LOG_PROMPTS: "1" if settings.load().log_prompts else "0",
        "VLLM_HOST_IP": plan.replica.host,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
