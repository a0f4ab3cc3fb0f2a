"""The agent: the only service that may use the Docker engine. It knows steps and replicas, and nothing else."""
