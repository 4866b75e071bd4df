"""Chat templates give what transformers' apply_chat_template gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mooncake_core.errors import InvalidRequest
from mooncake_core.gateway.chat_template import ChatTemplate
from mooncake_core.gateway.tokenizer import Tokenizer
from mooncake_core.inference.models import DEMO_FOLDER, read_json

CHATML = """{% for message in messages %}{% if loop.first and message.role != 'system' %}<|im_start|>system
You are kind.<|im_end|>
{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' }}
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"""
LLAMA = """{{ bos_token }}{% for message in messages %}{% if message.role == 'tool' %}{% continue %}{% endif %}
    {%- if message.role == 'assistant' %}{% generation %} {{ message.content }}{{ eos_token }}{% endgeneration %}
    {%- else %}[INST] {{ message.content | tojson }} [/INST]{% endif %}
{%- endfor %}"""
ODD = "{% if tools is none and documents is none and pad_token is not defined %}{{ unk_token }}{% endif %}{{ year }}"
USER = {"role": "user", "content": "  What is <b>3 & 4</b>, ü?\n"}
ASSISTANT = {"role": "assistant", "content": "It is  "}
TOKENS = {
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
    "unk_token": "<s>",
    "pad_token": None,
}


def folder_with(path: Path, **config: Any) -> Path:
    (path / "tokenizer.json").write_bytes((DEMO_FOLDER / "tokenizer.json").read_bytes())
    base = {"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS}
    (path / "tokenizer_config.json").write_text(json.dumps({**base, **config}))
    return path


@pytest.mark.model
@pytest.mark.parametrize("template", [CHATML, LLAMA, ODD], ids=["chatml", "llama", "odd"])
@pytest.mark.parametrize("messages", [[USER], [USER, ASSISTANT], [USER, ASSISTANT, USER]], ids=["1", "2", "3"])
@pytest.mark.parametrize(
    "options",
    [
        {"add_generation_prompt": True},
        {"add_generation_prompt": True, "enable_thinking": False, "year": 1999},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
    ],
    ids=["turn", "variables", "open", "continue"],
)
def test_as_transformers(
    tmp_path: Path, template: str, messages: list[dict[str, str]], options: dict[str, Any]
) -> None:
    from transformers import AutoTokenizer

    folder = folder_with(tmp_path, chat_template=template)
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    own = dict(options)
    known = {name: own.pop(name) for name in ("add_generation_prompt", "continue_final_message") if name in own}
    try:
        expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    except ValueError:
        with pytest.raises(InvalidRequest, match="so it cannot be continued"):
            Tokenizer(folder).encode_chat(messages, variables=own, **known)
        return
    assert Tokenizer(folder).encode_chat(messages, variables=own, **known) == expected


def test_the_template_is_a_file_or_in_the_configuration(tmp_path: Path) -> None:
    def rendered(template: Any) -> str:
        config = read_json(folder_with(tmp_path, chat_template=template) / "tokenizer_config.json")
        found = ChatTemplate.of(tmp_path, config)
        assert found is not None
        return found.render([USER], add_generation_prompt=False, continue_final_message=False, variables={})

    assert rendered("one") == "one"
    assert rendered([{"name": "tool_use", "template": "no"}, {"name": "default", "template": "two"}]) == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert rendered("one") == "three"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "refuses the messages"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_refuses_is_the_clients_error(template: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        ChatTemplate(template, {}).render(
            [USER], add_generation_prompt=True, continue_final_message=False, variables={}
        )
