"""pip's configuration in uv's terms."""

import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[3] / "infra" / "setup"


@pytest.fixture(autouse=True)
def setup_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The set-up programs import each other by name, as they do when they are run."""
    monkeypatch.syspath_prepend(str(SETUP))


def test_files_and_variables_are_merged_as_pip_does() -> None:
    """[install] wins over [global], variables over both."""
    import pip_settings

    listing = "\n".join(
        [
            "global.index-url='file:///global'",
            "install.index-url='file:///install'",
            "global.find-links='/wheels /more'",
            ":env:.find-links='/from-variable'",
            "download.index-url='file:///not-ours'",
        ]
    )
    assert pip_settings.parse(listing) == {"index-url": "file:///install", "find-links": "/from-variable"}


def test_every_index_and_folder_becomes_an_option() -> None:
    """Lists are given option by option; the best version of all indexes is taken."""
    import pip_settings

    settings = {"index-url": "https://a/simple", "extra-index-url": "https://b https://c", "find-links": "/w\n/x"}
    arguments = pip_settings.uv_options(settings, {}).arguments
    assert arguments == (
        *("--default-index", "https://a/simple", "--index", "https://b", "--index", "https://c"),
        *("--find-links", "/w", "--find-links", "/x", "--index-strategy", "unsafe-best-match"),
    )


def test_what_the_user_set_for_uv_wins() -> None:
    """UV_… is more specific than pip's configuration."""
    import pip_settings

    settings = {"index-url": "https://a/simple", "cert": "/pip.pem", "timeout": "300"}
    environ = {"UV_DEFAULT_INDEX": "https://mine", "SSL_CERT_FILE": "/mine.pem"}
    options = pip_settings.uv_options(settings, environ)
    assert "--default-index" not in options.arguments
    assert options.variables == {"UV_HTTP_TIMEOUT": "300"}


def test_a_certificate_a_proxy_and_a_trusted_host_are_passed_on() -> None:
    """What a company's network needs."""
    import pip_settings

    settings = {"cert": "/ca.pem", "proxy": "http://proxy:3128", "trusted-host": "mirror", "no-index": "true"}
    options = pip_settings.uv_options(settings, {})
    assert options.variables["SSL_CERT_FILE"] == "/ca.pem"
    assert options.variables["ALL_PROXY"] == "http://proxy:3128"
    assert options.arguments[:3] == ("--allow-insecure-host", "mirror", "--no-index")


def test_without_pip_the_variables_are_read() -> None:
    """A Python without pip can still have PIP_… set."""
    import pip_settings

    assert pip_settings.from_variables({"PIP_FIND_LINKS": "/w", "HOME": "/root"}) == {"find-links": "/w"}


def test_the_running_pip_is_understood() -> None:
    """The listing of the pip that is here can be read."""
    import pip_settings

    assert isinstance(pip_settings.read(), dict)
    assert sys.executable
