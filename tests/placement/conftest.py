"""One Ray cluster for all tests that need it, with more CPUs than there are: the models are tiny."""

import os
from collections.abc import Iterator

import pytest

from gspo.placement.cluster import LOCAL


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray

    ray.init(**LOCAL, num_cpus=8, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
