"""What transformers configurations need beside small sizes, by model type or by class of the configuration.

An entry stands where the default configuration builds no model, or where shrinking its parts apart does not fit.
"""

from __future__ import annotations

from typing import Any


def _rope(*sections: int) -> dict[str, Any]:
    """Rotary embeddings that share a half head out as the model does by default; `tiny` makes the shares fit."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}


STAGES = ["stage1", "stage2", "stage3", "stage4"]
SERIES = {"prediction_length": 4, "context_length": 8, "num_time_features": 1}
EFFICIENTNET = {
    "in_channels": [32, 16, 24, 40, 80, 112, 192],
    "out_channels": [16, 24, 40, 80, 112, 192, 320],
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "hidden_dim": 1280,
}
TOKENIZER = {"num_filters": 4, "depths": [1, 1, 1, 1, 1, 1, 2]}
LCNET = {
    "out_features": STAGES,
    "stem_channels": (3, 16, 32),
    "block_configs": [
        [[3, 32, 32, 1, True]],
        [[3, 32, 48, 2, False]],
        [[3, 48, 64, 2, False]],
        [[3, 64, 96, 2, True]],
    ],
}
_RATIOS = {"long": 7, "mid": 5, "short": 3}
STRIPES = (
    {name: [1, 1, 0] for name in ("reduce_channel", "return_channel")}
    | {f"vertical_long_to_small_conv_{n}ratio": [(k, 1), 1, (k // 2, 0)] for n, k in _RATIOS.items()}
    | {f"horizontal_small_to_long_conv_{n}ratio": [(1, k), 1, (0, k // 2)] for n, k in _RATIOS.items()}
    | {f"symmetric_conv_long_{n}ratio": [k, 1, k // 2] for n, k in _RATIOS.items()}
)  # convolutions of one column, one row and a square: kernel, stride and padding

# Where the class's own defaults do not even make a configuration.
WHOLE: dict[str, dict[str, Any]] = {
    "timm_backbone": {"backbone": "test_resnet"},
}
GIVEN: dict[str, dict[str, Any]] = {
    "align": {"projection_dim": 320},
    "align_vision_model": EFFICIENTNET,
    "autoformer": SERIES,
    "beit": {"num_hidden_layers": 4, "out_features": STAGES},
    "blt": {"encoder_hash_byte_group_vocab": 128},
    "blt_global_transformer": {"hidden_size": 128},
    "blt_local_decoder": {"hidden_size_global": 128},
    "blt_local_encoder": {"hidden_size_global": 128},
    "clap_audio_model": {"hidden_size": 512},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _rope(24, 20, 20)}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    "depth_pro": {"patch_size": 56, "intermediate_hook_ids": (1, 0)},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_audio_encoder": {"adapter_input_size": 64, "adapter_out_dim": 64},
    "dots3_note_text": {
        "head_dim": 24,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "dots3_note_vision_encoder": {"pyramid_num_routed": [-1, 4], "adapter_in_dim": 64, "adapter_out_dim": 64},
    "edgetam_vision_model": {"backbone_channel_list": [192, 48, 32, 32]},
    "efficientloftr": {
        "hidden_size": 64,
        "num_attention_heads": 8,
        "out_features": [16, 16, 32, 64],
        "stage_num_blocks": [1, 1, 1, 2],
    },
    "efficientnet": EFFICIENTNET,
    "ernie4_5_vl_moe_text": {"rope_parameters": _rope(24, 24, 16)},
    "esm": {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1},
    "fast_vlm": {"vision_config": {"architecture": "fastvit_t8", "hidden_size": 768}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "gemma3n_text": {
        "intermediate_size": 96,
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0, 0.0],
    },
    "glm4v_moe_text": {"rope_parameters": _rope(8, 12, 12) | {"partial_rotary_factor": 0.5}},
    "glm4v_text": {"rope_parameters": _rope(8, 12, 12)},
    "glm5_next_text": {"index_kpool": 4},
    "glm_image_text": {"rope_parameters": _rope(8, 12, 12)},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl_text": {"head_dim": 16, "rope_parameters": _rope(2, 2, 2, 2)},
    "informer": SERIES,
    "inkling_vision": {"num_hidden_layers": 2, "patch_size": 4},
    "instructblip": {"image_token_index": 100, "num_query_tokens": 4},
    "instructblipvideo": {"video_token_index": 100, "num_query_tokens": 4},
    "janus_vqgan": {"base_channels": 32, "channel_multiplier": (1, 1, 2)},
    "kosmos-2": {"latent_query_num": 4},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lightglue": {"keypoint_detector_config": {"max_keypoints": 16}},
    "lw_detr": {"projector_scale_factors": [1.0]},
    "mimi": {"upsample_groups": 64},
    "mimi_decoder": {"upsample_groups": 64},
    "ministral": {"head_dim": 16},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_spark_audio": {
        "num_hidden_layers": 2,
        "patch_sizes": (4, 4),
        "hidden_sizes": (32, 64),
        "depths": (1, 1),
    },
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"n_groups": 2},
    "omdet-turbo": {
        "backbone_config": {"backbone": "swin_tiny_patch4_window7_224", "img_size": 64},
        "encoder_in_channels": (192, 384, 768),
        "vision_features_channels": (96, 96, 96),
        "encoder_hidden_dim": 96,
        "decoder_hidden_dim": 96,
        "d_model": 96,
        "text_projection_in_dim": 64,
        "text_projection_out_dim": 64,
        "class_embed_dim": 64,
    },
    "oneformer": {"backbone_config": {"embed_dim": 48}},
    "perceiver": {"num_self_attends_per_block": 2, "d_latents": 64, "d_model": 64, "num_latents": 16},
    "pp_ocrv6_medium_det": {
        "backbone_config": LCNET,
        "intraclass_block_config": STRIPES,
        "scale_factor_list": [1, 2, 4, 8],
        "kernel_list": [3, 2, 2],
    },
    "pp_ocrv6_small_det": {"layer_list_out_channels": (32, 48, 64, 96), "backbone_config": LCNET},
    "qwen2_5_vl_text": {"rope_parameters": _rope(16, 24, 24)},
    "qwen2_vl_text": {"rope_parameters": _rope(16, 24, 24)},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "ngram_vocab_size_base": 128,
        "split_ngram_parts": 4,
        "hc_lowrank": 16,
    },
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_buckets": 4},
    "sapiens2": {
        "num_key_value_heads_per_layer": [4, 2],
        "head_config": {
            "upsample_out_channels": [32],
            "upsample_kernel_sizes": [4],
            "conv_out_channels": [32],
            "conv_kernel_sizes": [1],
        },
    },
    "seggpt": {
        "merge_index": 0,
        "intermediate_hidden_state_indices": (1, 2, 3),
        "num_hidden_layers": 4,
        "image_size": (128, 64),
    },
    "shieldgemma2": {"yes_token_index": 5, "no_token_index": 6},
    "step3p5": {"sliding_window": 8},
    "time_series_transformer": SERIES,
    "tipsv2_vision_model": {"num_hidden_layers": 4, "out_features": STAGES},
    "tvp": {"max_img_size": 128, "visual_prompt_size": 16, "num_frames": 4},
    "uvdoc": {"bridge_connector": (128, 128), "backbone_config": {"out_features": [f"stage{i}" for i in range(1, 7)]}},
    "vibevoice_acoustic_tokenizer": TOKENIZER,
    "vibevoice_acoustic_tokenizer_decoder": TOKENIZER,
    "vibevoice_acoustic_tokenizer_encoder": TOKENIZER,
    "wav2vec2-bert": {"vocab_size": 32},
    "wav2vec2-conformer": {"vocab_size": 32},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 8},
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "DbrxAttentionConfig": {"rope_theta": 10000.0, "clip_qkv": 8.0},
}
