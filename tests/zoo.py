"""Small random models of many families: FAMILIES[name] = (model and batch, the blocks expected, the head's linear layer)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import transformers as T
from torch import nn

from affinage.headed import of
from affinage.types import Batch


class Family(NamedTuple):
    make: Callable[[], tuple[nn.Module, Batch]]
    blocks: list[str]  # module names, written down by hand
    head: str | None  # the linear layer whose output is the logits
    slow: bool = False
    rounds: bool = False  # its attention rounds otherwise where its weights do not learn


CLASSES = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
VIT = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=16)
BERT = dict(
    vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64
)
STAGES = dict(hidden_sizes=[16, 32, 48, 64], depths=[1, 2, 1, 1])
DETECTOR = dict(
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    num_queries=10,
)
WAV = dict(
    vocab_size=32,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=64,
    conv_dim=(16, 16),
    conv_stride=(10, 8),
    conv_kernel=(10, 8),
    num_feat_extract_layers=2,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    classifier_proj_size=16,
    apply_spec_augment=False,
)


def images(side: int = 32) -> Batch:
    return {"pixel_values": torch.randn(2, 3, side, side)}


def tokens() -> Batch:
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 8:] = 0
    ids = torch.randint(5, 90, (2, 12)) * mask  # token 0 pads
    return {"input_ids": ids, "attention_mask": mask}


def family(
    kind: str,
    config: str,
    batch: Callable[[], Batch],
    blocks: list[str],
    head: str | None = "classifier",
    slow: bool = False,
    rounds: bool = False,
    **sizes: object,
) -> Family:
    """A family of transformers, by the names of its model and configuration classes."""

    def make() -> tuple[nn.Module, Batch]:
        torch.manual_seed(0)
        return getattr(T, kind)(getattr(T, config)(**sizes, **CLASSES)), batch()

    return Family(make, blocks, head, slow, rounds)


def row(prefix: str, count: int = 3) -> list[str]:
    return [f"{prefix}.{i}" for i in range(count)]


def stages(form: str, *depths: int) -> list[str]:
    return [form.format(s, i) for s, depth in enumerate(depths) for i in range(depth)]


def small_resnet(*outs: str) -> T.ResNetConfig:
    return T.ResNetConfig(embedding_size=16, layer_type="basic", out_features=list(outs), **STAGES)


def headed(kind: str, **sizes: object) -> nn.Module:
    """An image encoder of transformers with a head of ours."""
    torch.manual_seed(0)
    encoder = getattr(T, f"{kind}Model")(getattr(T, f"{kind}Config")(**sizes))
    return of(encoder, ("a", "b", "c"), T.ViTImageProcessorPil(size={"height": 32, "width": 32}))


def detr() -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    backbone = dict(backbone_config=small_resnet("stage4"), backbone=None, use_timm_backbone=False, use_pretrained_backbone=False)
    return T.DetrForObjectDetection(T.DetrConfig(**backbone, **DETECTOR, **CLASSES)), images(64)


def sound() -> Batch:
    return {"input_values": torch.randn(2, 3200)}


FAMILIES: dict[str, Family] = {
    # text
    "bert": family("BertForSequenceClassification", "BertConfig", tokens, row("bert.encoder.layer"), **BERT),
    "roberta": family(
        "RobertaForSequenceClassification", "RobertaConfig", tokens, row("roberta.encoder.layer"), "classifier.out_proj", **BERT
    ),
    "distilbert": family(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        tokens,
        row("distilbert.transformer.layer"),
        vocab_size=99,
        dim=32,
        n_layers=3,
        n_heads=2,
        hidden_dim=64,
    ),
    "modernbert": family(
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        tokens,
        row("model.layers"),
        **BERT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "deberta_v2": family(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        tokens,
        row("deberta.encoder.layer"),
        **BERT,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
    ),
    "gpt2": family(
        "GPT2ForSequenceClassification",
        "GPT2Config",
        tokens,
        row("transformer.h"),
        "score",
        vocab_size=99,
        n_embd=32,
        n_layer=3,
        n_head=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "electra": family(
        "ElectraForSequenceClassification",
        "ElectraConfig",
        tokens,
        row("electra.encoder.layer"),
        "classifier.out_proj",
        True,
        embedding_size=32,
        **BERT,
    ),
    "mpnet": family(
        "MPNetForSequenceClassification", "MPNetConfig", tokens, row("mpnet.encoder.layer"), "classifier.out_proj", True, **BERT
    ),
    "albert_shares_one_block": family("AlbertForSequenceClassification", "AlbertConfig", tokens, [], embedding_size=32, **BERT),
    # images
    "vit": family("ViTForImageClassification", "ViTConfig", images, row("vit.layers"), **VIT),
    "deit": family("DeiTForImageClassification", "DeiTConfig", images, row("deit.layers"), **VIT),
    "deit_two_heads": family("DeiTForImageClassificationWithTeacher", "DeiTConfig", images, row("deit.layers"), None, **VIT),
    "beit": family("BeitForImageClassification", "BeitConfig", images, row("beit.layers"), slow=True, **VIT),
    "dinov2": family(
        "Dinov2ForImageClassification",
        "Dinov2Config",
        images,
        row("dinov2.encoder.layer"),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    ),
    "dinov3_vit": Family(lambda: (headed("DINOv3ViT", **VIT), images()), row("encoder.model.layer"), "head"),
    "dinov3_convnext": Family(
        lambda: (headed("DINOv3ConvNext", **STAGES), images()),
        stages("convnext.encoder.stages.{}.layers.{}", 1, 2, 1, 1),
        "classifier",
    ),
    "swin": family(
        "SwinForImageClassification",
        "SwinConfig",
        lambda: images(64),
        stages("swin.encoder.layers.{}.blocks.{}", 1, 2, 1),
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[1, 2, 1],
        num_heads=[2, 2, 4],
        window_size=4,
    ),
    "swinv2": family(
        "Swinv2ForImageClassification",
        "Swinv2Config",
        lambda: images(64),
        stages("swinv2.encoder.layers.{}.blocks.{}", 1, 2, 1),
        slow=True,
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[1, 2, 1],
        num_heads=[2, 2, 4],
        window_size=4,
    ),
    "segformer": family(
        "SegformerForImageClassification",
        "SegformerConfig",
        lambda: images(64),
        stages("segformer.stages.{}.blocks.{}", 1, 2, 1, 1),
        slow=True,
        depths=[1, 2, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 1, 2, 4],
    ),
    "resnet": family(
        "ResNetForImageClassification",
        "ResNetConfig",
        images,
        stages("resnet.encoder.stages.{}.layers.{}", 1, 2, 1, 1),
        "classifier.1",
        embedding_size=16,
        layer_type="bottleneck",
        **STAGES,
    ),
    "regnet": family(
        "RegNetForImageClassification",
        "RegNetConfig",
        images,
        stages("regnet.encoder.stages.{}.layers.{}", 1, 2, 1, 1),
        "classifier.1",
        embedding_size=16,
        groups_width=8,
        **STAGES,
    ),
    "convnext": family(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        images,
        stages("convnext.encoder.stages.{}.layers.{}", 1, 2, 1, 1),
        **STAGES,
    ),
    "convnextv2": family(
        "ConvNextV2ForImageClassification",
        "ConvNextV2Config",
        images,
        stages("convnextv2.encoder.stages.{}.layers.{}", 1, 2, 1, 1),
        slow=True,
        **STAGES,
    ),
    "mobilenet_v2": family(
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        images,
        row("mobilenet_v2.layer", 16),
        depth_multiplier=0.35,
        min_depth=8,
    ),
    "efficientnet": family(
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        images,
        row("efficientnet.encoder.blocks", 10),
        width_coefficient=0.25,
        depth_coefficient=0.5,
        image_size=32,
        hidden_dim=320,
    ),
    # detection: a backbone, an encoder and a decoder are one row of blocks, in the order in which they run
    "detr": Family(
        detr,
        stages("model.backbone.model.encoder.stages.{}.layers.{}", 1, 2, 1, 1)
        + row("model.encoder.layers", 2)
        + row("model.decoder.layers", 2),
        "class_labels_classifier",
        slow=True,
    ),
    # sound, language models
    "wav2vec2": family(
        "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", sound, row("wav2vec2.encoder.layers"), slow=True, **WAV
    ),
    "wav2vec2_ctc": family("Wav2Vec2ForCTC", "Wav2Vec2Config", sound, row("wav2vec2.encoder.layers"), "lm_head", True, **WAV),
    "whisper": family(
        "WhisperForAudioClassification",
        "WhisperConfig",
        lambda: {"input_features": torch.randn(2, 80, 100)},
        row("encoder.layers"),
        slow=True,
        vocab_size=99,
        d_model=32,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=50,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "llama_tied_head": family(
        "LlamaForCausalLM",
        "LlamaConfig",
        tokens,
        row("model.layers"),
        "lm_head",
        True,
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=0,
    ),
    "mamba": family(
        "MambaForCausalLM",
        "MambaConfig",
        lambda: {"input_ids": tokens()["input_ids"]},
        row("backbone.layers"),
        "lm_head",
        True,
        vocab_size=99,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=3,
        pad_token_id=0,
    ),
}
