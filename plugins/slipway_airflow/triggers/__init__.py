"""What the triggerer waits for: jobs, and champions."""
