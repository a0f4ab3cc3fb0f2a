"""The serving fleet: replicas, the gateway, rollouts."""
