"""Small random models in Hugging Face format, and the reference that greedy serving is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

TIE: Final = 1e-4
"""Where generate's own two best logits are closer than this, either token is right."""
FAMILIES: Final = ("llama", "qwen2", "qwen3", "mistral")
_SIZES: Final[dict[str, Any]] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}


@dataclass(frozen=True, slots=True)
class Difference:
    """A token that is not generate's."""

    position: int
    expected: int
    got: int
    margin: float
    """Between generate's two best logits there."""

    @property
    def excused(self) -> bool:
        return self.margin < TIE


def make_model(family: str, folder: Path, seed: int = 0) -> Path:
    """Writes a random model of one of FAMILIES to `folder`."""
    import torch
    import transformers

    kinds = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 32}),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {"sliding_window": 96}),
    }
    config_class, model_class, extra = kinds[family]
    torch.manual_seed(seed)
    model_class(config_class(**_SIZES, **extra)).save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    """Token n is the word `tn`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"t{n}": n for n in range(_SIZES["vocab_size"])}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


class Reference:
    """transformers' own greedy generate, in float32."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        self._model.eval()

    def generate(self, prompt: Sequence[int], max_new_tokens: int) -> tuple[list[int], list[float]]:
        """Greedy tokens, never ending early, and the margin between the two best logits of each."""
        torch = self._torch
        with torch.inference_mode():
            output = self._model.generate(
                torch.tensor([list(prompt)]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=None,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        best = [logits[0].topk(2).values for logits in output.logits]
        return output.sequences[0, len(prompt) :].tolist(), [float(top[0] - top[1]) for top in best]

    def compare(self, prompt: Sequence[int], got: Sequence[int]) -> Difference | None:
        """The first token that is not generate's, if any. What follows an excused one may differ rightly."""
        expected, margins = self.generate(prompt, len(got))
        for index, (theirs, ours) in enumerate(zip(expected, got, strict=True)):
            if theirs != ours:
                return Difference(index, theirs, ours, margins[index])
        return None
