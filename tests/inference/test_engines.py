"""Both engines keep the contract."""

from __future__ import annotations

import pytest

from mooncake_core.errors import EngineError
from mooncake_core.inference.mock import MockEngine
from mooncake_core.inference.models import DEMO_FOLDER
from mooncake_core.testing.engine_contract import EngineContract


class TestMock(EngineContract):
    engine = MockEngine
    model_path = str(DEMO_FOLDER)

    def test_kv_that_did_not_arrive_is_noticed(self) -> None:
        engine = MockEngine(self.settings())
        with pytest.raises(EngineError, match="the KV before position 16 is not there"):
            engine.step([self.part([1], 16, [0, 1])])
        engine.close()


@pytest.mark.model
class TestTorch(EngineContract):
    model_path = str(DEMO_FOLDER)

    @pytest.fixture(autouse=True)
    def _load(self) -> None:
        from mooncake_core.inference.torch.engine import TorchEngine

        type(self).engine = TorchEngine
