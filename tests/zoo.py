"""The models of the laws, as a table: how each is built, called, and what must be found in it.

`MODELS` holds user-written networks (zoo_dense, zoo_attention, zoo_conv), `LIBRARY` those of torchvision, timm and
transformers. What is expected was thought out by hand, not copied from a run:

- kinds: `hidden` is the residual stream of linear layers, `inner` any other width of linear layers only, `heads` one
  axis per attention, `channels` any axis that a convolution reads, or that more convolutions than matrices carry (a
  vision transformer's stream is hidden although a convolution makes its patches);
- of a product one factor is elastic: heads, not head_dim; the per-group width under a group norm; the larger of groups
  and per-group width in a grouped convolution; key and value groups, not their repeats;
- a chain counts when two or more blocks follow each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
import transformers
import zoo_attention as attention
import zoo_conv as conv
import zoo_dense as dense
from torch import Tensor, nn

Inputs = tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: Its id in the tests.
        build: Makes it: the same weights at each call, no norm, gate or running statistic at its first value.
        inputs: Example inputs, positional (tuple) or by keyword (dict); the batch is the first dimension.
        elastic: Expected number of axes by kind.
        chains: Expected number of blocks of each chain of two or more blocks, in the order of the forward pass.
        share: Least share of the parameters (numbers, not tensors) that must be elastic in at least one dimension.
        fixed: The parameters in which nothing is elastic, by pattern (fnmatch).
        frozen: Words that the reasons in `model.frozen` must contain.
        casts: Whether the model computes in float32 of its own accord, whatever its weights are.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    elastic: dict[str, int]
    chains: tuple[int, ...] = ()
    share: float = 0.99
    fixed: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    casts: bool = False


def randomize(module: nn.Module, seed: int) -> nn.Module:
    """Move every parameter and running statistic that a constructor left constant or nearly so.

    A norm of ones and zeros, a layer-scale of 1e-6 or a zero bias hides a wrong coupling. Constants other than zero are
    drawn again from [0.5, 1.5), zeros and what varies by less than 1e-3 from a normal of deviation 0.2. Returns the
    module itself.
    """
    generator = torch.Generator().manual_seed(seed)
    buffers = {name: buffer for name, buffer in module.named_buffers() if "running_" in name}
    with torch.no_grad():
        for tensor in (*module.parameters(), *buffers.values()):
            if tensor.numel() < 2 or tensor.std() >= 1e-3:
                continue
            constant = bool((tensor == tensor.flatten()[0]).all()) and bool(tensor.flatten()[0] != 0)
            drawn = torch.rand(tensor.shape, generator=generator) + 0.5
            tensor.copy_(drawn if constant else torch.randn(tensor.shape, generator=generator) * 0.2)
    return module


def made(factory: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    """A builder that gives the same randomised weights each time and leaves the global random state alone."""

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return randomize(factory(*args, **kwargs), seed=11)

    return build


def _floats(*shapes: tuple[int, ...]) -> Callable[[], Inputs]:
    """Positional inputs of normal numbers."""

    def inputs() -> Inputs:
        generator = torch.Generator().manual_seed(3)
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    return inputs


def _tokens(*vocabularies: int, length: int = 6) -> Callable[[], Inputs]:
    """Positional inputs of token numbers, one tensor for each vocabulary, each one token longer than the last."""

    def inputs() -> Inputs:
        generator = torch.Generator().manual_seed(3)
        shapes = ((size, (3, length + place)) for place, size in enumerate(vocabularies))
        return tuple(torch.randint(0, size, shape, generator=generator) for size, shape in shapes)

    return inputs


def _text(vocabulary: int, **more: Any) -> Callable[[], Inputs]:
    """Keyword inputs of a transformers model: (2, 16) token numbers; the word "mask" stands for a padding mask."""

    def inputs() -> Inputs:
        generator = torch.Generator().manual_seed(3)
        ids = torch.randint(0, vocabulary, (2, 16), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 12:] = 0
        return {"input_ids": ids} | {name: mask if value == "mask" else value for name, value in more.items()}

    return inputs


def _masked_tokens() -> Inputs:
    """Inputs of `KeywordInputs`."""
    (tokens,) = _tokens(20)()
    mask = torch.ones(tokens.shape, dtype=torch.bool)
    mask[0, 4:] = False
    return {"tokens": tokens, "mask": mask}


ROW = _floats((3, 8))
IMAGE = _floats((3, 3, 8, 8))
SEQUENCE = _floats((3, 6, 10))
TRANSFORMER = {"hidden": 1, "heads": 2, "inner": 2}


def _stack(name: str, block: type[nn.Module], blocks: int = 2, **expected: Any) -> Case:
    """A stack of residual blocks of linear layers."""
    build = made(dense.Stack, block, blocks)
    return Case(name, build, ROW, {"hidden": 1, "inner": blocks}, (blocks,), **({"fixed": ("head.bias",)} | expected))


def _attention(name: str, kind: attention.Attention, **expected: Any) -> Case:
    """Two pre-norm blocks with the given attention."""
    build = made(attention.TokenNet, kind)
    return Case(name, build, SEQUENCE, TRANSFORMER, (2,), **({"fixed": ("head.bias",)} | expected))


DENSE = (
    Case("mlp", made(dense.MLP), ROW, {"inner": 2}, fixed=("fc3.bias",)),
    Case("batch_norm_mlp", made(dense.BatchNormMLP), ROW, {"inner": 2}, fixed=("net.7.bias",)),
    Case("residual_mlp", made(dense.ResidualMLP), ROW, {"hidden": 1, "inner": 4}, (4,), fixed=("head.bias",)),
    _stack("glu_chunk", dense.GLUBlock),
    _stack("swiglu", dense.SwiGLUBlock),
    _stack("scalar_gate", dense.GatedBlock, fixed=("*.gate", "head.bias")),
    _stack("drop_path", dense.DropPathBlock, blocks=3),
    Case("shared_layer", made(dense.SharedLayer), ROW, {"inner": 1}, fixed=("head.bias",)),
    Case("shared_block", made(dense.SharedBlock), ROW, {"hidden": 1, "inner": 1}, (3,), fixed=("head.bias",)),
    Case("dict_output", made(dense.DictOutput), ROW, {"inner": 2}, fixed=("head.bias",)),
    Case("model_output", made(dense.ModelOutputNet), ROW, {"inner": 2}, share=0.98, fixed=("fc2.bias", "head.bias")),
    Case("keyword_inputs", made(dense.KeywordInputs), _masked_tokens, {"inner": 2}, fixed=("fc2.bias",)),
    Case(
        "position_buffer",
        made(dense.SinusoidalPositions),
        _tokens(20),
        {"hidden": 1, "inner": 2},
        (2,),
        fixed=("head.bias",),
    ),
    Case("mixer", made(dense.Mixer), _floats((3, 9, 12)), {"hidden": 1, "inner": 4}, (2,), fixed=("head.bias",)),
    Case(
        "cumulative_sum",
        made(dense.CumulativeSum),
        ROW,
        {"inner": 1},
        share=0.75,
        fixed=("fc1.*", "head.bias"),
        frozen=("cumsum",),
    ),
    Case(
        "sorted_features",
        made(dense.SortedFeatures),
        ROW,
        {"inner": 1},
        share=0.75,
        fixed=("fc1.*", "head.bias"),
        frozen=("sort",),
    ),
)

ATTENTION = (
    _attention("qkv_split", attention.SplitQKV),
    _attention("qkv_chunk", attention.ChunkQKV),
    _attention("qkv_reshape", attention.ReshapeQKV),
    _attention("qkv_per_head", attention.PerHeadQKV),
    _attention("qkv_separate", attention.SeparateQKV),
    _attention("qkv_einsum", attention.EinsumQKV),
    _attention("multihead_module", attention.ModuleAttention),
    _attention("grouped_query_interleave", attention.GroupedQuery),
    _attention("grouped_query_expand", attention.GroupedQueryExpand),
    _attention("multi_query", attention.MultiQuery, fixed=("*.kv.bias", "head.bias")),
    _attention("rotary", attention.RotaryAttention),
    _attention("relative_bias", attention.RelativeBiasAttention),
    Case("encoder_module", made(attention.EncoderNet), _tokens(20), TRANSFORMER, (2,), fixed=("head.bias",)),
    Case(
        "post_norm",
        made(attention.PostNorm),
        _tokens(20),
        {"hidden": 1, "heads": 3, "inner": 4},
        (3,),
        fixed=("head.bias",),
    ),
    Case("tied_embeddings", made(attention.TiedLM), _tokens(30), TRANSFORMER, (2,), share=1.0),
    Case(
        "encoder_decoder",
        made(attention.EncoderDecoder),
        _tokens(20, 22),
        {"hidden": 2, "heads": 6, "inner": 4},
        (2, 2),
        fixed=("head.bias",),
    ),
    Case(
        "tiny_vit",
        made(attention.TinyViT),
        IMAGE,
        TRANSFORMER,
        (2,),
        fixed=("head.bias",),
    ),
)

CONV = (
    Case("resnet", made(conv.ResNet), IMAGE, {"channels": 7}, (2, 2), fixed=("fc.bias",)),
    Case("resnet_option_a", made(conv.OptionAResNet), IMAGE, {"channels": 14}, (3, 2, 2), fixed=("fc.bias",)),
    Case("unet", made(conv.UNet), IMAGE, {"channels": 7}, fixed=("out.bias",)),
    Case("densenet", made(conv.DenseNet), IMAGE, {"channels": 8}, fixed=("fc.bias",)),
    Case("shufflenet_1", made(conv.ShuffleNet1), IMAGE, {"channels": 3}, (2,), fixed=("fc.bias",)),
    Case("shufflenet_2", made(conv.ShuffleNet2), IMAGE, {"channels": 6}, fixed=("fc.bias",)),
    Case("resnext", made(conv.GroupedNet, groups=4), IMAGE, {"channels": 5}, (2,), fixed=("fc.bias",)),
    Case("many_groups", made(conv.GroupedNet, groups=16), IMAGE, {"channels": 3}, (2,), fixed=("fc.bias",)),
    Case("depthwise_multiplier", made(conv.DepthwiseMultiplier), IMAGE, {"channels": 3}, fixed=("fc.bias",)),
    Case("group_norm", made(conv.GroupNormNet), IMAGE, {"channels": 3}, (2,), fixed=("fc.bias",)),
    Case("squeeze_excite", made(conv.SqueezeExciteNet), IMAGE, {"channels": 3, "inner": 2}, (2,), fixed=("fc.bias",)),
    Case(
        "patch_merging",
        made(conv.PatchMergingNet),
        IMAGE,
        {"hidden": 2, "inner": 4},
        (2, 2),
        fixed=("head.bias",),
    ),
    Case(
        "convnext",
        made(conv.ConvNeXt),
        _floats((3, 3, 16, 16)),
        {"channels": 2, "inner": 4},
        (2, 2),
        fixed=("head.bias",),
    ),
    Case("auxiliary_head", made(conv.AuxiliaryHead), IMAGE, {"channels": 3}, fixed=("aux_fc.bias", "fc.bias")),
    Case("flatten", made(conv.FlattenNet), IMAGE, {"channels": 2, "inner": 1}, fixed=("fc2.bias",)),
    Case("pixel_shuffle", made(conv.PixelShuffle), IMAGE, {"channels": 2}, fixed=("conv3.bias",)),
    Case("film", made(conv.FiLM), _floats((3, 3, 8, 8), (3, 6)), {"channels": 2, "inner": 1}, fixed=("head.bias",)),
)

MODELS = DENSE + ATTENTION + CONV

NOTHING_ELASTIC = Case("nothing_elastic", made(dense.NothingElastic), ROW, {}, share=0.0, fixed=("*",))


def _transformer(model: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    """A transformers model with random weights, large enough that attention is not uniform."""
    return made(lambda: getattr(transformers, model)(getattr(transformers, config)(initializer_range=0.2, **sizes)))


PHOTO = _floats((2, 3, 64, 64))
LARGE_PHOTO = _floats((2, 3, 224, 224))
VISION_TRANSFORMER = {"hidden": 1, "heads": 12, "inner": 12}
BERT_SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
LLAMA_SIZES = BERT_SIZES | {"num_key_value_heads": 2}
GPT2_SIZES = {"vocab_size": 99, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
GPT2_SIZES |= {"bos_token_id": 0, "eos_token_id": 0}

LIBRARY = (
    Case("resnet18", made(torchvision.models.resnet18), PHOTO, {"channels": 12}, (2,), fixed=("fc.bias",)),
    Case("resnet50", made(torchvision.models.resnet50), PHOTO, {"channels": 37}, (2, 3, 5, 2), fixed=("fc.bias",)),
    Case(
        "mobilenet_v2",
        made(torchvision.models.mobilenet_v2),
        PHOTO,
        {"channels": 25},
        (2, 3, 2, 2),
        fixed=("classifier.1.bias",),
    ),
    Case(
        "vit_b_16",
        made(torchvision.models.vit_b_16, image_size=64),  # all its layers, fewer tokens
        PHOTO,
        VISION_TRANSFORMER,
        (12,),
        fixed=("heads.head.bias",),
    ),
    Case(
        "vit_tiny_patch16_224",
        made(timm.create_model, "vit_tiny_patch16_224"),
        LARGE_PHOTO,
        VISION_TRANSFORMER,
        (12,),
        fixed=("head.bias",),
    ),
    Case(
        "convnext_atto",
        made(timm.create_model, "convnext_atto"),
        PHOTO,
        {"channels": 16},
        (2, 2, 6, 2),
        fixed=("head.fc.bias",),
    ),
    Case(
        "BertForSequenceClassification",
        _transformer("BertForSequenceClassification", "BertConfig", **BERT_SIZES),
        _text(99, attention_mask="mask"),
        {"hidden": 1, "heads": 3, "inner": 4},
        (3,),
        fixed=("classifier.bias",),
    ),
    Case(
        "GPT2LMHeadModel",
        _transformer("GPT2LMHeadModel", "GPT2Config", **GPT2_SIZES),
        _text(99, use_cache=False),
        {"hidden": 1, "heads": 3, "inner": 3},
        (3,),
        share=1.0,
    ),
    Case(
        "LlamaForCausalLM",
        _transformer("LlamaForCausalLM", "LlamaConfig", **LLAMA_SIZES),
        _text(99, use_cache=False),
        {"hidden": 1, "heads": 3, "inner": 3},
        (3,),
        share=1.0,
        casts=True,
    ),
)


def call(module: nn.Module, inputs: Inputs) -> Any:
    """Call a module with positional or keyword inputs."""
    return module(**inputs) if isinstance(inputs, dict) else module(*inputs)


def repeated(inputs: Inputs, times: int) -> Inputs:
    """The same inputs with each sample given `times` times: another batch size."""

    def more(value: Any) -> Any:
        return torch.cat([value] * times) if isinstance(value, Tensor) else value

    return {key: more(value) for key, value in inputs.items()} if isinstance(inputs, dict) else tuple(map(more, inputs))
