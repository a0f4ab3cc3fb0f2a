"""Who may ask the gateway for what: API keys, limits, budgets, certificates."""
