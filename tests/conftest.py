"""What every test run says and needs: versions in the header, services by marker, one profile for hypothesis."""

from __future__ import annotations

import os
import platform
import signal

import pytest
from hypothesis import HealthCheck, settings

import services
from services import kafka, new_broker, redis_url, short_dir, short_session_dir

__all__ = ["kafka", "new_broker", "redis_url", "short_dir", "short_session_dir"]

_FOUND = pytest.StashKey[dict[str, services.Service]]()

settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile(
    "ci",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("long", deadline=None, print_blob=True, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure(config: pytest.Config) -> None:
    """Look once what is here."""
    # With CI set, pytest explains a failed comparison of two disk images line by line: that takes hours.
    os.environ.pop("CI", None)
    # A shell without job control starts what runs in the background with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_FOUND] = services.probe()


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is enabled, in which version, and what is not."""
    found = config.stash[_FOUND]
    lines = [
        f"rephub: python {platform.python_version()}, {os.cpu_count()} cpus, REQUIRE={os.environ.get('REQUIRE', '')}"
    ]
    lines += [
        f"  {name}: {service.version or 'MISSING: ' + service.missing}" for name, service in found.items()
    ]
    return lines


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot run here, unless REQUIRE forbids it."""
    found = config.stash[_FOUND]
    if why := services.missing_required(found):
        raise pytest.UsageError(f"required services are missing: {why}")
    for item in items:
        if why := services.needs(found, item):
            item.add_marker(pytest.mark.skip(reason=why))
