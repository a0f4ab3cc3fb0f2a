"""The MLflow registry: versions, aliases, lineage, cards."""
