"""What Airflow loads of Slipway: a listener. The library beside it is a plain package."""

from airflow.plugins_manager import AirflowPlugin

from slipway_airflow import listener


class SlipwayPlugin(AirflowPlugin):
    """Shown under Admin → Plugins."""

    name = "slipway"
    listeners = [listener]  # noqa: RUF012 - as Airflow wants it
