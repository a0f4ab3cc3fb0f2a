"""The page Fleet inside Airflow's UI: what is served and why, and who may change it. See docs/fleet-page.md."""
