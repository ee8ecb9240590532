"""Tiny random networks of every family that writes down what it hears, each saved with what reads its sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

FAMILIES: dict[str, Any] = {
    "hubert": ("HubertConfig", "HubertForCTC", {}),
    "wavlm": ("WavLMConfig", "WavLMForCTC", {}),
    "wav2vec2-conformer": ("Wav2Vec2ConformerConfig", "Wav2Vec2ConformerForCTC", {}),
    "wav2vec2-bert": ("Wav2Vec2BertConfig", "Wav2Vec2BertForCTC", {"extractor": "seamless"}),
    "parakeet": ("ParakeetCTCConfig", "ParakeetForCTC", {"extractor": "parakeet"}),
}


def listener(name: str, folder: Path) -> Path:
    """A random network of this family, with its extractor."""
    import transformers as T

    config_name, model_name, more = FAMILIES[name]
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=12)
    if name == "parakeet":
        encoder = T.ParakeetEncoderConfig(**{k: v for k, v in sizes.items() if k != "vocab_size"}, num_mel_bins=80, subsampling_conv_channels=8, layerdrop=0.0)  # fmt: skip
        config = T.ParakeetCTCConfig(encoder_config=encoder.to_dict(), vocab_size=12, pad_token_id=11)
    elif "extractor" in more:
        config = getattr(T, config_name)(**sizes, feature_projection_input_dim=160, conv_depthwise_kernel_size=7, layerdrop=0.0)
    else:
        stem = dict(conv_dim=(16, 16, 32), conv_stride=(5, 4, 4), conv_kernel=(10, 8, 4), num_feat_extract_layers=3)
        config = getattr(T, config_name)(
            **sizes, **stem, feat_extract_norm="layer", do_stable_layer_norm=True,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, layerdrop=0.0, conv_depthwise_kernel_size=7,
        ) if name == "wav2vec2-conformer" else getattr(T, config_name)(
            **sizes, **stem, feat_extract_norm="layer", do_stable_layer_norm=True,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, layerdrop=0.0,
        )  # fmt: skip
    getattr(T, model_name)(config).save_pretrained(folder)
    if more.get("extractor") == "seamless":
        T.SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, sampling_rate=16_000).save_pretrained(folder)
    elif more.get("extractor") == "parakeet":
        T.ParakeetFeatureExtractor(feature_size=80, sampling_rate=16_000).save_pretrained(folder)
    else:
        T.Wav2Vec2FeatureExtractor(sampling_rate=8_000, return_attention_mask=True).save_pretrained(folder)
    return folder


WRITERS = ("moonshine", "whisper")
END = "<|endoftext|>"
LANGUAGES = ("en", "zh", "de")  # in the order of Whisper's table, by which the tokenizer counts


def writer(name: str, folder: Path) -> Path:
    """A random Whisper or Moonshine of two layers a side, with a vocabulary of bytes or of characters.

    Whisper comes as OpenAI's do: it knows three languages, and its folder names neither.
    """
    import transformers as T

    torch.manual_seed(0)
    if name == "whisper":
        tokenizer = _of_bytes()
        number = tokenizer.get_vocab()
        config = T.WhisperConfig(
            vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=20, max_source_positions=1500,
            decoder_start_token_id=number["<|startoftranscript|>"], bos_token_id=number[END], eos_token_id=number[END],
            pad_token_id=number[END], suppress_tokens=None, begin_suppress_tokens=None, max_target_positions=64,
        )  # fmt: skip
        model = T.WhisperForConditionalGeneration(config)
        model.generation_config = T.GenerationConfig(
            **{
                name: getattr(config, name) for name in ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
            },
            is_multilingual=True,
            lang_to_id={f"<|{code}|>": number[f"<|{code}|>"] for code in LANGUAGES},
            task_to_id={task: number[f"<|{task}|>"] for task in ("transcribe", "translate")},
            no_timestamps_token_id=number["<|notimestamps|>"],
            prev_sot_token_id=number["<|startofprev|>"],
            suppress_tokens=list(range(number["<|notimestamps|>"] + 1, len(tokenizer))),  # times, which no real one writes there
        )
        T.WhisperFeatureExtractor(feature_size=20).save_pretrained(folder)
    else:
        tokenizer = _of_characters()
        config = T.MoonshineConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, encoder_num_hidden_layers=2,
            decoder_num_hidden_layers=2, encoder_num_attention_heads=2, decoder_num_attention_heads=2, decoder_start_token_id=1,
            bos_token_id=1, eos_token_id=2, pad_token_id=3, max_position_embeddings=64,
        )  # fmt: skip
        model = T.MoonshineForConditionalGeneration(config)
        T.Wav2Vec2FeatureExtractor(sampling_rate=16_000, do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _of_characters() -> Any:
    import transformers as T
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = ["<unk>", "<s>", "</s>", "<pad>", " ", *"abcdefghijklmnopqrstuvwxyz"]
    made_up = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made_up.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made_up.decoder = decoders.Fuse()
    return T.PreTrainedTokenizerFast(
        tokenizer_object=made_up, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _of_bytes() -> Any:
    """Whisper's own kind of tokenizer, without a single pair of bytes joined."""
    import transformers as T
    from tokenizers import pre_tokenizers

    told = ("startoftranscript", *LANGUAGES, "translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    signs = [END, *(f"<|{word}|>" for word in told)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    table = {token: i for i, token in enumerate([*letters, *signs])}
    found = T.WhisperTokenizer(vocab=table, merges=[], pad_token=END, additional_special_tokens=signs[1:])
    found.add_tokens([f"<|{i * 0.02:.2f}|>" for i in range(1501)])
    return found
