"""`mooncake complete`, against a server that is none."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from mooncake_cli import exits, main
from mooncake_cli.commands import complete

EVENT = {"choices": [{"text": "Ho"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
STEPS_S = {"client": 5.0, "/v1/models": 7.0, "/v1/completions": 3.0}
"""How long each takes."""


def test_times_are_those_of_the_answer_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passed: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        passed.append(request.url.path)
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "demo"}]})
        return httpx.Response(200, text=f"data: {json.dumps(EVENT)}\n\ndata: [DONE]\n\n")

    def client(**options: Any) -> httpx.Client:
        passed.append("client")
        return made(**options, transport=httpx.MockTransport(answer))

    made = httpx.Client
    monkeypatch.setattr(httpx, "Client", client)
    clock = SimpleNamespace(perf_counter=lambda: sum(STEPS_S[step] for step in passed))
    monkeypatch.setattr(complete, "time", clock)
    assert main.run(["complete", "Hi", "--url", "http://nowhere", "--json"]) == exits.DONE
    said = json.loads(capsys.readouterr().out)
    assert passed == list(STEPS_S)
    assert (said["text"], said["ttft_s"], said["total_s"]) == ("Ho", 3.0, 3.0)
