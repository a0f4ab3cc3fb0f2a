"""docker-compose.yml says the same as the code, and keeps the promises of docs/adr/0096 to 0098."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.fleet import targets
from pipeline.images import default_tag
from pipeline.settings import ROOT
from pipeline.stack import compose_services
from pipeline.stack.compose_init import SECRETS
from pipeline.stack.layout import Layout
from slipway_airflow.agent.farewell import DEPENDENT

TEXT = (ROOT / "docker-compose.yml").read_text()
PROJECT: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = PROJECT["services"]
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "prometheus" / "prometheus.yml").read_text())
EXAMPLE = dict(
    line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if line and line[0] != "#"
)


def test_every_secret_is_made_by_init_and_used_by_somebody() -> None:
    """Neither a missing file at the first start nor one that nobody reads."""
    used = {name for service in SERVICES.values() for name in service.get("secrets", ())}
    assert set(PROJECT["secrets"]) == {secret.name for secret in SECRETS} == used


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret.name)
def test_rotating_a_secret_restarts_everyone_who_reads_it(secret: Any) -> None:
    """But the command line, which reads it anew at each call."""
    readers = {name for name, service in SERVICES.items() if secret.name in service.get("secrets", ())} - {"cli"}
    assert readers <= {*secret.restart, "airflow-init"}
    assert set(secret.restart) <= SERVICES.keys()


def test_variables_are_documented_with_the_value_that_they_take_by_themselves() -> None:
    """`.env.example` is the list of what can be set."""
    used = dict(re.findall(r"\$\{(SLIPWAY_\w+):-([^${}]*)\}", TEXT))
    used.pop("SLIPWAY_CONTROL_IMAGE", None)
    assert {name: EXAMPLE.get(name) for name in used} == used
    required = set(re.findall(r"\$\{(SLIPWAY_\w+)", TEXT))
    assert EXAMPLE.keys() == required


def test_images_are_pinned_and_ours_are_of_this_release() -> None:
    """Nothing is `latest`, and a new release changes the names."""
    for name, image in EXAMPLE.items():
        if name.endswith("_IMAGE"):
            assert re.search(r":v?\d+\.\d+", image), f"{name}={image}"
    assert EXAMPLE["SLIPWAY_IMAGE_TAG"] == default_tag()
    assert EXAMPLE["SLIPWAY_CONTROL_IMAGE"] == f"slipway/control:{default_tag()}"


def test_only_the_agent_has_the_docker_socket_and_it_has_no_network() -> None:
    """Who has the socket has the machine."""
    with_socket = [name for name, service in SERVICES.items() if "docker.sock" in str(service.get("volumes"))]
    assert with_socket == ["jobs"]
    assert SERVICES["jobs"]["network_mode"] == "none"


def test_every_container_may_do_as_little_as_possible() -> None:
    """Read-only, without capabilities, not as root; but for the one that gives new volumes their owner."""
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "privileged" not in service, name
        if name != "volumes":
            assert not service.get("cap_add"), name
            assert not str(service.get("user", "1")).startswith("0"), name
    assert SERVICES["volumes"]["network_mode"] == "none"
    assert SERVICES["volumes"]["cap_add"] == ["CHOWN"]


def test_prometheus_sees_of_the_home_only_what_it_reads() -> None:
    """The folder with the replicas' addresses, not the one above it, which holds keys."""
    (mount,) = [mount for mount in SERVICES["prometheus"]["volumes"] if isinstance(mount, dict)]
    home = Layout(Path(PROJECT["x-settings"]["SLIPWAY_HOME"]))
    assert (mount["source"], mount["target"], mount["read_only"]) == ("home", str(home.targets_path), True)
    assert home.home_path / mount["volume"]["subpath"] == home.targets_path
    assert not any(str(found).startswith("home:") for found in SERVICES["prometheus"]["volumes"])
    assert scraped_by("replicas")["file_sd_configs"][0]["files"] == [str(home.targets_path / targets.FILE)]


def scraped_by(job: str) -> dict[str, Any]:
    """What Prometheus's configuration says of one job."""
    (found,) = [found for found in PROMETHEUS["scrape_configs"] if found["job_name"] == job]
    return dict(found)


