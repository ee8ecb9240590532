"""A small detector of our own, from one command: a RT-DETR on the first stages of starter-vision, taught on made scenes.

    python examples/pretrain/detector.py --photos DATA/tiny_imagenet_200 --count 12000 --epochs 6 --out bases/starter-detector

Makes the scenes (examples/pretrain/scenes.py), an untaught detector whose backbone has the weights of the image classifier, and
fits it with affinage. `--untaught FOLDER` stops after the second step: that is where "backbone only" begins in the benchmark.
`--start starter-detector --side 256` goes on from a taught one at another size: cheaper than to learn all of it there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIDE = 160  # pixels, unless told otherwise: on one core a step of 16 pictures takes about a second
WIDTH = 96  # of what the encoder and the decoder work on
LAST = 2  # blocks of the backbone's last stage that are kept: with all three the weights would not fit into 5 MB


def untaught(backbone: Path | None, out: Path, classes: Sequence[str], seed: int = 0, side: int = SIDE) -> Path:
    """A RT-DETR on maps at strides 8 and 16, saved with its processor: the backbone has learnt, the rest is drawn.

    `backbone`: the folder of a ResNet of three stages for images; starter-vision where none is given.
    """
    import torch
    import transformers as T

    from affinage import starters

    torch.manual_seed(seed)
    classifier = T.ResNetForImageClassification.from_pretrained(backbone or starters.place("starter-vision"), dtype=torch.float32)
    known = classifier.config
    body = T.ResNetConfig(
        embedding_size=known.embedding_size,
        hidden_sizes=known.hidden_sizes,
        depths=[*known.depths[:-1], min(LAST, known.depths[-1])],
        layer_type=known.layer_type,
        downsample_in_first_stage=known.downsample_in_first_stage,
        out_features=["stage2", "stage3"],
    )
    config = T.RTDetrConfig(
        backbone_config=body,
        freeze_backbone_batch_norms=False,  # affinage freezes them where the rates say so
        encoder_in_channels=known.hidden_sizes[1:],
        feat_strides=[8, 16],
        encode_proj_layers=[1],  # attention among the positions of the coarse map
        num_feature_levels=2,
        encoder_hidden_dim=WIDTH,
        encoder_ffn_dim=2 * WIDTH,
        encoder_attention_heads=4,
        hidden_expansion=0.5,
        d_model=WIDTH,
        decoder_in_channels=[WIDTH] * 2,
        decoder_ffn_dim=2 * WIDTH,
        decoder_layers=2,
        decoder_attention_heads=3,  # of 32 each
        num_queries=60,  # scenes have up to 24 things, blood smears up to 30
        num_denoising=40,
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    model = T.RTDetrForObjectDetection(config)
    own = model.model.backbone.model.state_dict()
    weights = {name.removeprefix("resnet."): value for name, value in classifier.state_dict().items()}
    model.model.backbone.model.load_state_dict({name: weights[name] for name in own})
    model.save_pretrained(out)
    processor: Any = T.RTDetrImageProcessorPil(
        size={"height": side, "width": side}, do_normalize=True, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )  # the pixels that the ResNet was taught on
    processor.save_pretrained(out)
    return out


def resized(taught: str, out: Path, side: int) -> Path:
    """The same detector for pictures of another size: its weights know no size, its processor does."""
    import transformers as T

    from affinage import starters

    folder = starters.place(taught)
    T.RTDetrForObjectDetection.from_pretrained(folder, dtype="float32").save_pretrained(out)
    processor: Any = T.RTDetrImageProcessorPil.from_pretrained(folder)
    processor.size = {"height": side, "width": side}
    processor.save_pretrained(out)
    return out


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", type=Path, help="the folder of a ResNet for images; starter-vision if not given")
    parser.add_argument("--photos", type=Path, help="small photographs to paste into the scenes")
    parser.add_argument("--raccoon", type=Path, help="photographs of raccoons, with boxes")
    parser.add_argument("--out", type=Path, help="the run, which is the base")
    parser.add_argument("--untaught", type=Path, help="save the untaught detector there, and stop")
    parser.add_argument("--scenes", type=Path, help="scenes that were made before")
    parser.add_argument("--count", type=int, default=4000, help="training scenes")
    parser.add_argument("--start", help="a detector to go on from, such as starter-detector; an untaught one if not given")
    parser.add_argument("--side", type=int, default=SIDE, help="pixels of a picture")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args(words)
    sys.path.insert(0, str(Path(__file__).parent))
    import scenes

    classes = scenes.CLASSES if told.raccoon is None else (*scenes.CLASSES, scenes.RACCOON)
    if told.untaught:
        untaught(told.backbone, told.untaught, classes, told.seed, told.side)
        return
    import affinage

    with tempfile.TemporaryDirectory() as folder:
        begun = Path(folder) / "begun"
        base = (
            resized(told.start, begun, told.side) if told.start else untaught(told.backbone, begun, classes, told.seed, told.side)
        )
        made = told.scenes or Path(folder) / "scenes"
        if not told.scenes:
            scenes.write(made, told.count, told.side, told.seed, told.photos, told.raccoon)
        done = affinage.fit(
            model=base, data=made, plan="full", epochs=told.epochs, learning_rate=told.learning_rate,
            head_learning_rate=told.learning_rate, layer_decay=1.0, batch_size=told.batch_size,
            augment="light", average=0.05, leaks="drop", seed=told.seed, out=told.out,
        )  # fmt: skip
    print(done.path, done.metrics)


if __name__ == "__main__":
    main()
