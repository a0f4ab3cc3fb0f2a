"""Slipway's steps and what they are made of. Nothing in here imports Airflow."""

__version__ = "0.1.0"
