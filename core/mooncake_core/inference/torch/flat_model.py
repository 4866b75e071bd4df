"""A model's forward pass as straight-line code.

In a decode step of a small model most time goes into Python: modules that call modules. torch.export writes down what they
do to tensors, and that is run instead.
"""

from __future__ import annotations

import logging
import operator
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(input_ids, position_ids), each [1, tokens], to hidden states [1, tokens, hidden]."""
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, float], torch.Tensor]
"""(query [1, heads, tokens, dim], key and value [1, kv_heads, tokens, dim], layer, scaling) to [1, tokens, heads, dim]."""
Weights = dict[torch.fx.Node, torch.Tensor]
"""Placeholders of a graph, and what they stand for."""

MOST_TOKENS: Final = 1 << 20
_EXAMPLE_TOKENS: Final = 7
_aten: Final = torch.ops.aten

_DIRECT: Final = {
    _aten.add.Tensor: torch.add,
    _aten.cat.default: torch.cat,
    _aten.linear.default: torch._C._nn.linear,
    _aten.mean.dim: torch.mean,
    _aten.mul.Tensor: torch.mul,
    _aten.neg.default: torch.neg,
    _aten.pow.Tensor_Scalar: torch.pow,
    _aten.reshape.default: torch.reshape,
    _aten.rsqrt.default: torch.rsqrt,
    _aten.silu.default: torch._C._nn.silu,
    _aten.transpose.int: torch.transpose,
    _aten.unsqueeze.default: torch.unsqueeze,
    _aten.view.default: torch.reshape,
}
"""What torch.export calls an operation, and the function that does the same."""

_log = logging.getLogger(__name__)


@torch.library.custom_op("mooncake::attention", mutates_args=())  # type: ignore[untyped-decorator]
def attention_mark(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
) -> torch.Tensor:
    """Stands for attention while a model is written down."""
    return query.transpose(1, 2).clone(memory_format=torch.contiguous_format)


@attention_mark.register_fake  # type: ignore[untyped-decorator]
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float) -> torch.Tensor:
    batch, heads, tokens, dim = query.shape
    return query.new_empty((batch, tokens, heads, dim))


def fastest_forward(model: Any, attention: Attention, hidden_of: Callable[[Forward], torch.Tensor]) -> Forward:
    """The model written down, where torch.export can follow it and its hidden states of a prompt stay what they were."""
    original = _module_forward(model)
    started = time.monotonic()
    expected = hidden_of(original)
    try:
        flat = flat_forward(model, attention)
    except Exception as error:  # torch.export has many ways to refuse
        _log.info("the model runs module by module, torch.export cannot follow it: %s", str(error).partition("\n")[0])
        return original
    got = hidden_of(flat)
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    if not torch.allclose(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())):
        _log.warning("the model runs module by module: written down as one graph it gives other results")
        return original
    _log.info("the model was written down as one graph in %.1fs", time.monotonic() - started)
    return flat


def _module_forward(model: Any) -> Forward:
    """The model as transformers runs it."""

    def forward(input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        output = model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    return forward


def flat_forward(model: Any, attention: Attention) -> Forward:
    """The model written down. Its attention layers must call `attention_mark` meanwhile; later they call `attention`.

    Weights whose products are computed together move to common memory; the model's own become views of it.

    Raises: whatever torch.export does not understand of the model, such as a path that depends on data.
    """
    program = _export(model)
    graph = program.graph_module.graph
    _drop_needless(graph)
    weights = {
        node: weight
        for node in graph.nodes
        if node.op == "placeholder" and (weight := _weight(program, node.name)) is not None
    }
    _merge_linears(graph, weights)
    for node in graph.nodes:
        if node.target is torch.ops.mooncake.attention.default:
            node.target = attention
    graph.eliminate_dead_code()
    constants = [weights[node] for node in graph.nodes if node in weights]
    _call_directly(graph)
    program.graph_module.recompile()
    run = program.graph_module.forward

    def forward(input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = run(*constants, input_ids, position_ids)[0]
        return hidden

    return forward


class _Exported(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.run = _module_forward(model)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self.run(input_ids, position_ids)


def _export(model: Any) -> torch.export.ExportedProgram:
    device = model.device
    positions = torch.arange(_EXAMPLE_TOKENS, device=device)[None]
    tokens = torch.export.Dim("tokens", min=2, max=MOST_TOKENS)  # what is written down for 2 and more holds for 1
    with torch.no_grad():
        return torch.export.export(
            _Exported(model), (torch.zeros_like(positions), positions), dynamic_shapes=({1: tokens}, {1: tokens})
        )


def _weight(program: torch.export.ExportedProgram, name: str) -> torch.Tensor | None:
    """What a placeholder of the graph stands for; None for the inputs."""
    signature = program.graph_signature
    full_name = signature.inputs_to_parameters.get(name) or signature.inputs_to_buffers.get(name)
    full_name = full_name or signature.inputs_to_lifted_tensor_constants.get(name)
    if full_name is None:
        return None
    found = program.state_dict.get(full_name)
    return program.constants[full_name] if found is None else found


def _call_directly(graph: torch.fx.Graph) -> None:
    """Calls the functions themselves instead of going through torch.ops, which costs as much as a small operation."""
    for node in graph.nodes:
        if node.target is _aten.slice.Tensor and len(node.args) == 4:
            source, dim, start, end = node.args
            before = source.meta["val"].dim() - 1 - dim if dim >= 0 else -1 - dim
            if before == 0:
                node.target, node.args = operator.getitem, (source, (Ellipsis, slice(start, end)))
        else:
            node.target = _DIRECT.get(node.target, node.target)


def _drop_needless(graph: torch.fx.Graph) -> None:
    """Checks, casts to the type that is there already, factors of 1."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if "assert" in str(node.target):
            graph.erase_node(node)
        elif _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _is_identity(node: torch.fx.Node) -> bool:
    if node.target in (_aten.to.dtype, _aten.to.device):
        before, after = node.args[0].meta["val"], node.meta["val"]
        return bool(before.dtype == after.dtype and before.device == after.device)
    if node.target is _aten.mul.Tensor:
        return bool(node.args[1] == 1.0)
    return node.target is _aten.dropout.default


