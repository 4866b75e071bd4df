"""API keys: who may ask, who shares a cache with whom, and how much at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from mooncake_core.config.schema import GatewayConfig, TenantConfig
from mooncake_core.errors import ConfigError, RequestRejected
from mooncake_core.gateway.http_errors import HTTPError
from mooncake_core.gateway.tenants import Tenants
from mooncake_core.testing.gateway import RunningGateway, ask, chat

KEYS: dict[str, Any] = {"acme": ["key-a1", "key-a2"], "zoo": "key-z"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_the_official_client_is_let_in_with_a_key(start: Callable[..., RunningGateway]) -> None:
    gateway = start(api_keys=KEYS)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="key-a2", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["demo"]
        client.completions.create(model="demo", prompt="Hello", max_tokens=3)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="key-a3", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="the API key is not known here"):
            client.completions.create(model="demo", prompt="Hello", max_tokens=3)
    assert [generation.tenant for generation in gateway.serving.seen] == ["acme"]


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Basic key-z", "key-z", "Bearer Key-Z"])
def test_without_a_key_nobody_is_served(start: Callable[..., RunningGateway], authorization: str | None) -> None:
    gateway = start(api_keys=KEYS)
    headers = {} if authorization is None else {"authorization": authorization}
    for method, route in (("GET", "models"), ("POST", "completions"), ("POST", "chat/completions")):
        answer = gateway.http.request(method, f"/v1/{route}", json=ask(), headers=headers)
        assert answer.status_code == 401
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert gateway.serving.seen == []
    for route in ("/health", "/ready", "/metrics"):
        assert gateway.http.get(route).status_code == 200


def test_without_configured_keys_any_or_none_will_do(gateway: RunningGateway) -> None:
    for headers in ({}, bearer("whatever")):
        assert gateway.post(ask(), **headers).status_code == 200
    assert [generation.tenant for generation in gateway.serving.seen] == ["", ""]


def test_a_tenant_that_asks_too_much_at_a_time_waits_and_others_do_not(start: Callable[..., RunningGateway]) -> None:
    gateway = start(api_keys=KEYS, tenants={"acme": TenantConfig(max_concurrent=1)})
    gateway.serving.wait_after = 2
    url = f"{gateway.url}/v1/completions"
    with httpx.stream("POST", url, json=ask(stream=True), headers=bearer("key-a1")) as first:
        assert first.status_code == 200
        gateway.serving.waiting.wait(10)
        for body, route in ((ask(), "/v1/completions"), (chat(), "/v1/chat/completions")):
            second = gateway.post(body, route, **bearer("key-a2"))
            assert (second.status_code, second.headers["retry-after"]) == (429, "1")
            assert second.json()["error"]["type"] == "rate_limit_error"
            assert "tenant acme has 1 requests in progress" in second.json()["error"]["message"]
        gateway.serving.wait_after = None
        assert gateway.post(ask(), **bearer("key-z")).status_code == 200
    gateway.wait_until_closed()
    for _ in range(100):  # the place is free when the stream has ended, a moment after the cluster's part
        if gateway.post(ask(), **bearer("key-a1")).status_code == 200:
            break
    else:
        raise AssertionError("the tenant's place was never free again")


def keys_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys_come_from_a_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_KEY", "from-environment")
    path = keys_file(tmp_path, "zoo: ${ZOO_KEY}\nacme: [12345, c]\n")
    tenants = Tenants(GatewayConfig(api_keys={"acme": "inline"}, api_keys_file=str(path)))
    keys = {"from-environment": "zoo", "12345": "acme", "c": "acme", "inline": "acme"}
    assert {key: tenants.of(f"Bearer {key}").name for key in keys} == keys
    assert tenants.of("Bearer c") is tenants.of("bearer  inline ")
    with pytest.raises(HTTPError):
        tenants.of("Bearer ${ZOO_KEY}")


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("a: k", 0o640, r"can be read by others \(mode 640\); chmod 600"),
        ("", 0o600, "expected tenants and their keys, got none"),
        ("a: ${UNSET_KEY}", 0o600, "keys.yaml:1:4: a: expected the environment variable UNSET_KEY to be set"),
        ("a: {b: c}", 0o600, "keys.yaml:1:4: a: expected text, got a mapping"),
        ("A b: c", 0o600, "expected a name of lower-case letters"),
        ("a: []", 0o600, "expected a key for tenant a, got an empty one"),
        ("a: ''", 0o600, "expected a key for tenant a, got an empty one"),
        ("a: k\nb: [x, k]", 0o600, "tenants a and b have the same key"),
    ],
)
def test_a_file_that_would_not_protect_is_refused(tmp_path: Path, text: str, mode: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tenants(GatewayConfig(api_keys_file=str(keys_file(tmp_path, text, mode))))


def test_a_missing_file_or_a_limit_of_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the API keys .*nowhere: No such file"):
        Tenants(GatewayConfig(api_keys_file=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="expected tenants that have an API key, got typo"):
        Tenants(GatewayConfig(api_keys=KEYS, tenants={"typo": TenantConfig(max_concurrent=3)}))


def test_a_limit_counts_what_is_in_progress() -> None:
    tenant = Tenants(GatewayConfig(api_keys=KEYS, tenants={"zoo": TenantConfig(max_concurrent=2)})).of("Bearer key-z")
    tenant.enter()
    tenant.enter()
    with pytest.raises(RequestRejected):
        tenant.enter()
    tenant.leave()
    tenant.enter()
    assert tenant.in_progress == 2
