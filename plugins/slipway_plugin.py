"""What Airflow loads of Slipway: nothing but a name, so far. The library beside it is a plain package."""

from airflow.plugins_manager import AirflowPlugin


class SlipwayPlugin(AirflowPlugin):
    """Shown under Admin → Plugins."""

    name = "slipway"
