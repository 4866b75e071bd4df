"""It behaves as a dict does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.store.node_space import Extent
from mooncake_core.store.replicas import Replicas

NODES = ["a", "b", "c"]
STEPS = st.lists(st.tuples(st.booleans(), st.sampled_from(NODES)), max_size=12)


@given(STEPS)
def test_it_agrees_with_a_dict(steps: list[tuple[bool, str]]) -> None:
    replicas, model = Replicas(), dict[str, Extent]()
    for number, (adds, node) in enumerate(steps):
        if adds:
            replicas[node] = model[node] = Extent(number, 0, number + 1, 1)
        elif node in model:
            assert replicas.pop(node) == model.pop(node)
        else:
            with pytest.raises(KeyError):
                replicas.pop(node)
        assert (len(replicas), bool(replicas)) == (len(model), bool(model))
        assert list(replicas) == list(model)
        assert list(replicas.items()) == list(model.items())
        assert replicas.num_bytes == sum(extent.length for extent in model.values())
        assert replicas.values() == list(model.values())
        assert [name in replicas for name in ["", *NODES]] == [name in model for name in ["", *NODES]]
        assert all(replicas[name] == extent for name, extent in model.items())
