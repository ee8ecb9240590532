"""More families for the slow tests, as `zoo.FAMILIES`: two towers, detectors, recognisers, language models, sound."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as T
from torch import nn

from affinage.types import Batch

from .zoo import BERT, CLASSES, DETECTOR, VIT, WAV, Family, family, images, row, small_resnet, sound, stages, tokens

RESNET = stages("model.backbone.model.encoder.stages.{}.layers.{}", 1, 2, 1, 1)
WORDS = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=99)
RT = dict(
    encoder_hidden_dim=32,
    encoder_in_channels=[32, 48, 64],
    encoder_layers=1,
    encoder_ffn_dim=64,
    encoder_attention_heads=2,
    d_model=32,
    num_queries=10,
    decoder_in_channels=[32, 32, 32],
    decoder_ffn_dim=64,
    decoder_layers=2,
    decoder_attention_heads=4,
    num_denoising=0,
    backbone=None,
)
LW = dict(
    d_model=32,
    decoder_layers=2,
    decoder_self_attention_heads=2,
    decoder_cross_attention_heads=4,
    decoder_ffn_dim=64,
    num_queries=10,
    group_detr=1,
    projector_scale_factors=[1.0],
)
ENCODER_OF = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=64, patch_size=16, out_indices=[2, 4])


def detector(kind: str, blocks: list[str], head: str, sees: Callable[[], object], side: int = 64, **sizes: object) -> Family:
    """A detector around a backbone that is made anew each time, for a configuration keeps and changes what it is given."""

    def make() -> tuple[nn.Module, Batch]:
        torch.manual_seed(0)
        config = getattr(T, f"{kind}Config")(backbone_config=sees(), **sizes, **CLASSES)
        return getattr(T, f"{kind}ForObjectDetection")(config), images(side)

    return Family(make, blocks, head, True)


def rt_detr_neck(form: str, count: int = 3) -> list[str]:
    """Down and up again between the three maps of a backbone: two blocks each way, of so many bottlenecks."""
    return [form.format(way, level, i) for way in ("fpn", "pan") for level in range(2) for i in range(count)]


def mel(bands: int = 80) -> Batch:
    return {"input_features": torch.randn(2, 64, bands)}


def sequence(make: Callable[[], nn.Module], hears: Callable[[], Batch], blocks: list[str], head: str) -> Family:
    """An encoder that hears and a decoder that writes."""

    def both() -> tuple[nn.Module, Batch]:
        torch.manual_seed(0)
        return make(), {**hears(), "decoder_input_ids": torch.randint(5, 90, (2, 6))}

    return Family(both, blocks, head, True)


def plain_resnet() -> T.ResNetConfig:
    return small_resnet("stage4")


def three_maps() -> T.ResNetConfig:
    return small_resnet("stage2", "stage3", "stage4")


def rt_resnet() -> T.RTDetrResNetConfig:
    sizes = dict(embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 2, 1, 1], layer_type="basic")
    return T.RTDetrResNetConfig(**sizes, out_features=["stage2", "stage3", "stage4"])


def hgnet() -> T.HGNetV2Config:
    return T.HGNetV2Config(
        stage_in_channels=[16, 16, 32, 48],
        stage_mid_channels=[8, 8, 16, 16],
        stage_out_channels=[16, 32, 48, 64],
        stem_channels=[3, 8, 16],
        hidden_sizes=[16, 32, 48, 64],
        out_features=["stage2", "stage3", "stage4"],
    )


NO_TIMM = dict(backbone=None, use_timm_backbone=False, use_pretrained_backbone=False)
TWO_AND_TWO = row("model.encoder.layers", 2) + row("model.decoder.layers", 2)
CSP = [f"csp_rep{rep}.bottlenecks.{i}" for rep in (1, 2) for i in range(3)]

WIDE: dict[str, Family] = {
    # images: of two towers the one that sees
    "siglip": family(
        "SiglipForImageClassification",
        "SiglipConfig",
        images,
        row("vision_model.encoder.layers"),
        slow=True,
        vision_config=VIT,
        text_config=WORDS,
    ),
    "clip": family(
        "CLIPForImageClassification",
        "CLIPConfig",
        images,
        row("vision_model.encoder.layers"),
        slow=True,
        vision_config=VIT,
        text_config=WORDS,
    ),
    "mobilevit": family(
        "MobileViTForImageClassification",
        "MobileViTConfig",
        lambda: images(64),
        row("mobilevit.encoder.layer.0.layer", 1)
        + row("mobilevit.encoder.layer.1.layer")
        + row("mobilevit.encoder.layer.2.transformer.layer", 2)
        + row("mobilevit.encoder.layer.3.transformer.layer", 4)
        + row("mobilevit.encoder.layer.4.transformer.layer", 3),
        slow=True,
        image_size=64,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64],
        num_attention_heads=2,
    ),
    # detection
    "conditional_detr": detector(
        "ConditionalDetr", RESNET + TWO_AND_TWO, "class_labels_classifier", plain_resnet, **NO_TIMM, **DETECTOR
    ),
    "deformable_detr": detector("DeformableDetr", RESNET + TWO_AND_TWO, "class_embed.1", three_maps, 128, **NO_TIMM, **DETECTOR),
    "dab_detr": detector(
        "DabDetr",
        [name.replace("backbone.model", "backbone.conv_encoder.model") for name in RESNET] + TWO_AND_TWO,
        "class_embed",
        plain_resnet,
        **NO_TIMM,
        **{"hidden_size" if name == "d_model" else name: size for name, size in DETECTOR.items()},
    ),
    # what the decoder of these reads is chosen by scores, so that it is no row of blocks: it belongs to the head
    "rt_detr": detector(
        "RTDetr",
        RESNET + rt_detr_neck("model.encoder.{}_blocks.{}.bottlenecks.{}"),
        "model.decoder.class_embed.1",
        rt_resnet,
        **RT,
    ),
    "rt_detr_plain_resnet": detector(
        "RTDetr",
        RESNET + rt_detr_neck("model.encoder.{}_blocks.{}.bottlenecks.{}"),
        "model.decoder.class_embed.1",
        three_maps,
        **RT,
    ),
    "rt_detr_v2": detector(
        "RTDetrV2",
        RESNET + rt_detr_neck("model.encoder.{}_blocks.{}.bottlenecks.{}"),
        "model.decoder.class_embed.1",
        rt_resnet,
        **RT,
    ),
    "d_fine": detector(
        "DFine",
        stages("model.backbone.model.encoder.stages.{}.blocks.{}", 1, 1, 3, 1)
        + [f"model.encoder.fpn_blocks.{level}.{part}" for level in range(2) for part in CSP]
        + [
            name
            for level in range(2)
            for name in (
                f"model.encoder.downsample_convs.{level}",
                *(f"model.encoder.pan_blocks.{level}.{part}" for part in CSP),
            )
        ],
        "model.decoder.class_embed.1",
        hgnet,
        **RT,
    ),
    "yolos": family(
        "YolosForObjectDetection",
        "YolosConfig",
        images,
        row("vit.encoder.layer"),
        "class_labels_classifier.layers.2",
        True,
        **{**VIT, "image_size": [32, 32]},
        num_detection_tokens=6,
        use_mid_position_embeddings=False,
    ),
    "lw_detr": detector(
        "LwDetr",
        row("model.backbone.backbone.encoder.layer", 4) + row("model.decoder.layers", 2),
        "class_embed",
        lambda: T.LwDetrViTConfig(**ENCODER_OF, pretrain_image_size=64, window_block_indices=[0, 2], num_windows=4),
        **LW,
    ),
    "rf_detr": detector(
        "RfDetr",
        row("model.backbone.backbone.encoder.layer", 4) + row("model.decoder.layers", 2),
        "class_embed",
        lambda: dict(model_type="rf_detr_dinov2", num_windows=2, **ENCODER_OF),
        **LW,
    ),
    # text
    "canine": family(
        "CanineForSequenceClassification",
        "CanineConfig",
        lambda: {"input_ids": torch.randint(5, 90, (2, 48))},
        row("canine.encoder.layer"),
        slow=True,
        **{name: size for name, size in BERT.items() if name != "vocab_size"},
        num_hash_buckets=64,
        local_transformer_stride=16,
    ),
    "t5": family(
        "T5ForSequenceClassification",
        "T5Config",
        lambda: {"input_ids": torch.cat([torch.randint(5, 90, (2, 11)), torch.ones(2, 1, dtype=torch.long)], 1)},
        row("transformer.encoder.block") + row("transformer.decoder.block"),
        "classification_head.out_proj",
        True,
        dropout_rate=0.0,  # one module drops out below the encoder's blocks and above them
        vocab_size=99,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=3,
        num_heads=2,
        decoder_start_token_id=0,
    ),
    "mobilebert": family(  # each layer has feed-forward parts in a list of their own
        "MobileBertForSequenceClassification",
        "MobileBertConfig",
        tokens,
        row("mobilebert.encoder.layer"),
        embedding_size=16,
        intra_bottleneck_size=16,
        true_hidden_size=16,
        num_feedforward_networks=4,
        **BERT,
    ),
    "gpt2_lm": family(
        "GPT2LMHeadModel",
        "GPT2Config",
        tokens,
        row("transformer.h"),
        "lm_head",
        True,
        vocab_size=99,
        n_embd=32,
        n_layer=3,
        n_head=2,
    ),
    "mamba2": family(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        lambda: {"input_ids": tokens()["input_ids"]},
        row("backbone.layers"),
        "lm_head",
        True,
        vocab_size=99,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=3,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        chunk_size=4,
        pad_token_id=0,
    ),
    # sound
    "hubert_ctc": family("HubertForCTC", "HubertConfig", sound, row("hubert.encoder.layers"), "lm_head", True, **WAV),
    "wavlm_ctc": family(
        "WavLMForCTC", "WavLMConfig", sound, row("wavlm.encoder.layers"), "lm_head", True, rounds=True, num_buckets=32, **WAV
    ),
    "wavlm": family(
        "WavLMForSequenceClassification",
        "WavLMConfig",
        sound,
        row("wavlm.encoder.layers"),
        slow=True,
        rounds=True,
        num_buckets=32,
        **WAV,
    ),
    "wav2vec2_bert_ctc": family(
        "Wav2Vec2BertForCTC",
        "Wav2Vec2BertConfig",
        lambda: mel(160),
        row("wav2vec2_bert.encoder.layers"),
        "lm_head",
        True,
        **WORDS | {"num_hidden_layers": 3},
        feature_projection_input_dim=160,
        apply_spec_augment=False,
        conv_depthwise_kernel_size=7,
    ),
    "parakeet_ctc": family(
        "ParakeetForCTC",
        "ParakeetCTCConfig",
        mel,
        row("encoder.layers"),
        None,  # a convolution
        True,
        vocab_size=33,
        pad_token_id=32,
        encoder_config=dict(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=64,
            subsampling_conv_channels=16,
            num_mel_bins=80,
            conv_kernel_size=5,
            subsampling_factor=4,
        ),
    ),
    "ast": family(
        "ASTForAudioClassification",
        "ASTConfig",
        lambda: {"input_values": torch.randn(2, 64, 64)},
        row("audio_spectrogram_transformer.layers"),
        "classifier.dense",
        True,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_length=64,
        num_mel_bins=64,
    ),
    "whisper_writes": sequence(
        lambda: T.WhisperForConditionalGeneration(
            T.WhisperConfig(
                vocab_size=99,
                d_model=32,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=64,
                decoder_ffn_dim=64,
                max_source_positions=50,
                max_target_positions=40,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
            )
        ),
        lambda: {"input_features": torch.randn(2, 80, 100)},
        TWO_AND_TWO,
        "proj_out",
    ),
    "moonshine": sequence(
        lambda: T.MoonshineForConditionalGeneration(
            T.MoonshineConfig(
                vocab_size=99,
                hidden_size=32,
                intermediate_size=64,
                encoder_num_hidden_layers=2,
                decoder_num_hidden_layers=2,
                encoder_num_attention_heads=2,
                decoder_num_attention_heads=2,
                pad_token_id=2,
            )
        ),
        lambda: {"input_values": torch.randn(2, 4000)},
        TWO_AND_TWO,
        "proj_out",
    ),
}
