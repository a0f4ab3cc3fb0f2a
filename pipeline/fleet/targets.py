"""The replicas as Prometheus finds them: a file for its `file_sd_configs`. Pure.

https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config
"""

from typing import Any

from pipeline.fleet.state import ModelFleet

FILE = "replicas.json"


def scrape_targets(models: dict[str, ModelFleet]) -> list[dict[str, Any]]:
    """One entry for each deployment that the gateway knows, labelled by what it serves."""
    return [
        {
            "targets": [replica.address for replica in deployment.replicas],
            "labels": {
                "model": model.name,
                "version": deployment.version,
                "generation": str(deployment.generation),
            },
        }
        for model in models.values()
        for deployment in model.deployments
        if deployment.routed
    ]
