"""What Airflow loads of Slipway: a listener, and the page Fleet. The library beside it is a plain package."""

from airflow.plugins_manager import AirflowPlugin

from slipway_airflow import listener
from slipway_airflow.web.plugin import EXTERNAL_VIEWS, FASTAPI_APPS


class SlipwayPlugin(AirflowPlugin):
    """Shown under Admin → Plugins."""

    name = "slipway"
    listeners = [listener]  # noqa: RUF012 - as Airflow wants it
    fastapi_apps = FASTAPI_APPS
    external_views = EXTERNAL_VIEWS
