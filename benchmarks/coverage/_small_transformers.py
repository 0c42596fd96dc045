"""Small networks of transformers with random weights, from their configurations. Nothing is loaded."""

from typing import Any

import torch

Spec = tuple[str, str, dict[str, Any], str]
CORE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip
TEXT = CORE | {"vocab_size": 100, "max_position_embeddings": 64}
CAUSAL = TEXT | {"use_cache": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = CAUSAL | {"num_key_value_heads": 2}
IMAGE = CORE | {"image_size": 32, "patch_size": 8}
STAGES: dict[str, Any] = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
AUDIO = CORE | {
    "vocab_size": 100, "conv_dim": (32, 32, 32), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 32,
    "num_feat_extract_layers": 3,
}  # fmt: skip
SWIN: dict[str, Any] = {
    "image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
}  # fmt: skip
BART: dict[str, Any] = {
    "vocab_size": 100, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 64,
    "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
T5: dict[str, Any] = {"vocab_size": 100, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}


def without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """The options that are not named."""
    return {key: value for key, value in options.items() if key not in names}


# Model, configuration, its options, and the kind of inputs, by name.
SPECS: dict[str, Spec] = {
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", TEXT | {"embedding_size": 32}, "masked"),
    "ast": (
        "ASTForAudioClassification", "ASTConfig",
        without(IMAGE, "image_size") | {"num_mel_bins": 32, "max_length": 64}, "spectrum",
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART, "text"),
    "beit": ("BeitForImageClassification", "BeitConfig", IMAGE, "image"),
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT, "masked"),
    "bigbird": (
        "BigBirdForSequenceClassification", "BigBirdConfig",
        TEXT | {"attention_type": "original_full"}, "text",
    ),
    "biogpt": ("BioGptForCausalLM", "BioGptConfig", CAUSAL, "text"),
    "bit": ("BitForImageClassification", "BitConfig", STAGES | {"embedding_size": 16, "num_groups": 8}, "image64"),
    "bloom": (
        "BloomForCausalLM", "BloomConfig",
        {"vocab_size": 100, "hidden_size": 64, "n_layer": 2, "n_head": 4, "use_cache": False}, "text",
    ),
    "clip_text": (
        "CLIPTextModelWithProjection", "CLIPTextConfig",
        TEXT | {"eos_token_id": 2, "bos_token_id": 1}, "text",
    ),
    "clip_vision": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", IMAGE | {"projection_dim": 32}, "image"),
    "codegen": (
        "CodeGenForCausalLM", "CodeGenConfig",
        {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 64,
         "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}, "text",
    ),
    "cohere": ("CohereForCausalLM", "CohereConfig", GROUPED, "text"),
    "convbert": ("ConvBertForSequenceClassification", "ConvBertConfig", TEXT | {"embedding_size": 64}, "text"),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", STAGES, "image64"),
    "convnextv2": ("ConvNextV2ForImageClassification", "ConvNextV2Config", STAGES, "image64"),
    "deberta": (
        "DebertaForSequenceClassification", "DebertaConfig",
        TEXT | {"relative_attention": True, "max_relative_positions": 16, "pos_att_type": ["p2c", "c2p"]}, "masked",
    ),
    "deberta_v2": (
        "DebertaV2ForSequenceClassification", "DebertaV2Config",
        TEXT | {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]}, "masked",
    ),
    "deit": ("DeiTForImageClassification", "DeiTConfig", IMAGE, "image"),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", without(IMAGE, "intermediate_size"), "image"),
    "distilbert": (
        "DistilBertForSequenceClassification", "DistilBertConfig",
        {"vocab_size": 100, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "max_position_embeddings": 64},
        "masked",
    ),
    "dpt": (
        "DPTForSemanticSegmentation", "DPTConfig",
        IMAGE | {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 32, 48, 64],
                 "fusion_hidden_size": 32, "is_hybrid": False}, "image",
    ),
    "efficientnet": (
        "EfficientNetForImageClassification", "EfficientNetConfig",
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}, "image64",
    ),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig", TEXT | {"embedding_size": 64}, "masked"),
    "ernie": ("ErnieForSequenceClassification", "ErnieConfig", TEXT, "masked"),
    "falcon": ("FalconForCausalLM", "FalconConfig", CAUSAL | {"multi_query": True}, "text"),
    "fnet": ("FNetForSequenceClassification", "FNetConfig", without(TEXT, "num_attention_heads"), "text"),
    "focalnet": (
        "FocalNetForImageClassification", "FocalNetConfig",
        {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3],
         "hidden_sizes": [16, 32]}, "image64",
    ),
    "funnel": (
        "FunnelForSequenceClassification", "FunnelConfig",
        {"vocab_size": 100, "block_sizes": [1, 1], "d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128}, "masked",
    ),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", GROUPED | {"head_dim": 16}, "text"),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GROUPED | {"head_dim": 16}, "text"),
    "glm": ("GlmForCausalLM", "GlmConfig", GROUPED | {"head_dim": 16}, "text"),
    "glpn": (
        "GLPNForDepthEstimation", "GLPNConfig",
        STAGES | {"num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 16}, "image64",
    ),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False,
         "bos_token_id": 1, "eos_token_id": 2}, "text",
    ),
    "gpt_bigcode": (
        "GPTBigCodeForCausalLM", "GPTBigCodeConfig",
        {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False,
         "bos_token_id": 1, "eos_token_id": 2}, "text",
    ),
    "gpt_neo": (
        "GPTNeoForCausalLM", "GPTNeoConfig",
        {"vocab_size": 100, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "use_cache": False,
         "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64, "bos_token_id": 1,
         "eos_token_id": 2}, "text",
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", CAUSAL, "text"),
    "gptj": (
        "GPTJForCausalLM", "GPTJConfig",
        {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 64,
         "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}, "text",
    ),
    "granite": ("GraniteForCausalLM", "GraniteConfig", GROUPED, "text"),
    "hgnet_v2": (
        "HGNetV2ForImageClassification", "HGNetV2Config",
        {"stem_channels": [3, 8, 16], "embedding_size": 16, "hidden_sizes": [32, 64, 96, 128],
         "stage_in_channels": [16, 32, 64, 96], "stage_mid_channels": [8, 16, 16, 32],
         "stage_out_channels": [32, 64, 96, 128], "stage_num_blocks": [1, 1, 1, 1]}, "image64",
    ),
    "hubert": ("HubertForSequenceClassification", "HubertConfig", AUDIO, "audio"),
    "layoutlm": ("LayoutLMForSequenceClassification", "LayoutLMConfig", TEXT, "text"),
    "levit": (
        "LevitForImageClassification", "LevitConfig",
        {"image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 2, 3], "depths": [1, 1, 1],
         "key_dim": [8, 8, 8]}, "image64",
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED, "text"),
    "m2m_100": ("M2M100ForConditionalGeneration", "M2M100Config", BART, "pair"),
    "mamba": (
        "MambaForCausalLM", "MambaConfig",
        {"vocab_size": 100, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "use_cache": False}, "text",
    ),
    "marian": ("MarianMTModel", "MarianConfig", BART, "pair"),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED, "text"),
    "mixtral": (
        "MixtralForCausalLM", "MixtralConfig", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}, "text",
    ),
    "mobilebert": (
        "MobileBertForSequenceClassification", "MobileBertConfig",
        TEXT | {"embedding_size": 32, "intra_bottleneck_size": 32}, "masked",
    ),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", "MobileNetV1Config", {"depth_multiplier": 0.25}, "image64"),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.5}, "image64"),
    "mobilevit": (
        "MobileViTForImageClassification", "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [16, 16, 24, 32, 48, 64, 128]}, "image64",
    ),
    "mobilevitv2": (
        "MobileViTV2ForImageClassification", "MobileViTV2Config",
        {"image_size": 64, "width_multiplier": 0.5}, "image64",
    ),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", TEXT, "masked"),
    "mpt": ("MptForCausalLM", "MptConfig", {"vocab_size": 100, "d_model": 64, "n_layers": 2, "n_heads": 4}, "text"),
    "nystromformer": (
        "NystromformerForSequenceClassification", "NystromformerConfig",
        TEXT | {"num_landmarks": 4, "segment_means_seq_len": 12}, "text",
    ),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", GROUPED, "text"),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        without(CAUSAL, "intermediate_size") | {"ffn_dim": 128, "word_embed_proj_dim": 64}, "text",
    ),
    "patchtst": (
        "PatchTSTForPrediction", "PatchTSTConfig",
        {"num_input_channels": 3, "context_length": 32, "prediction_length": 8, "patch_length": 8, "patch_stride": 8,
         "d_model": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}, "series",
    ),
    "pegasus": ("PegasusForConditionalGeneration", "PegasusConfig", BART, "pair"),
    "phi": ("PhiForCausalLM", "PhiConfig", CAUSAL, "text"),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", GROUPED, "text"),
    "poolformer": ("PoolFormerForImageClassification", "PoolFormerConfig", STAGES, "image64"),
    "pvt": (
        "PvtForImageClassification", "PvtConfig",
        STAGES | {"image_size": 64, "num_attention_heads": [1, 2, 2, 4]}, "image64",
    ),
    "pvt_v2": (
        "PvtV2ForImageClassification", "PvtV2Config",
        STAGES | {"image_size": 64, "num_attention_heads": [1, 2, 2, 4]}, "image64",
    ),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED, "text"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GROUPED | {"head_dim": 16}, "text"),
    "regnet": (
        "RegNetForImageClassification", "RegNetConfig", STAGES | {"embedding_size": 16, "groups_width": 8}, "image64",
    ),
    "rembert": ("RemBertForSequenceClassification", "RemBertConfig", TEXT | {"input_embedding_size": 32}, "text"),
    "resnet": (
        "ResNetForImageClassification", "ResNetConfig",
        STAGES | {"embedding_size": 16, "layer_type": "basic"}, "image64",
    ),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", TEXT, "masked"),
    "roformer": ("RoFormerForSequenceClassification", "RoFormerConfig", TEXT | {"embedding_size": 64}, "text"),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig", {"depths": [1, 1, 1, 1]}, "image64"),
    "siglip_vision": ("SiglipVisionModel", "SiglipVisionConfig", IMAGE, "image"),
    "squeezebert": (
        "SqueezeBertForSequenceClassification", "SqueezeBertConfig",
        TEXT | {"embedding_size": 64}, "masked",
    ),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", GROUPED, "text"),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", GROUPED, "text"),
    "swiftformer": (
        "SwiftFormerForImageClassification", "SwiftFormerConfig",
        {"depths": [1, 1, 2, 1], "embed_dims": [16, 32, 48, 64], "image_size": 64}, "image64",
    ),
    "swin": ("SwinForImageClassification", "SwinConfig", SWIN, "image64"),
    "swinv2": ("Swinv2ForImageClassification", "Swinv2Config", SWIN, "image64"),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5 | {"use_cache": False, "decoder_start_token_id": 0}, "pair"),
    "t5_encoder": ("T5EncoderModel", "T5Config", T5, "text"),
    "videomae": ("VideoMAEForVideoClassification", "VideoMAEConfig", IMAGE | {"num_frames": 4}, "video"),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE, "image"),
    "vit_msn": ("ViTMSNForImageClassification", "ViTMSNConfig", IMAGE, "image"),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", AUDIO, "audio"),
    "wavlm": ("WavLMForSequenceClassification", "WavLMConfig", AUDIO, "audio"),
    "whisper": (
        "WhisperForAudioClassification", "WhisperConfig",
        {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128, "num_mel_bins": 16,
         "max_source_positions": 32, "classifier_proj_size": 32}, "mel",
    ),
    "xglm": (
        "XGLMForCausalLM", "XGLMConfig",
        {"vocab_size": 100, "d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 128, "use_cache": False},
        "text",
    ),
    "xlm_roberta": ("XLMRobertaForSequenceClassification", "XLMRobertaConfig", TEXT, "masked"),
    "yolos": (
        "YolosForObjectDetection", "YolosConfig", IMAGE | {"image_size": [32, 32], "num_detection_tokens": 5}, "image",
    ),
}  # fmt: skip
NAMES = list(SPECS)


def inputs(kind: str) -> dict[str, torch.Tensor]:
    """Keyword arguments of a forward."""
    tokens = torch.randint(3, 90, (2, 12))
    return {
        "text": lambda: {"input_ids": tokens},
        "masked": lambda: {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
        "pair": lambda: {"input_ids": tokens, "decoder_input_ids": tokens[:, :7]},
        "image": lambda: {"pixel_values": torch.randn(2, 3, 32, 32)},
        "image64": lambda: {"pixel_values": torch.randn(2, 3, 64, 64)},
        "video": lambda: {"pixel_values": torch.randn(1, 4, 3, 32, 32)},
        "audio": lambda: {"input_values": torch.randn(2, 1600)},
        "spectrum": lambda: {"input_values": torch.randn(2, 64, 32)},
        "mel": lambda: {"input_features": torch.randn(2, 16, 64)},
        "series": lambda: {"past_values": torch.randn(2, 32, 3)},
    }[kind]()


def build(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A network by its short name, and example inputs."""
    import transformers

    model, config, options, kind = SPECS[name]
    return getattr(transformers, model)(getattr(transformers, config)(**options)), inputs(kind)
