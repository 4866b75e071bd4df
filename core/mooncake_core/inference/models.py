"""Where a model lies and what it is called. Reads JSON only: the gateway needs this without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from mooncake_core.config.rules import Finding
from mooncake_core.config.schema import ClusterConfig
from mooncake_core.errors import ModelNotFound

DEMO: Final = "demo"
DEMO_FOLDER: Final = Path(__file__).parent.parent / "demo_model"


def resolve_model(model: str) -> Path:
    """The Hugging Face folder of a model; `demo` is the one that ships with the package.

    Raises:
        ModelNotFound: there is no such folder, or it has no config.json.
    """
    folder = DEMO_FOLDER if model == DEMO else Path(model).expanduser()
    if not folder.is_dir():
        raise ModelNotFound(
            f"model: expected `demo` or a Hugging Face folder, got {model!r}, which is no folder"
            + ("" if folder.is_absolute() else f" below {Path.cwd()}")
        )
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"model: expected a Hugging Face folder, got {str(folder)!r}, which has no config.json")
    return folder


def model_findings(config: ClusterConfig) -> Iterator[Finding]:
    """That the model is missing, where this configuration has instances that compute with it."""
    if any(entry.engine.kind == "torch" for entry in (*config.prefill, *config.decode)):
        try:
            resolve_model(config.model)
        except ModelNotFound as error:
            yield Finding("model", error.message.removeprefix("model: "))


def model_name(model: str, served_name: str = "") -> str:
    """The name clients ask for."""
    return served_name or (DEMO if model == DEMO else Path(model).expanduser().resolve().name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder; empty where the file is missing.

    Raises:
        ModelNotFound: the file is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ModelNotFound(f"{path} cannot be read: {error}") from error


def eos_token_ids(folder: Path) -> tuple[int, ...]:
    """End-of-sequence tokens, as generation_config.json says, else config.json."""
    for name in ("generation_config.json", "config.json"):
        found = read_json(folder / name).get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, list) else (int(found),)
    return ()
