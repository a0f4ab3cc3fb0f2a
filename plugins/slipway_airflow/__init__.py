"""Slipway inside Airflow: operators, triggers, backends. Uses only the light side of `pipeline`."""
