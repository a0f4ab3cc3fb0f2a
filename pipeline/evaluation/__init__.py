"""Scoring with the serving engine, and statistics over rows."""
