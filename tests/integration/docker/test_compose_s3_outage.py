"""The S3 server of the compose stack killed during an upload, and started again half a minute later."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.settings import ROOT
from tests.integration.docker import upload_through_outage
from tests.integration.docker.compose_stack import ComposeStack

pytestmark = [pytest.mark.integration, pytest.mark.needs("docker"), pytest.mark.drill, pytest.mark.timeout(900)]

S3_AWAY_S = 30


def test_an_upload_outlasts_an_s3_server_that_is_away_for_half_a_minute(
    compose_stack: ComposeStack, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one try; the artifact is whole, and nothing else is left in the bucket."""
    code = Path(upload_through_outage.__file__).read_text()
    inside = ("python", "-m", "pipeline.stack.in_compose", "run", "python", "-c", code)
    command = ["docker", "compose", "exec", "-T", "airflow-scheduler", *inside]
    with subprocess.Popen(
        command, cwd=ROOT, env=compose_stack.environment, stdout=subprocess.PIPE, text=True
    ) as upload:
        assert upload.stdout is not None
        assert upload.stdout.readline() == "sending\n"
        compose_stack.compose("kill", "s3")
        time.sleep(S3_AWAY_S)
        compose_stack.compose("start", "s3")
        told = json.loads(upload.stdout.readline())
    with capsys.disabled():
        print(f"\nan upload of {upload_through_outage.SIZE_BYTES >> 20} MiB, S3 away for {S3_AWAY_S} s: {told}")
    assert (told["whole"], told["only_what_belongs"], told["unfinished"], told["tries"]) == (True, True, 0, 1)