def test_prometheus_is_given_every_file_of_rules() -> None:
    """Where its configuration looks for them."""
    assert PROMETHEUS["rule_files"] == ["/etc/prometheus/rules/*.yml"]
    assert "./infra/prometheus/rules:/etc/prometheus/rules:ro" in SERVICES["prometheus"]["volumes"]
    assert {path.name for path in (ROOT / "infra" / "prometheus" / "rules").iterdir()} == {
        "alerts.yml",
        "recording.yml",
    }


def test_the_exporter_may_read_the_home_and_nothing_else() -> None:
    """It holds no secret, and nobody but the fleet's network reaches it."""
    assert SERVICES["metrics"]["volumes"] == ["home:/var/lib/slipway:ro"]
    assert not SERVICES["metrics"].keys() & {"secrets", "ports"}


def test_ports_are_published_on_loopback_alone() -> None:
    """And only from the network that is for it."""
    for name, service in SERVICES.items():
        for published in service.get("ports", ()):
            assert published.startswith("127.0.0.1:"), name
            assert "edge" in service["networks"], name
    networks = PROJECT["networks"]
    assert networks["data"]["internal"] is True
    assert networks["fleet"]["internal"] is True
    assert networks["jobs"]["internal"] == "${SLIPWAY_JOBS_INTERNAL:-true}"


def test_envoys_own_interface_has_a_name_only_where_the_fleet_is() -> None:
    """It binds the address behind that name; it can show the gateway's keys and end Envoy."""
    networks = SERVICES["gateway"]["networks"]
    name = compose_services.HOSTS["gateway_admin"]
    assert [network for network in networks if name in networks[network].get("aliases", ())] == ["fleet"]
    on_fleet = {found for found, service in SERVICES.items() if "fleet" in service.get("networks", ())}
    services = {"autoscaler", "gateway", "doors", "metrics", "replica-guard", "prometheus", "cli", "airflow-api-server"}
    assert on_fleet == services
    assert SERVICES["metrics"]["networks"] == ["fleet"]


def test_what_runs_for_long_is_checked_and_waited_for() -> None:
    """`up --wait` means that all of it works."""
    for name, service in SERVICES.items():
        if service["restart"] == "unless-stopped":
            assert service["healthcheck"]["test"], name
        for other, wanted in service.get("depends_on", {}).items():
            ends = SERVICES[other]["restart"] == "no"
            assert wanted["condition"] == ("service_completed_successfully" if ends else "service_healthy"), name


def test_the_code_finds_the_services_where_they_are() -> None:
    """Names, ports and addresses."""
    settings = PROJECT["x-settings"]
    aliases = {alias for network in SERVICES["gateway"]["networks"].values() for alias in network.get("aliases", ())}
    assert set(compose_services.HOSTS.values()) <= SERVICES.keys() | aliases
    assert compose_services.POSTGRES_HOST in SERVICES
    assert settings["MLFLOW_TRACKING_URI"] == f"http://mlflow:{compose_services.PORTS['mlflow']}"
    for part, port in compose_services.PUBLISHED.items():
        name = f"SLIPWAY_PORT_{part.upper()}"
        assert settings[name] == f"${{{name}:-{port}}}"
        inside = compose_services.PORTS[part]
        host = compose_services.HOSTS[part]
        published = SERVICES["gateway" if host in aliases else host]["ports"]
        assert published == [f"127.0.0.1:${{{name}:-{port}}}:{inside}"]
    for job, part in (("gateway", "gateway_admin"), ("fleet", "metrics")):
        listens = f"{compose_services.HOSTS[part]}:{compose_services.PORTS[part]}"
        assert scraped_by(job)["static_configs"][0]["targets"] == [listens]


def test_the_registry_free_images_are_for_the_same_services() -> None:
    """The overlay changes where images come from and nothing else."""
    overlay = yaml.safe_load((ROOT / "infra" / "compose" / "registry-free.yml").read_text())["services"]
    assert {key for service in overlay.values() for key in service} == {"build", "profiles"}
    official = {name for name, service in SERVICES.items() if "SLIPWAY_CONTROL_IMAGE" not in service["image"]}
    assert set(overlay) == official


def test_the_agent_is_told_to_end_after_a_dependent_is_removed() -> None:
    """By its absence the agent knows that the stack is taken down."""
    assert "jobs" in SERVICES[DEPENDENT]["depends_on"]
