"""The contract of an engine as tests. A plugin's test file subclasses EngineContract:

class TestMine(EngineContract):
    engine = MyEngine
    model_path = "..."
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import pytest

from mooncake_core.errors import ConfigError
from mooncake_core.inference.contract import Engine, EngineSettings, Slice
from mooncake_core.wire.messages.serving import Sampling

GREEDY = Sampling(temperature=0, max_tokens=8, ignore_eos=True)
BLOCK_TOKENS = 16


class Recording:
    """A watcher that notes what it is told, and may act on it."""

    def __init__(
        self, before: Callable[[int], None] | None = None, written: Callable[[int], None] | None = None
    ) -> None:
        self.seen: list[tuple[str, int]] = []
        self._before = before
        self._written = written

    def before_layer(self, layer: int) -> None:
        self.seen.append(("before", layer))
        if self._before:
            self._before(layer)

    def layer_written(self, layer: int) -> None:
        self.seen.append(("written", layer))
        if self._written:
            self._written(layer)


class EngineContract:
    """Subclass, set `engine` and `model_path`, inherit the tests."""

    engine: ClassVar[type[Engine]]
    model_path: ClassVar[str]

    def settings(self, **changes: object) -> EngineSettings:
        base = {
            "model_path": self.model_path,
            "device": "cpu",
            "block_tokens": BLOCK_TOKENS,
            "kv_memory_bytes": 8 << 20,
        }
        return EngineSettings(**{**base, "threads": 1, **changes})  # type: ignore[arg-type]

    @pytest.fixture
    def made(self) -> Iterator[Engine]:
        engine = self.engine(self.settings())
        yield engine
        engine.close()

    def generate(
        self, engine: Engine, prompt: Sequence[int], blocks: Sequence[int], *, chunk: int, count: int
    ) -> list[int]:
        """Greedy tokens of a sequence computed alone."""
        for start in range(0, len(prompt), chunk):
            part = list(prompt[start : start + chunk])
            last = start + chunk >= len(prompt)
            (token,) = engine.step([self.part(part, start, blocks, last=last)])
        tokens = []
        for position in range(len(prompt), len(prompt) + count):
            assert token is not None
            tokens.append(token)
            (token,) = engine.step([self.part([token], position, blocks)])
        return tokens

    def part(self, tokens: Sequence[int], start: int, blocks: Sequence[int], *, last: bool = True) -> Slice:
        used = -(-(start + len(tokens)) // BLOCK_TOKENS)
        return Slice(
            sequence_id=blocks[0],
            token_ids=tokens,
            start=start,
            block_ids=blocks[:used],
            sampling=GREEDY if last else None,
        )

    def test_its_description_adds_up(self, made: Engine) -> None:
        info = made.info
        assert info.layout.block_tokens == BLOCK_TOKENS
        assert info.num_blocks == (8 << 20) // info.layout.block_bytes
        assert made.kv_memory.nbytes == info.num_blocks * info.layout.block_bytes
        assert not made.kv_memory.readonly
        assert len(info.fingerprint) == 16
        assert all(0 <= token < info.vocab_size for token in info.eos_token_ids)

    def test_only_slices_that_sample_get_a_token(self, made: Engine) -> None:
        tokens = made.step([self.part([5, 6], 0, [0], last=False), self.part([7, 8], 0, [1])])
        assert tokens[0] is None
        assert tokens[1] is not None
        assert 0 <= tokens[1] < made.info.vocab_size

    def test_chunks_give_what_the_whole_gives(self, made: Engine) -> None:
        prompt = [3 + (7 * index) % 200 for index in range(50)]
        whole = self.generate(made, prompt, [0, 1, 2, 3, 4], chunk=50, count=6)
        assert self.generate(made, prompt, [9, 5, 7, 6, 8], chunk=7, count=6) == whole

    def test_a_batch_gives_what_each_gives_alone(self, made: Engine) -> None:
        prompts = [[3 + (number * 11 + index) % 200 for index in range(5 + 9 * number)] for number in range(4)]
        alone = [made.step([self.part(prompt, 0, [20, 21, 22, 23])])[0] for prompt in prompts]
        slices = [
            self.part(prompt, 0, [4 * number + part for part in range(4)]) for number, prompt in enumerate(prompts)
        ]
        assert made.step(slices) == alone

    def test_kv_moves_between_engines(self, made: Engine) -> None:
        prompt = [3 + (5 * index) % 200 for index in range(40)]
        expected = self.generate(made, prompt, [0, 1, 2, 3], chunk=40, count=4)
        made.stage_out([0, 1])
        other = self.engine(self.settings())
        size = made.info.layout.block_bytes
        for here, there in ((0, 6), (1, 4)):
            other.kv_memory[there * size : (there + 1) * size] = made.kv_memory[here * size : (here + 1) * size]
        other.stage_in([6, 4])
        (token,) = other.step([self.part(prompt[32:], 32, [6, 4, 2, 3])])
        assert token == expected[0]
        other.close()

    def test_layers_are_watched_in_order(self, made: Engine) -> None:
        watcher = Recording()
        made.step([self.part([1, 2, 3], 0, [0])], watcher)
        layers = range(made.info.layout.num_layers)
        assert watcher.seen == [(what, layer) for layer in layers for what in ("before", "written")]

    def test_kv_leaves_and_arrives_layer_by_layer(self, made: Engine) -> None:
        """Each layer is taken when it is said to be written, and brought to another engine just before it is needed."""
        prompt = [3 + (5 * index) % 200 for index in range(40)]
        size = made.info.layout.block_bytes
        layer_size = size // made.info.layout.num_layers
        taken: dict[tuple[int, int], bytes] = {}

        def take(layer: int) -> None:
            for block in (0, 1):
                start = block * size + layer * layer_size
                taken[block, layer] = bytes(made.kv_memory[start : start + layer_size])

        expected = made.step([self.part(prompt, 0, [0, 1, 2])], Recording(written=take))
        other = self.engine(self.settings())

        def bring(layer: int) -> None:
            for here, there in ((0, 6), (1, 4)):
                start = there * size + layer * layer_size
                other.kv_memory[start : start + layer_size] = taken[here, layer]
            other.stage_in([6, 4], layer)

        assert other.step([self.part(prompt[32:], 32, [6, 4, 2])], Recording(before=bring)) == expected
        other.close()

    def test_unknown_options_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="typo"):
            self.engine(self.settings(options={"typo": 1}))

    def test_closing_twice_is_harmless(self) -> None:
        engine = self.engine(self.settings())
        engine.close()
        engine.close()
