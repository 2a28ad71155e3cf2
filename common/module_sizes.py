"""Sizes that modules hold besides their tensors, made to say what the tensors say.

A layer's own numbers follow from its weight. Attention counts its heads by the width that its output
projection reads. And where a forward of timm's takes the width inside attention for that of its input,
it is written anew with that width inferred, which changes nothing for the network as timm builds it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from common.system_errors import pass_on

HEAD_COUNTS = ("num_heads", "heads")
OUTPUT_PROJECTIONS = ("proj", "o_proj", "out_proj", "output", "upsampling")
HEAD_WIDTHS = (
    "attn_dim", "attention_dim", "kv_dim", "key_attn_dim", "val_attn_dim", "out_dim", "dim_out", "dh",
    "o_proj_inpdim", "hidden_dim",
)  # fmt: skip
"""Attributes by which timm's attention modules call the width of all their heads together."""
WIDTH = "C"
"""The name by which timm's forwards call the width of their input."""


def match_sizes(module: nn.Module) -> None:
    """Set a module's attributes to what its tensors' shapes say; children still have their old ones.

    To be called for a network's modules from the root down, after their tensors were given new shapes.
    """
    if any(isinstance(getattr(module, name, None), int) for name in HEAD_COUNTS):
        _match_heads(module)
    rule = _BY_CLASS.get(f"{type(module).__module__.removeprefix('timm.')}.{type(module).__qualname__}")
    if rule is not None:
        rule(module)
    _match_layer(module)


def _match_layer(layer: Any) -> None:
    weight: Any = getattr(layer, "weight", None)
    if isinstance(layer, nn.modules.conv._ConvNd):
        inputs, outputs = _conv_channels(layer)
        if 1 < layer.groups == layer.in_channels:
            layer.groups = inputs
        layer.in_channels, layer.out_channels = inputs, outputs
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
        layer.num_features = layer.running_mean.shape[0]
    elif isinstance(getattr(layer, "normalized_shape", None), tuple) and weight is not None:
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, nn.GroupNorm) and weight is not None:
        layer.num_channels = weight.shape[0]


def _conv_channels(conv: nn.modules.conv._ConvNd) -> tuple[int, int]:
    """Input and output channels that a convolution's weight says, its groups being the old ones."""
    weight = conv.weight
    if conv.transposed:
        return weight.shape[0], weight.shape[1] * conv.groups
    if 1 < conv.groups == conv.in_channels:
        return weight.shape[0] * conv.groups // conv.out_channels, weight.shape[0]
    return weight.shape[1] * conv.groups, weight.shape[0]


