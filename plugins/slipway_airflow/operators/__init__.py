"""The operators of Slipway's DAGs."""
