"""What the steps agree on: specs, results, manifests, the recipe. Pydantic and the standard library only."""
