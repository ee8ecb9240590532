"""Tiny models and data sets, made in a moment: a BERT with its own WordPiece vocabulary, a ResNet, labelled texts and pictures."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as T
from PIL import Image

KINDS = {
    "fish": "salmon trout cod herring perch",
    "fruit": "apple pear plum cherry melon",
    "tool": "hammer saw chisel drill plane",
}
OTHERS = [
    "the",
    "a",
    "of",
    "and",
    "with",
    "under",
    "near",
    "big",
    "small",
    "old",
    "new",
    "red",
    "green",
    "very",
    "on",
    "table",
    "market",
    "house",
    "garden",
    "river",
]
WORDS = [*" ".join(KINDS.values()).split(), *OTHERS]


def bert(folder: Path, **changes: Any) -> Path:
    """A random BERT encoder without a classification head, and its tokenizer; dropout on."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "aeiounst"),
    ]
    (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf8")
    T.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)
    sizes["vocab_size"] = len(pieces)
    config = T.BertConfig(pad_token_id=0, initializer_range=0.2, **(sizes | changes))
    T.BertModel(config).save_pretrained(folder)
    return folder


def resnet(folder: Path) -> Path:
    """A random ResNet of two stages for pictures of 32 x 32, with its processor."""
    torch.manual_seed(0)
    config = T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=3)
    T.ResNetForImageClassification(config).save_pretrained(folder)
    made = T.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=1.0, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    made.save_pretrained(folder)
    return folder


def rows(count: int, seed: int) -> list[dict[str, str]]:
    """`count` different texts of 4 to 7 words; three of the words tell the class, and one may lie."""
    draw = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        label = list(KINDS)[len(found) % len(KINDS)]
        words = draw.choices(KINDS[label].split(), k=3) + draw.choices(OTHERS, k=draw.randint(0, 3)) + draw.choices(WORDS, k=1)
        draw.shuffle(words)
        found.setdefault(" ".join(words), label)
    return [{"text": text, "label": label} for text, label in found.items()]


def splits(train: int = 90, validation: int = 30, test: int = 30, seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Rows of three splits, none of which stands in two; a split of 0 rows is left out."""
    every = rows(train + validation + test, seed)
    cut = {"train": every[:train], "validation": every[train : train + validation], "test": every[train + validation :]}
    return {name: part for name, part in cut.items() if part}


def csvs(folder: Path, **sizes: int) -> Path:
    """The splits as train.csv, validation.csv and test.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in splits(**sizes).items():
        table(folder / f"{name}.csv", part)
    return folder


def table(path: Path, part: Sequence[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf8", newline="") as file:
        lines = csv.DictWriter(file, ["text", "label"])
        lines.writeheader()
        lines.writerows(part)
    return path


def pictures(folder: Path, train: int = 36, validation: int = 12, test: int = 12, seed: int = 0) -> Path:
    """Folders of PNG files, one a class: stripes across, stripes down, and a spot, in noise, 32 x 32."""
    draw = np.random.default_rng(seed)
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        for i in range(count):
            kind = ("across", "down", "spot")[i % 3]
            grid = np.mgrid[0:32, 0:32]
            if kind == "spot":
                shape = np.hypot(grid[0] - draw.integers(8, 24), grid[1] - draw.integers(8, 24)) < 6
            else:
                shape = (grid[int(kind == "down")] + draw.integers(8)) % 8 < 4
            pixels = shape[..., None] * draw.integers(60, 200, 3) + draw.integers(0, 56, (32, 32, 3))
            path = folder / split / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def dinov3(folder: Path, kind: str = "vit") -> Path:
    """A random DINOv3 encoder ("vit" or "convnext") for pictures of 32 x 32, with the processor file of the published ones."""
    torch.manual_seed(0)
    if kind == "vit":
        sizes = dict(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
        )
        T.DINOv3ViTModel(T.DINOv3ViTConfig(**sizes, num_register_tokens=4, initializer_range=0.2)).save_pretrained(folder)
    else:
        shape = dict(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1], layer_scale_init_value=0.5, initializer_range=0.2)
        T.DINOv3ConvNextModel(T.DINOv3ConvNextConfig(**shape)).save_pretrained(folder)
    said = dict(
        do_resize=True,
        size={"height": 32, "width": 32},
        resample=2,
        do_center_crop=None,
        crop_size=None,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        image_processor_type="DINOv3ViTImageProcessorFast",
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(said), encoding="utf8")
    return folder


# ------------------------------------------------------------------------------------------------------------- sounds
NOTES = {"low": 220.0, "mid": 440.0, "high": 880.0}  # hertz


def note(pitch: float, seconds: float, rate: int, seed: int) -> np.ndarray:
    """(S,) float32: a tone of this pitch in a little noise."""
    draw = np.random.default_rng(seed)
    times = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * pitch * times + draw.uniform(0, 6)) + draw.normal(0, 0.02, len(times))).astype(np.float32)


def tones(folder: Path, train: int = 24, validation: int = 9, test: int = 9, rate: int = 8000) -> Path:
    """Folders of WAV files, one a class: low, mid and high tones of 0.2 to 0.5 seconds."""
    import soundfile

    for s, (split, count) in enumerate((("train", train), ("validation", validation), ("test", test))):
        for i in range(count):
            name = list(NOTES)[i % 3]
            path = folder / split / name / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, note(NOTES[name], 0.2 + 0.03 * (i % 10), rate, 1000 * s + i), rate)
    return folder


def melodies(folder: Path, train: int = 24, validation: int = 9, test: int = 9, rate: int = 8000) -> Path:
    """`metadata.csv` and WAV files: one to three tones with pauses between them, and the names of the tones as transcript."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    lines = [("file_name", "transcription", "split")]
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        for i in range(count):
            words = [list(NOTES)[k] for k in draw.integers(0, 3, 1 + i % 3)]
            parts = [
                np.concatenate([note(NOTES[w], 0.3, rate, int(draw.integers(2**31))), np.zeros(rate // 20, np.float32)])
                for w in words
            ]
            soundfile.write(folder / f"{split}-{i}.wav", np.concatenate(parts), rate)
            lines.append((f"{split}-{i}.wav", " ".join(words), split))
    with (folder / "metadata.csv").open("w", encoding="utf8", newline="") as file:
        csv.writer(file).writerows(lines)
    return folder


def wav2vec2(folder: Path, head: str = "none", rate: int = 8000, **changes: Any) -> Path:
    """A random wav2vec2 of two blocks, without a head and a vocabulary, with layer norms in its stem, and its extractor."""
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=12,
        conv_dim=(16, 16, 32), conv_stride=(5, 4, 4), conv_kernel=(10, 8, 4), num_feat_extract_layers=3,
        feat_extract_norm="layer", do_stable_layer_norm=True, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        classifier_proj_size=16, hidden_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0,
    )  # fmt: skip
    T.Wav2Vec2Model(T.Wav2Vec2Config(**(sizes | changes))).save_pretrained(folder)
    T.Wav2Vec2FeatureExtractor(sampling_rate=rate, return_attention_mask=True).save_pretrained(folder)
    return folder