def _merge_linears(graph: torch.fx.Graph, weights: Weights) -> None:
    """Products of one input with several weights become one: query, key and value; gate and up."""
    groups: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for node in graph.nodes:
        if node.target is _aten.linear.default and node.args[1] in weights:
            groups.setdefault(node.args[0], []).append(node)
    for group in groups.values():
        with_bias = [node for node in group if len(node.args) > 2]
        for alike in (with_bias, [node for node in group if len(node.args) == 2]):
            if len(alike) > 1:
                _merge(graph, alike, weights)


def _merge(graph: torch.fx.Graph, nodes: Sequence[torch.fx.Node], weights: Weights) -> None:
    source, *operands = zip(*(node.args for node in nodes), strict=True)
    sizes = [weights[node.args[1]].shape[0] for node in nodes]
    merged = [_concatenated(graph, operand, weights) for operand in operands]
    with graph.inserting_before(nodes[0]):
        product = graph.call_function(_aten.linear.default, (source[0], *merged))
        parts = graph.call_function(torch.split_with_sizes, (product, sizes, -1))
        replacements = [graph.call_function(operator.getitem, (parts, index)) for index in range(len(nodes))]
    for node, replacement in zip(nodes, replacements, strict=True):
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)


def _concatenated(graph: torch.fx.Graph, operands: Sequence[torch.fx.Node], weights: Weights) -> torch.fx.Node:
    """A placeholder of all the weights, one after another; the weights themselves become parts of its memory."""
    parts = [weights[operand] for operand in operands]
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    with graph.inserting_before(operands[0]):
        placeholder = graph.placeholder("_".join(operand.name for operand in operands))
    weights[placeholder] = whole
    return placeholder
