"""The client's side of one streamed completion, timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import aiohttp
import httpx
import msgspec
from msgspec import Struct

from mooncake_core.address import http_base
from mooncake_core.bench.workload import TOKENS_PER_WORD, WORDS, ServeSettings
from mooncake_core.errors import AuthenticationFailed, PeerUnreachable, UsageError
from mooncake_core.gateway.headers import KV_TRANSFER, TIMINGS

EXTENSIONS: Final = ("ignore_eos", "cache_salt", "return_token_ids")
"""Body fields beyond OpenAI's that are sent to servers that take them."""
PROBE_PROMPT: Final = " ".join(WORDS * 4)
"""Each word as often as any other; long enough that the token a model puts before every prompt hardly counts."""
REFUSED: Final = (400, 422)
REJECTED: Final = (429, 503)


class Timings(Struct, frozen=True, kw_only=True):
    """Where a request's time went, by the server's own account; None where it does not say."""

    queued_s: float | None = None
    fetched_s: float | None = None
    computed_s: float | None = None
    exposed_s: float | None = None
    """Exposed transfer time."""
    attempts: int = 1


class Sample(Struct, frozen=True, kw_only=True):
    """One request as the client saw it. Times count from when it was due."""

    index: int = 0
    status: int = 0
    """0: no answer came."""
    error: str = ""
    late_s: float = 0.0
    """Sent so long after it was due; the client's own delay."""
    ttft_s: float = 0.0
    gaps_s: list[float] = []
    total_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    text: str = ""
    token_ids: list[int] | None = None
    timings: Timings | None = None

    @property
    def rejected(self) -> bool:
        """Whether the server refused it for its load."""
        return self.status in REJECTED


class Server:
    """An OpenAI-compatible server, and what it understands."""

    def __init__(
        self, session: aiohttp.ClientSession, model: str, extensions: frozenset[str], tokens_per_word: float
    ) -> None:
        self._session = session
        self.model = model
        self.extensions = extensions
        self.tokens_per_word = tokens_per_word
        """Of the words that prompts are made of, by the model's tokenizer."""

    async def complete(self, index: int, prompt: str, settings: ServeSettings, due_s: float) -> Sample:
        """Sends a prompt; `due_s` is the perf_counter() at which it should have been sent. Failures are samples."""
        body = request_body(self.model, prompt, settings, self.extensions, index)
        headers = {TIMINGS: "1", KV_TRANSFER: settings.kv_transfer}
        answer = _Answer(index, due_s, keep=settings.keep_outputs)
        try:
            async with asyncio.timeout(settings.timeout_s):
                return await _stream(self._session, body, headers, answer)
        except TimeoutError:
            return answer.failed(0, f"timeout after {settings.timeout_s:g}s")
        except (aiohttp.ClientError, OSError) as error:
            return answer.failed(0, type(error).__name__)
        except msgspec.MsgspecError as error:
            return answer.failed(200, f"malformed event: {type(error).__name__}")


@asynccontextmanager
async def connect(settings: ServeSettings, api_key: str) -> AsyncGenerator[Server, None]:
    """Finds the model, and with a request of one token the extensions the server takes and how it counts prompts.

    Raises:
        PeerUnreachable: nobody answers like an OpenAI-compatible server.
        AuthenticationFailed: the server wants another API key.
        UsageError: the URL is none, or it serves no model, or refuses the request whatever is left out.
    """
    try:
        url = http_base(settings.url)
    except ValueError as error:
        raise UsageError(str(error)) from error
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(base_url=url, timeout=settings.timeout_s, headers=headers) as http:
        model = settings.model or await _first_model(http, url)
        extensions, tokens_per_word = await _probed(http, url, model, settings)
    # The load itself: a client that needs little of the cores that it shares with the server.
    connector = aiohttp.TCPConnector(limit=0)
    deadlines = aiohttp.ClientTimeout(total=None)  # each request has its own
    async with aiohttp.ClientSession(url, headers=headers, connector=connector, timeout=deadlines) as session:
        yield Server(session, model, extensions, tokens_per_word)


