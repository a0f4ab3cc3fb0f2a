"""The local stack: a supervised Airflow, MLflow, PostgreSQL and gateway in one state folder."""
