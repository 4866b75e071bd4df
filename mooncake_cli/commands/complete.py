"""mooncake complete."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mooncake_cli import console
from mooncake_cli.options import cluster_options, find_running, json_option
from mooncake_cli.quantities import PATIENCE, URL


@click.command("complete", help="Complete a prompt; the text goes to stdout as it comes.")
@click.argument("prompt")
@click.option("--max-tokens", default=64, show_default=True, type=click.IntRange(1), help="At most so many.")
@click.option("--temperature", default=0.8, show_default=True, type=click.FloatRange(0, 2), help="0 is greedy.")
@click.option("--seed", type=int, help="The same seed gives the same text.")
@click.option("--model", help="Default: the first one that is served.")
@click.option("--chat", is_flag=True, help="Send the prompt as a chat message.")
@click.option(
    "--timeout", default="120s", show_default=True, type=PATIENCE, help="Give up when nothing has come for so long."
)
@click.option("--url", type=URL, help="Any OpenAI-compatible server. Default: the cluster that runs here.")
@cluster_options
@json_option
def command(
    prompt: str,
    url: str | None,
    config_path: Path | None,
    overrides: tuple[str, ...],
    cluster: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    url = url or find_running(config_path, overrides, cluster).url()
    stream = _Stream(url, prompt, options)
    text = []
    for piece in stream.pieces():
        text.append(piece)
        if not as_json:
            console.data(piece, end="")
    if as_json:
        console.json({"text": "".join(text), "ttft_s": stream.ttft_s, "total_s": stream.total_s, "usage": stream.usage})
        return
    console.data("")
    console.note(stream.summary())


class _Stream:
    """One streamed completion, and what was measured meanwhile."""

    def __init__(self, url: str, prompt: str, options: dict[str, Any]) -> None:
        self._url = url.rstrip("/")
        self._prompt = prompt
        self._options = options
        self.usage: dict[str, Any] = {}
        self.ttft_s = 0.0
        self.total_s = 0.0

    def pieces(self) -> Iterator[str]:
        """Text as it comes."""
        import httpx

        from mooncake_core.errors import DeadlineExceeded, PeerUnreachable

        try:
            with httpx.Client(base_url=self._url, timeout=self._options["timeout"]) as http:
                yield from self._events(http)
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(f"{self._url} did not answer within {self._options['timeout']:g}s") from error
        except httpx.HTTPError as error:
            raise PeerUnreachable(f"{self._url} cannot be reached: {error}") from error

    def summary(self) -> str:
        """One line on how it went."""
        from mooncake_core.units import format_duration

        details = self.usage.get("prompt_tokens_details") or {}
        tokens = self.usage.get("completion_tokens", 0)
        tbt = (self.total_s - self.ttft_s) / max(1, tokens - 1)
        return (
            f"TTFT {format_duration(self.ttft_s)}, {format_duration(tbt)} between tokens; prompt "
            f"{self.usage.get('prompt_tokens', 0)} tokens, {details.get('cached_tokens', 0)} of them from the cache; "
            f"{tokens} tokens generated"
        )

    def _events(self, http: Any) -> Iterator[str]:
        import json

        chat = self._options["chat"]
        route = "/v1/chat/completions" if chat else "/v1/completions"
        body = self._body(http)
        started = time.perf_counter()  # making the client, and asking which model is served, are no part of the answer
        with http.stream("POST", route, json=body) as answer:
            if answer.status_code != 200:
                answer.read()
                _fail(answer)
            for line in answer.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise _refusal(500, event)
                self.usage = event.get("usage") or self.usage
                self.ttft_s = self.ttft_s or time.perf_counter() - started
                for choice in event["choices"]:
                    yield (choice["delta"].get("content") or "") if chat else choice["text"]
        self.total_s = time.perf_counter() - started

    def _body(self, http: Any) -> dict[str, Any]:
        model = self._options["model"] or _first_model(http)
        asked = (
            {"messages": [{"role": "user", "content": self._prompt}]}
            if self._options["chat"]
            else {"prompt": self._prompt}
        )
        body = {"model": model, "stream": True, "stream_options": {"include_usage": True}, **asked}
        body |= {name: self._options[name] for name in ("max_tokens", "temperature")}
        return body if self._options["seed"] is None else {**body, "seed": self._options["seed"]}


def _first_model(http: Any) -> str:
    from mooncake_core.errors import ServiceUnavailable

    answer = http.get("/v1/models")
    if answer.status_code != 200:
        _fail(answer)
    try:
        models = answer.json()["data"]
    except (ValueError, KeyError, TypeError):
        raise _foreign(answer) from None
    if not models:
        raise ServiceUnavailable(
            "no model is served now: `mooncake status` shows which prefill and decode instances have joined"
        )
    return str(models[0]["id"])


def _fail(answer: Any) -> None:
    """Raises what the server said."""
    try:
        body = answer.json()
    except ValueError:
        raise _foreign(answer) from None
    raise _refusal(answer.status_code, body)


def _refusal(status: int, body: Any) -> Exception:
    from mooncake_core.errors import InvalidRequest, MooncakeError

    try:
        message = body["error"]["message"]
    except (KeyError, TypeError):
        message = str(body)[:200]
    kind = InvalidRequest if 400 <= status < 429 else MooncakeError
    return kind(f"the server answered {status}: {message}")


def _foreign(answer: Any) -> Exception:
    """Of a server that does not speak this API: what it says is a page for people."""
    from mooncake_core.errors import PeerUnreachable

    return PeerUnreachable(
        f"{answer.url} does not answer like an OpenAI-compatible server ({answer.status_code} {answer.reason_phrase}): "
        "is it the address of a gateway?"
    )