def request_body(
    model: str, prompt: str, settings: ServeSettings, extensions: frozenset[str], index: int
) -> dict[str, Any]:
    """The JSON of a completion request."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": settings.output_tokens,
        "temperature": 0 if settings.greedy else 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if not settings.greedy:
        body["seed"] = settings.seed + index
    wanted = {
        "ignore_eos": True,
        "cache_salt": settings.cache_salt,
        "return_token_ids": settings.keep_outputs,
    }
    return body | {name: value for name, value in wanted.items() if value and name in extensions}


async def _first_model(http: httpx.AsyncClient, url: str) -> str:
    try:
        answer = await http.get("/v1/models")
        _check_key(answer, url)
        listed = answer.raise_for_status().json()["data"]
    except httpx.HTTPStatusError as error:
        raise PeerUnreachable(f"{url}/v1/models answered {error.response.status_code}") from error
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise PeerUnreachable(f"{url} does not answer like an OpenAI-compatible server: {error}") from error
    if not listed:
        raise UsageError(f"{url} serves no model now")
    return str(listed[0]["id"])


class _Probe(NamedTuple):
    """What came of one short request."""

    refusal: str | None
    """Why the server refuses it; None when it does not, or when it fails otherwise: the load will tell."""
    tokens_per_word: float


async def _probed(
    http: httpx.AsyncClient, url: str, model: str, settings: ServeSettings
) -> tuple[frozenset[str], float]:
    """Those of EXTENSIONS that the server does not refuse (whether it heeds them it alone knows), and tokens per word."""
    probe = await _probe(http, url, model, settings, frozenset(EXTENSIONS))
    if probe.refusal is None:
        return frozenset(EXTENSIONS), probe.tokens_per_word
    probe = await _probe(http, url, model, settings, frozenset())
    if probe.refusal is not None:
        raise UsageError(f"{url} refuses the request: {probe.refusal}")
    alone = [
        name for name in EXTENSIONS if (await _probe(http, url, model, settings, frozenset({name}))).refusal is None
    ]
    return frozenset(alone), probe.tokens_per_word


async def _probe(
    http: httpx.AsyncClient, url: str, model: str, settings: ServeSettings, extensions: frozenset[str]
) -> _Probe:
    probe = msgspec.structs.replace(settings, output_tokens=1, keep_outputs=True, cache_salt="probe")
    try:
        answer = await http.post("/v1/completions", json=request_body(model, PROBE_PROMPT, probe, extensions, 0))
    except httpx.TransportError as error:
        raise PeerUnreachable(f"{url} does not answer like an OpenAI-compatible server: {error!r}") from error
    _check_key(answer, url)
    if answer.status_code == 404:
        raise UsageError(f"{url}/v1/completions answered 404: {_error_of(answer.content)[1] or 'no such route'}")
    if answer.status_code in REFUSED:
        return _Probe(_error_of(answer.content)[1] or f"HTTP {answer.status_code}", TOKENS_PER_WORD)
    counted = _prompt_tokens(answer.content)
    return _Probe(None, counted / len(PROBE_PROMPT.split()) if counted else TOKENS_PER_WORD)


def _prompt_tokens(stream: bytes) -> int:
    """What the events of a stream say of the prompt's length; 0 where they do not."""
    for line in reversed(stream.splitlines()):
        try:
            found = msgspec.json.decode(line.removeprefix(b"data:"))["usage"]["prompt_tokens"]
        except (msgspec.DecodeError, KeyError, TypeError):
            continue
        return found if isinstance(found, int) else 0
    return 0


def _check_key(answer: httpx.Response, url: str) -> None:
    if answer.status_code in (401, 403):
        raise AuthenticationFailed(
            f"{url} answered {answer.status_code}: expected an API key it knows; give --api-key or set OPENAI_API_KEY"
        )


def _error_of(content: bytes) -> tuple[str, str]:
    """(code, message) of an error in OpenAI's shape; empty where it has another one."""
    try:
        error = msgspec.json.decode(content)["error"]
        return str(error.get("code") or error.get("type") or ""), str(error.get("message") or "")
    except (msgspec.DecodeError, AttributeError, KeyError, TypeError):
        return "", ""


async def _stream(
    session: aiohttp.ClientSession, body: dict[str, Any], headers: Mapping[str, str], answer: _Answer
) -> Sample:
    answer.sent()
    async with session.post("/v1/completions", json=body, headers=headers) as response:
        if response.status != 200:
            code, _ = _error_of(await response.read())
            return answer.failed(response.status, f"HTTP {response.status} {code}".strip())
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                answer.finished = True
                continue
            event = msgspec.json.decode(data)
            if event.get("error"):
                code, _ = _error_of(data)
                return answer.failed(200, f"error event {code}".strip())
            answer.take(event)
    return answer.whole()


class _Answer:
    """A stream under way."""

    def __init__(self, index: int, due_s: float, *, keep: bool) -> None:
        self._index = index
        self._due_s = self._before_s = due_s
        self._keep = keep
        self._late_s = 0.0
        self._gaps_s: list[float] = []
        self._usage: dict[str, Any] = {}
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._timings: Timings | None = None
        self.finished = False
        """The end was announced; a stream without it was cut off."""

    def sent(self) -> None:
        self._late_s = max(0.0, time.perf_counter() - self._due_s)

    def take(self, event: dict[str, Any]) -> None:
        """One event of the stream."""
        self._usage = event.get("usage") or self._usage
        if "mooncake" in event:
            self._timings = timings_of(event["mooncake"])
        for choice in event.get("choices") or ():
            now = time.perf_counter()
            self._gaps_s.append(now - self._before_s)
            self._before_s = now
            self.finished = self.finished or bool(choice.get("finish_reason"))
            if self._keep:
                self._texts.append(choice.get("text") or "")
                self._token_ids.extend(choice.get("token_ids") or ())

    def whole(self) -> Sample:
        """What came of it, at its end."""
        if not self.finished:
            return self.failed(200, "stream cut off")
        if not self._gaps_s:
            return self.failed(200, "no token came")
        details = self._usage.get("prompt_tokens_details") or {}
        return Sample(
            index=self._index,
            status=200,
            late_s=self._late_s,
            ttft_s=self._gaps_s[0],
            gaps_s=self._gaps_s[1:],
            total_s=time.perf_counter() - self._due_s,
            prompt_tokens=self._usage.get("prompt_tokens") or 0,
            cached_tokens=details.get("cached_tokens") or 0,
            output_tokens=self._usage.get("completion_tokens") or len(self._gaps_s),
            text="".join(self._texts),
            token_ids=self._token_ids or None,
            timings=self._timings,
        )

    def failed(self, status: int, reason: str) -> Sample:
        return Sample(index=self._index, status=status, error=reason, late_s=self._late_s)


def timings_of(found: object) -> Timings | None:
    """The server's account; None where it has a shape that is not ours."""
    try:
        return msgspec.convert(found, Timings, strict=False)
    except msgspec.ValidationError:
        return None
