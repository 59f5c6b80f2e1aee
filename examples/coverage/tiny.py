"""Tiny configurations of transformers models: the default one with every known size made small.

This is a tool for gathering evidence, so it may guess: fields are recognised by their names, several ways to shrink
are offered, and whoever builds the model takes the first that runs.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from examples.coverage.given import GIVEN, WHOLE

VOCABULARY, WIDTH, INNER, HEADS, POSITIONS = 128, 64, 96, 4, 128
Shrink = Callable[[str, Any, Mapping[str, Any]], Any]

# Every field by a pattern of its name -> the size it gets, at most.
FIXED: dict[str, int] = {
    r"(?:.*_)?vocab(?:ulary)?_size(?:_.*)?|.*_vocab_size|entity_vocab_size|codebook_size": VOCABULARY,
    r"max_position_embeddings|n_positions|n_ctx|max_seq_len|seq_length|max_(?:source|target)_positions"
    r"|block_size": POSITIONS,
    r"(?:.*_)?hidden_(?:size|dim)|(?:text_|vision_|audio_)?d_model|n_embd|(?:.*_)?embed_dim|dim|(?:.*_)?emb(?:edding)?_(?:size|dim)"
    r"|projection_dim|word_embed_proj_dim|encoder_width|out_hidden_size|hidden|model_dim|width|feature_dim"
    r"|(?:pooler_)?output_(?:size|hidden_size|dim|channels)|lru_width|classifier_proj_size|output_hidden_size": WIDTH,
    r"(?:.*_)?intermediate_(?:size|dim)|(?:.*_)?ffn_dim|d_ff|n_inner|(?:.*_)?mlp_dim|d_inner|(?:.*_)?ffn_hidden_size"
    r"|feed_forward_size|dim_feedforward|(?:.*_)?feedforward_dim": INNER,
    r"moe_intermediate_size|(?:.*_)?expert_(?:intermediate|ffn_hidden)_size|expert_dim|moe_.*intermediate_size": 32,
    r"(?:.*_)?num_(?:attention_|self_attention_)?heads|n_heads?|(?:encoder|decoder)_attention_heads"
    r"|num_attn_heads": HEADS,
    r"(?:.*_)?num_key_value_heads|n_kv_heads|num_kv_heads|multi_query_group_num": 2,
    r"head_dim|d_kv|(?:attention_)?head_size|global_head_dim|.*_attention_head_dim|attention_head_dim|d_head": 16,
    r"swa_head_dim|v_head_dim|qk_nope_head_dim|qk_head_dim_nope": 16,
    r"qk_rope_head_dim|rotary_dim": 8,
    r"q_lora_rank": 24,
    r"kv_lora_rank|o_lora_rank|(?:.*_)?lora_rank|.*_low_rank_dim|.*_lora_dim": 16,
    r"index_head_dim|index_.*_dim": 16,
    r"index_n_heads": 2,
    r"index_topk": 8,
    r"linear_(?:key|value)_head_dim|mamba_(?:d_head|head_dim)": 16,
    r"linear_num_key_heads": 2,
    r"linear_num_value_heads": 4,
    r"mamba_(?:n_heads|num_heads)": 8,
    r"(?:mamba_|ssm_)?(?:d_|)state(?:_size|_dim)?|mamba_d_state|ssm_state_size": 16,
    r"(?:mamba_)?chunk_size|(?:mamba_)?n_groups|attention_window|local_attention|sliding_window(?:_size)?": 8,
    r"num_(?:local_|routed_)?experts|n_routed_experts|moe_num_experts|num_moe_experts": 4,
    r"num_experts_per_tok(?:en)?|moe_topk|moe_k|top_k_experts|experts_top_k|moe_top_k": 2,
    r"n_group|topk_group|num_expert_groups|num_groups_topk": 1,
    r"num_nextn_predict_layers": 0,
    r"num_queries|num_denoising|num_object_queries": 12,
    r"num_conv_pos_embeddings": 16,
    r"num_conv_pos_embedding_groups": 4,
    r"xvector_output_dim|adapter_.*size": 32,
}
LAYERS = re.compile(
    r"(?:.*_)?num_(?:hidden_|encoder_|decoder_|)layers|n_layers?|(?:encoder|decoder|num_encoder|num_decoder)_(?:layers|blocks)"
    r"|depth|num_blocks|num_hidden_groups|.*_num_hidden_layers|.*_depth|num_hidden_layers_.*|text_layers|vision_layers"
)
FILLED = {
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
}  # where None will not run
BACKBONES = {"backbone": "test_resnet", "architecture": "test_resnet"}  # fields that name a timm model
CAUSAL = ("reformer",)  # types whose causal models refuse to be built unless the configuration says that they are
INDICES = re.compile(
    r".*(?:ind(?:ex|ic)es|_idx|indexes|_layers_list|layers_block_type_indices)|.*_layer_ids|mlp_only_layers"
)
KEEP = re.compile(r".*(?:token|_id$|_ids$|kernel|stride|padding|groups?$|rate$|ratio|labels|_cost|_coefficient).*")


def strategies() -> Iterator[Shrink]:
    """Ways to make a field smaller, from the smallest models to the least changed."""
    yield _absolute
    yield _proportional
    yield _shorter


def tiny(model_type: str, shrink: Shrink, layers: int = 2, image: int | None = 64) -> PreTrainedConfig:
    """The default configuration of a model type with small sizes.

    Args:
        model_type: a key of `CONFIG_MAPPING`.
        shrink: one of `strategies()`.
        layers: how many layers, where a pattern of layers does not need more.
        image: the image size; None leaves it.
    """
    return _made(CONFIG_MAPPING[model_type](**WHOLE.get(model_type, {})), shrink, layers, image)


def without_cache(config: PreTrainedConfig) -> None:
    """Switch caches off in a configuration and all inside it."""
    if hasattr(config, "use_cache"):
        config.use_cache = False
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            without_cache(value)


def for_task(config: PreTrainedConfig, task: str) -> None:
    """What the models of a task ask of a configuration beside its sizes.

    Args:
        config: to change in place.
        task: a group of names of the sweep, such as `sequence-classification`.
    """
    if task == "sequence-classification":  # rows of a batch end at the first padding
        for part in (config, config.get_text_config()):
            if getattr(part, "pad_token_id", None) is None:
                part.pad_token_id = 0
    if task == "causal-lm" and config.model_type in CAUSAL:
        config.is_decoder = True


def _made(
    config: PreTrainedConfig, shrink: Shrink, layers: int, image: int | None, more: Mapping[str, Any] | None = None
) -> PreTrainedConfig:
    """The configuration with its parts, `more` being what the one around it asks of it."""
    needed = given(config) | dict(more or {})
    values = dict(vars(config))
    if any(isinstance(values.get(name), str) for name in BACKBONES):
        return _with_small_backbone(config, needed)
    count = _layers_needed(values, layers)
    own = _own(type(config))
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(type(config)):
        name, value = field.name, values.get(field.name)
        if isinstance(value, PreTrainedConfig):
            changes[name] = _made(value, shrink, layers, image, needed.pop(name, None))
            continue
        told = value is not None and name in own and own[name] != value
        if value is None and name in FILLED:
            changes[name] = FILLED[name]
        elif value is not None and (told or not _derived(field)):
            changed = value if isinstance(value, bool) else _one(name, value, values, shrink, count, image)
            if changed is not value or told:
                changes[name] = changed
    for name, value in changes.items():
        if isinstance(value, int) and re.fullmatch(r".*token_(?:id|index)", name) is None:
            values[name] = value
    changes |= _tokens(values, bool(changes) and "vocab_size" in values) | needed
    before, after = _depth(vars(config)), _depth(values)
    if values.get("_out_features") and "out_features" not in changes:
        changes["out_features"] = _stages(values["_out_features"], before, after)
    made = type(config)(**changes)
    _fit_rotary(made)
    return made


@functools.cache
def _own(cls: type[PreTrainedConfig]) -> dict[str, Any]:
    """What a configuration holds that nobody told anything; a part of another one may hold other things."""
    with contextlib.suppress(Exception):
        return dict(vars(cls()))
    return {}


def _stages(names: Sequence[str], before: int, after: int) -> list[str]:
    """Stages by name, spread evenly over fewer layers where there was one for each layer."""
    numbered = [name for name in names if re.fullmatch(r"stage\d+", name)]
    if after >= before or max((int(name[5:]) for name in numbered), default=0) <= after:
        return list(names)
    moved = {name: f"stage{math.ceil((k + 1) * after / len(numbered))}" for k, name in enumerate(numbered)}
    return list(dict.fromkeys(moved.get(name, name) for name in names))


def _with_small_backbone(config: PreTrainedConfig, needed: Mapping[str, Any]) -> PreTrainedConfig:
    """The same configuration of a timm model with the smallest network in its place, or the one that is needed."""
    small = copy.deepcopy(config)
    networks = {name: network for name, network in BACKBONES.items() if isinstance(vars(small).get(name), str)}
    for name, value in (networks | dict(needed)).items():
        setattr(small, name, value)
    return small


def given(config: PreTrainedConfig) -> dict[str, Any]:
    """What this configuration needs beside small sizes."""
    return copy.deepcopy(GIVEN.get(config.model_type, {}) | GIVEN.get(type(config).__name__, {}))


def _derived(field: dataclasses.Field[Any]) -> bool:
    """Whether the class computes the field from others when it is not given."""
    return field.default is None and field.default_factory is dataclasses.MISSING and not field.name.endswith("config")


def _one(name: str, value: Any, values: Mapping[str, Any], shrink: Shrink, layers: int, image: int | None) -> Any:
    if isinstance(value, int) and LAYERS.fullmatch(name):
        return min(value, layers)
    if name in ("layer_types", "mlp_layer_types", "layers_block_type", "block_types") and isinstance(
        value, (list, tuple)
    ):
        return list(value)[:layers]
    if INDICES.fullmatch(name) and isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value):
        return _indices(value, _depth(values), layers)
    if name in ("image_size", "img_size", "input_size", "pretrain_image_size") and image is not None:
        return _image(value, values, image)
    if name == "depths" or name.endswith("_depths"):
        return [min(v, 2) for v in value] if isinstance(value, (list, tuple)) else value
    return shrink(name, value, values)


def _depth(values: Mapping[str, Any]) -> int:
    found = [v for n, v in values.items() if LAYERS.fullmatch(n) and isinstance(v, int)]
    return max(found, default=1)


def _layers_needed(values: Mapping[str, Any], layers: int) -> int:
    """Enough layers to see each kind of a pattern, and each entry of a list of layer numbers."""
    count = layers
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        kinds = values.get(name)
        if isinstance(kinds, (list, tuple)) and kinds:
            count = max(
                count, min(8, 1 + max(list(kinds).index(kind) for kind in set(map(str, kinds)) if kind in kinds))
            )
    listed = [len(v) for n, v in values.items() if INDICES.fullmatch(n) and isinstance(v, (list, tuple))]
    return max([count, *(min(n, 4) for n in listed)])


def _indices(value: Any, before: int, after: int) -> list[int]:
    if before <= after:
        return list(value)
    moved = [v if v < 0 else min(after - 1, v * after // max(before, 1)) for v in value]
    return list(dict.fromkeys(moved)) if len(set(moved)) >= min(len(moved), after) else moved


def _image(value: Any, values: Mapping[str, Any], image: int) -> Any:
    patch = values.get("patch_size")
    patch = patch if isinstance(patch, int) and patch > 0 else 1
    size = max(patch * 2, image // patch * patch)
    if isinstance(value, int):
        return min(value, size)
    return type(value)(size for _ in value) if isinstance(value, (list, tuple)) else value


def _absolute(name: str, value: Any, values: Mapping[str, Any]) -> Any:
    """Every known field at most its own small size; lists of widths get a common divisor."""
    if isinstance(value, int):
        for pattern, size in FIXED.items():
            if re.fullmatch(pattern, name):
                if "key_value" in name and value == values.get("num_attention_heads"):
                    size = HEADS
                return min(value, size) if value > 0 else value
        return value
    return _list(name, value)


def _list(name: str, value: Any) -> Any:
    if KEEP.fullmatch(name) or not isinstance(value, (list, tuple)) or not value:
        return value
    if all(isinstance(v, int) for v in value) and max(value) >= 64:
        divisor = math.gcd(*value)
        while divisor > 1 and (min(value) // divisor < 8 or min(value) % divisor):
            divisor -= 1
        divisor = max((d for d in range(1, divisor + 1) if all(v % (d * 4) == 0 for v in value)), default=1)
        return type(value)(v // divisor for v in value)
    return value


def _proportional(name: str, value: Any, values: Mapping[str, Any]) -> Any:
    """Widths and heads divided by one number; sizes of a head stay."""
    heads = next(
        (
            values[n]
            for n in ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads")
            if isinstance(values.get(n), int)
        ),
        1,
    )
    divisor = max((d for d in (1, 2, 3, 4, 6, 8, 12, 16) if heads % d == 0 and heads // d >= 2), default=1)
    if not isinstance(value, int) or value <= 0:
        return value
    if re.search(r"vocab|max_position|n_positions|expert|index_topk|num_queries|nextn", name):
        return _absolute(name, value, values)
    wide = re.search(
        r"hidden_(?:size|dim)|d_model|n_embd|embed_dim|^dim$|intermediate|ffn|d_ff|inner|mlp_dim|heads|n_head|projection_dim|lru_width|^width$",
        name,
    )
    if wide and not re.search(r"head_dim|per_head|head_size", name) and value % divisor == 0 and value >= divisor:
        return value // divisor
    return value


def _shorter(name: str, value: Any, values: Mapping[str, Any]) -> Any:
    """Only fewer tokens, experts and positions."""
    if re.search(r"vocab|expert", name) and isinstance(value, int):
        return _absolute(name, value, values)
    return value


def _tokens(values: Mapping[str, Any], small: bool) -> dict[str, Any]:
    """Ids of special tokens, each below the vocabulary's size and none twice where they differed."""
    size = values.get("vocab_size")
    if not small or not isinstance(size, int):
        return {}
    named = {n: v for n, v in values.items() if re.fullmatch(r".*token_(?:id|index)", n) and isinstance(v, int)}
    outside = sorted({v for v in named.values() if v >= size})
    taken = {v for v in named.values() if v < size}
    free = iter([i for i in range(size - 1, -1, -1) if i not in taken])
    moved = {v: next(free) for v in outside}
    return {n: moved[v] for n, v in named.items() if v in moved}


def _fit_rotary(config: PreTrainedConfig) -> None:
    """Lists that share out the half head among rotary parts are rescaled to the new head."""
    values = vars(config)  # attributes that vary from layer to layer cannot be asked for
    rope = values.get("rope_parameters")
    if not isinstance(rope, dict):
        return
    heads, width = values.get("num_attention_heads"), values.get("hidden_size")
    size = values.get("head_dim") or (width // heads if heads and width else None)
    for part in (rope, *(v for v in rope.values() if isinstance(v, dict))):
        half = int(size * part.get("partial_rotary_factor", 1.0)) // 2 if isinstance(size, int) else None
        section = part.get("mrope_section")
        if isinstance(section, (list, tuple)) and half and sum(section) > half:
            small = [max(1, s * half // sum(section)) for s in section]
            small[0] += half - sum(small)
            part["mrope_section"] = small
        for key in ("short_factor", "long_factor"):
            if isinstance(part.get(key), list) and half and len(part[key]) > half:
                part[key] = part[key][:half]
