"""The gateway's second listener: brings containers on this machine to its MLflow. Pure, like `envoy_config`.

MLflow listens on loopback, which no container can reach. Only where steps run as containers is there such a listener,
on the machine's address in Docker's own network, at MLflow's own port.
"""

from pipeline.fleet import envoy_config as config
from pipeline.stack.layout import LOOPBACK

NAME = "mlflow-for-containers"


def listener(bridge_address: str, port: int) -> config.Json:
    proxy = {
        "@type": f"{config.API}.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": NAME,
        "cluster": NAME,
    }
    return {
        "@type": f"{config.API}.config.listener.v3.Listener",
        "name": NAME,
        "address": config.address(bridge_address, port),
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": proxy}]}],
    }


def cluster(port: int) -> config.Json:
    endpoint = {"endpoint": {"address": config.address(LOOPBACK, port)}}
    return {
        "@type": f"{config.API}.config.cluster.v3.Cluster",
        "name": NAME,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": NAME, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
