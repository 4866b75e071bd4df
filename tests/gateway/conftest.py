"""A gateway on a fake cluster, and the official client in front of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import openai
import pytest

from mooncake_core.testing.gateway import RunningGateway


@pytest.fixture
def start() -> Iterator[Callable[..., RunningGateway]]:
    """Starts gateways with settings of their own."""
    made: list[RunningGateway] = []

    def make(**settings: object) -> RunningGateway:
        made.append(RunningGateway(**settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for gateway in made:
        gateway.stop()


@pytest.fixture
def gateway(start: Callable[..., RunningGateway]) -> RunningGateway:
    return start()


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as made:
        yield made