def _match_heads(attention: Any) -> None:
    """Heads, and what is counted in them: as much of them is left as of what the projection reads."""
    count = next(name for name in HEAD_COUNTS if hasattr(attention, name))
    heads = getattr(attention, count)
    projection = output_projection(attention)
    if projection is None or heads < 1:
        return
    if isinstance(projection, nn.Linear):
        before, after = projection.in_features, projection.weight.shape[1]
    else:
        before, after = projection.in_channels, _conv_channels(projection)[0]
    if before % heads == 0:
        attention.__class__ = _with_inferred_widths(type(attention))  # type: ignore[arg-type]
        attention._head_width = before // heads
    if after == before:
        return
    setattr(attention, count, heads * after // before)
    for name in HEAD_WIDTHS:
        width = getattr(attention, name, None)
        if isinstance(width, int) and width % heads == 0:
            setattr(attention, name, width // heads * getattr(attention, count))
    bias = getattr(attention, "k_bias", None)
    if isinstance(bias, torch.Tensor) and bias.is_meta and "k_bias" in attention._buffers:
        attention.k_bias = bias.new_empty(attention.v_bias.shape)


def output_projection(attention: nn.Module) -> Any:
    """The layer that reads what all heads give, None where there is none."""
    for name in OUTPUT_PROJECTIONS:
        for layer in getattr(attention, name, nn.Identity()).modules():
            if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
                return layer
    return None


# -- forwards with their inner width inferred ------------------------------------------------------


@functools.cache
def _with_inferred_widths(base: type) -> type:
    """A class like `base`, whose methods ask neither the input nor its width for the heads' width."""
    methods = {}
    for name, method in vars(base).items():
        if isinstance(method, types.FunctionType) and not method.__closure__:
            inferring = _inferring_widths(method)
            if inferring is not None:
                methods[name] = inferring
    return type(base.__name__, (base,), {**methods, "__module__": base.__module__}) if methods else base


def _inferring_widths(method: types.FunctionType) -> Callable | None:
    """The method with its widths inferred, None where there are none (or no source to see them in)."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, SyntaxError) as error:
        pass_on(error)
        return None
    inference = _WidthInference()
    tree = ast.fix_missing_locations(inference.visit(tree))
    if not inference.found:
        return None
    tree.body[0].decorator_list = []  # type: ignore[attr-defined]
    names: dict[str, Any] = {}
    ast.increment_lineno(tree, method.__code__.co_firstlineno - 1)
    exec(compile(tree, method.__code__.co_filename, "exec"), method.__globals__, names)
    return names[method.__name__]


class _WidthInference(ast.NodeTransformer):
    """Rewritings that give the same wherever the method worked before.

    `C // self.num_heads` is the width of one head. A view may infer its one size called C, or else its
    number of heads. Images that are viewed as (B, C, -1) are flattened.
    """

    def __init__(self) -> None:
        self.found = False

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        divisor = node.right
        if isinstance(node.op, ast.FloorDiv) and _is_own(divisor, HEAD_COUNTS):
            self.found = True
            return ast.copy_location(
                ast.Attribute(ast.Name("self", ast.Load()), "_head_width", ast.Load()), node
            )
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("view", "reshape"):
            widths = [k for k, size in enumerate(node.args) if _is_width(size)]
            heads = [k for k, size in enumerate(node.args) if _is_own(size, HEAD_COUNTS)]
            inferred = [k for k, size in enumerate(node.args) if _is_inferred(size)]
            starred = any(isinstance(size, ast.Starred) for size in node.args)
            if len(widths) == 1 and not inferred and not starred:
                self.found = True
                node.args[widths[0]] = ast.copy_location(ast.Constant(-1), node.args[widths[0]])
            elif not widths and len(heads) == 1 and not inferred and not starred:
                self.found = True
                node.args[heads[0]] = ast.copy_location(ast.Constant(-1), node.args[heads[0]])
            elif widths == [1] and inferred == [2] and len(node.args) == 3:
                self.found = True
                node.func.attr = "flatten"
                node.args = [ast.copy_location(ast.Constant(2), node.args[2])]
        return node


def _is_own(node: ast.AST, names: tuple[str, ...]) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr in names
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def _is_width(node: ast.AST) -> bool:
    """Whether the size is the width, or a multiple of it."""
    named = any(isinstance(part, ast.Name) and part.id == WIDTH for part in ast.walk(node))
    return named or _is_own(node, ("dim",))


def _is_inferred(node: ast.AST) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)


# -- modules with sizes of their own ---------------------------------------------------------------


def _separable_attention(module: Any) -> None:
    module.embed_dim = module.out_proj.weight.shape[1]


def _scale(module: Any) -> None:
    module.shape = tuple(module.scale.shape[0] if n > 1 else 1 for n in module.shape)


def _res2net_block(module: Any) -> None:
    module.width = _conv_channels(module.convs[0])[0]


def _rexnet_block(module: Any) -> None:
    first = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
    module.in_channels = _conv_channels(first)[0]


def _cross_stage(module: Any) -> None:
    module.expand_chs = module.conv_exp.conv.weight.shape[0]


def _conv_position_encoding(module: Any) -> None:
    module.channel_splits = [conv.weight.shape[0] for conv in module.conv_list]


def _bias_of_heads_last(module: Any) -> None:
    table = module.mlp.fc2.weight.T if hasattr(module, "mlp") else module.relative_position_bias_table
    module.bias_shape = (*module.bias_shape[:-1], table.shape[1])
    module.num_heads = table.shape[1]


def _bias_of_heads_first(module: Any) -> None:
    module.num_heads = module.relative_position_bias_table.shape[0]
    module.bias_shape = (module.num_heads, *module.bias_shape[1:])


def _partial_convolution(module: Any) -> None:
    partial = module.spatial_mixing
    partial.dim_conv3 = partial.partial_conv3.weight.shape[1]
    partial.dim_untouched = module.mlp[0].weight.shape[1] - partial.partial_conv3.weight.shape[0]


def _gated_convolution(module: Any) -> None:
    gated, convolved = module.fc2.weight.shape[1], module.conv.weight.shape[0]
    module.split_indices = (gated, gated - convolved, convolved)


def _inception_block(module: Any) -> None:
    mixer, width = module.token_mixer, module.norm.weight.shape[0]
    branches = [conv.weight.shape[0] for conv in (mixer.dwconv_hw, mixer.dwconv_w, mixer.dwconv_h)]
    mixer.split_indexes = (width - sum(branches), *branches)


def _focal_modulation(module: Any) -> None:
    context = module.focal_layers[0][0].weight.shape[0]
    module.input_split = [module.h.weight.shape[0], context, module.input_split[2]]


def _state_space_mixer(module: Any) -> None:
    module.d_inner = module.hz_proj.conv.weight.shape[0] // 2
    module.state_dim = module.BCdt_proj.conv.weight.shape[0] // 3


def _mixed_convolution(module: Any) -> None:
    module.splits = [_conv_channels(conv)[0] for conv in module.values()]


def _selective_kernel(module: Any) -> None:
    parts = module.num_paths if module.split_input else 1
    module.in_channels = _conv_channels(module.paths[0].conv)[0] * parts


def _blur_pool(module: Any) -> None:
    """One filter for however many channels come, as no tensor of its own says how many."""
    module.channels = None
    module.filt = module.filt[:1]


def _attention_without_projection(module: Any) -> None:
    """Its values are its output: the projections into queries and values tell what heads are left."""
    queries = module.q if hasattr(module, "q") else module.qkv
    per_head = module.dim_head_qk if hasattr(module, "q") else 2 * module.dim_head_qk + module.dim_head_v
    module.num_heads = queries.weight.shape[0] // per_head
    module.dim_out_qk = module.num_heads * module.dim_head_qk
    module.dim_out_v = module.num_heads * module.dim_head_v


_BY_CLASS: dict[str, Callable[[Any], None]] = {
    "layers.blur_pool.BlurPool2d": _blur_pool,
    "layers.bottleneck_attn.BottleneckAttn": _attention_without_projection,
    "layers.halo_attn.HaloAttn": _attention_without_projection,
    "layers.mixed_conv2d.MixedConv2d": _mixed_convolution,
    "layers.selective_kernel.SelectiveKernel": _selective_kernel,
    "layers.pos_embed_rel.RelPosBias": _bias_of_heads_last,
    "layers.pos_embed_rel.RelPosBiasTf": _bias_of_heads_first,
    "layers.pos_embed_rel.RelPosMlp": _bias_of_heads_last,
    "models.coat.ConvRelPosEnc": _conv_position_encoding,
    "models.cspnet.CrossStage": _cross_stage,
    "models.cspnet.CrossStage3": _cross_stage,
    "models.efficientvim.HSMSSD": _state_space_mixer,
    "models.fasternet.MLPBlock": _partial_convolution,
    "models.focalnet.FocalModulation": _focal_modulation,
    "models.inception_next.MetaNeXtBlock": _inception_block,
    "models.mambaout.GatedConvBlock": _gated_convolution,
    "models.metaformer.Scale": _scale,
    "models.mobilevit.LinearSelfAttention": _separable_attention,
    "models.res2net.Bottle2neck": _res2net_block,
    "models.rexnet.LinearBottleneck": _rexnet_block,
}
