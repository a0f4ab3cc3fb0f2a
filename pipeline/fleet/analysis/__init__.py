"""Is the canary good enough? What was observed, what is compared, and what is concluded from it."""
