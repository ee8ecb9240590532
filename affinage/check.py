"""Looks at the data before anything trains: leaks between splits, duplicates, broken files, labels that cannot be learnt."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import boxes
from .errors import AffinageError
from .spool import Block
from .types import Data, Finding, Split

PIXELS = 100_000_000  # an image of more is not decoded: 300 MB as RGB, and no model looks at that many
# Measured: of the photographs of hymenoptera, scaled and saved anew as JPEG of quality 60, 6 bits find 99 % (2 bits: 76 %),
# and the greys differ by at most 5; of 52 million pairs of different images (CIFAR-10, Tiny ImageNet) none passes both bounds.
CLOSE = 6  # of the 64 bits of two images' difference hashes that may differ
GREY = 6.0  # of 255: mean difference of two images' 16x16 greys that may remain; without it, plain backgrounds look alike
LONG = 10_000  # characters; about 2,500 tokens, several times what a text encoder reads
LONG_SOUND = 30.0  # seconds; attention grows with the square, and few recordings to learn from are longer
LONGEST_SOUND = 120.0  # seconds that are learnt from at most: an hour of speech is no utterance
PART = 256  # pictures that are held at once
SKEW = 10  # rows of the largest class for each of the smallest
DUPLICATE = "duplicate-across-splits"
REPEATED, NEARLY_REPEATED = "duplicate-in-train", "near-duplicate-in-train"
UNREADABLE = "unreadable"

Row = tuple[str, str, str, str]  # (split, id, other split, other id)


class _Seen(NamedTuple):
    """What is compared of the N rows of one split, 16 bytes a row in memory; of an unreadable row, nothing is."""

    exact: np.ndarray  # (N,) uint64 digests of the content, 0 where unreadable
    near: np.ndarray  # (N,) uint64. images: difference hashes. text: digests of the folded texts, 0 where no letter is left
    grey: Block | None = None  # images: (N, 256) uint8, the picture at 16x16


def check(data: Data) -> list[Finding]:
    """All that was found, errors first, then leaks, then warnings. Images are decoded, in threads; targets are class names."""
    found: list[Finding] = []
    skipped: list[tuple[Row, str]] = [(("", row, "", ""), why) for row, why in data.unreadable]
    seen: dict[str, _Seen] = {}
    lengthy: list[Row] = []
    for name, split in data.splits():
        look = {"image": _images, "audio": _sounds, "text": _texts}[data.kind]
        seen[name], broken, long = look(split)
        skipped += [((name, split.ids[i], "", ""), why) for i, why in broken]
        lengthy += [(name, split.ids[i], "", "") for i in long]
    if skipped:
        reasons = "; ".join(f"{count} {why}" for why, count in Counter(why for _, why in skipped).most_common(3))
        rows = tuple(row for row, _ in skipped)
        found.append(Finding(UNREADABLE, "warning", f"{len(skipped)} rows cannot be read and are left out ({reasons})", rows))
    for name, _ in data.splits():
        if not seen[name].exact.any():
            found.append(Finding("empty-split", "error", f"{name} has no readable row", ((name, "", "", ""),)))
    found += _across(data, seen)
    found += _within(data, seen)
    if data.labels == "class":
        found += _labels(data)
    elif data.labels == "boxes":
        found += _boxes(data)
    if lengthy:
        message = f"{len(lengthy)} texts have over {LONG:,} characters; what a model cannot hold is cut"
        if data.kind == "audio":
            message = f"{len(lengthy)} recordings are longer than {LONG_SOUND:.0f} seconds; shorter ones are learnt from sooner"
        found.append(Finding("long-text" if data.kind == "text" else "long-recording", "warning", message, tuple(lengthy)))
    order = ("error", "leak", "warning")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def clean(data: Data, findings: Sequence[Finding]) -> Data:
    """The data without the rows that `check` could not read."""
    gone = {row[:2] for finding in findings if finding.kind == UNREADABLE for row in finding.rows}
    return _without(data, gone)


def without_leaks(data: Data, findings: Sequence[Finding]) -> Data:
    """The data without the rows of train that stand in validation or test too, and of validation that stand in test."""
    gone = {row[:2] for finding in findings if finding.kind == DUPLICATE for row in finding.rows}
    return _without(data, gone)


def summary(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """For the report: kind, severity, message and the number of rows named."""
    return [{"kind": f.kind, "severity": f.severity, "message": f.message, "rows": len(f.rows)} for f in findings]


def write(findings: Sequence[Finding], path: Path) -> None:
    """A CSV with one line for each row named, and one for a finding that names none."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("kind", "severity", "split", "id", "other_split", "other_id", "message"))
        for finding in findings:
            lines.writerows(
                (finding.kind, finding.severity, *row, finding.message) for row in finding.rows or (("", "", "", ""),)
            )


def _without(data: Data, gone: set[tuple[str, str]]) -> Data:
    splits = {}
    for name, split in data.splits():
        if any(other == name for other, _ in gone):
            stays = np.fromiter(((name, row) not in gone for row in split.ids), bool, len(split))
            splits[name] = split.take(np.flatnonzero(stays))
    return data.with_splits(**splits)


# ----------------------------------------------------------------------------------------------------- what is compared
def fold(text: str) -> str | None:
    """The text without case, punctuation, accents' encoding, spacing and the digits of numbers; None if no letter is left."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = " ".join(re.sub(r"[\W_]+", " ", re.sub(r"\d+", "0", text)).split())
    return text if any(letter.isalpha() for letter in text) else None


def _texts(split: Split) -> tuple[_Seen, list[tuple[int, str]], list[int]]:
    """(what is compared, (row, why) of the unreadable, the long rows)."""
    count = len(split)
    seen = _Seen(np.zeros(count, np.uint64), np.zeros(count, np.uint64))
    broken, long = [], []
    for i, text in enumerate(split.inputs):
        if not text.strip():
            broken.append((i, "empty text"))
            continue
        seen.exact[i] = _digest(text.encode("utf-8", "surrogatepass"))
        folded = fold(text)
        if folded is not None:
            seen.near[i] = _digest(folded.encode("utf-8", "surrogatepass"))
        if len(text) > LONG:
            long.append(i)
    return seen, broken, long


def _digest(content: bytes) -> int:
    """64 bits, never 0: of ten million different rows two agree by chance once in 400,000 data sets."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) or 1


def _images(split: Split) -> tuple[_Seen, list[tuple[int, str]], list[int]]:
    """(what is compared, (row, why) of the unreadable, no long rows)."""
    from PIL import Image

    count, grey = len(split), Block(np.uint8, (256,))
    seen = _Seen(np.zeros(count, np.uint64), np.zeros(count, np.uint64), grey)
    broken = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the bound, and it is a finding
        warnings.simplefilter("ignore", UserWarning)  # broken EXIF and the like: the pixels decide
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, count, PART):  # a pool takes all that it is given at once
                looked = list(pool.map(_image, split.inputs[start : start + PART]))
                grey.add(np.stack([pixels for _, _, pixels, _ in looked]))
                for i, (digest, code, _, why) in enumerate(looked, start):
                    seen.exact[i], seen.near[i] = digest, code
                    if why:
                        broken.append((i, why))
    return seen, broken, []


def _sounds(split: Split) -> tuple[_Seen, list[tuple[int, str]], list[int]]:
    """(what is compared, (row, why) of the unreadable, the long rows); recordings are decoded one by one."""
    from affinage import sound

    count = len(split)
    seen = _Seen(np.zeros(count, np.uint64), np.zeros(count, np.uint64))
    broken, long = [], []
    for i, thing in enumerate(split.inputs):
        try:
            seconds = sound.seconds(thing)
            if seconds > LONGEST_SOUND:
                broken.append((i, f"longer than {LONGEST_SOUND:.0f} seconds: cut it at its pauses"))
                continue
            samples = sound.heard(thing, 8000)  # enough to tell recordings apart
        except AffinageError as error:
            broken.append((i, _short(str(error))))
            continue
        if np.abs(samples).max() < sound.SILENCE:
            broken.append((i, "silent"))
            continue
        seen.exact[i] = _digest(
            thing.read_bytes() if isinstance(thing, Path) else thing if isinstance(thing, bytes) else samples.tobytes()
        )
        if seconds > LONG_SOUND:
            long.append(i)
    return seen, broken, long


def _short(error: str) -> str:
    """Why a recording cannot be read, without its name."""
    for word, why in (("no recording at", "no such file"), ("is an empty file", "empty file"), ("no samples", "no samples")):
        if word in error:
            return why
    return "no recording that can be read"


def _image(source: Any) -> tuple[int, int, np.ndarray, str]:
    """(digest of the content or 0, difference hash, 16x16 greys, why it cannot be read) of a path, encoded bytes or a PIL image.

    The difference hash: is each pixel of the 9x8 grey picture darker than its right neighbour? (N. Krawetz, "Kind of like
    that", hackerfactor.com, 2013)
    """
    from PIL import Image

    nothing = np.zeros(256, np.uint8)
    try:
        if isinstance(source, str | Path):
            source = Path(source).read_bytes()
        if isinstance(source, bytes):
            digest = _digest(source)
            picture: Any = Image.open(io.BytesIO(source))
        else:
            digest = _digest(repr((source.mode, source.size)).encode() + source.tobytes())
            picture = source
        width, height = picture.size
        if width * height > PIXELS:
            return 0, 0, nothing, f"over {PIXELS // 1_000_000} megapixels"
        if hasattr(picture, "draft"):
            picture.draft("L", (64, 64))  # JPEG only: reads all of it, but decodes to no more than is needed
        picture = picture.convert("L")
        small = np.asarray(picture.resize((9, 8), Image.Resampling.BOX), np.int16)
        greys = np.asarray(picture.resize((16, 16), Image.Resampling.BOX), np.uint8).reshape(256)
    except Image.DecompressionBombError:
        return 0, 0, nothing, f"over {PIXELS // 1_000_000} megapixels"
    except FileNotFoundError:
        return 0, 0, nothing, "no such file"
    except Exception as error:  # a decoder may raise anything on a broken file, and one broken file must not end the check
        why = " ".join(str(error).split())
        return 0, 0, nothing, "not an image" if "cannot identify" in why else why[:80] or type(error).__name__
    code = int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")
    return digest, code, greys, ""


# ----------------------------------------------------------------------------------------------------------- duplicates
def _across(data: Data, seen: dict[str, _Seen]) -> list[Finding]:
    """Rows of a later split that stand in an earlier one: exactly (a leak), or nearly (a warning)."""
    found = []
    splits = dict(data.splits())
    for one, two in combinations(splits, 2):
        ids, others = splits[one].ids, splits[two].ids
        pairs = _same(seen[one].exact, seen[two].exact)
        if pairs:
            message = f"{len({j for _, j in pairs})} of {len(others)} rows of {two} stand in {one} as well"
            found.append(Finding(DUPLICATE, "leak", message, tuple((one, ids[i], two, others[j]) for i, j in pairs)))
        near = _close(seen[one], seen[two]) if data.kind == "image" else _same(seen[one].near, seen[two].near)
        here, there = seen[one].exact, seen[two].exact  # what is equal was told above, what is unreadable is like nothing
        told = np.isin(there[[j for _, j in near]], here)
        near = [(i, j) for (i, j), was in zip(near, told.tolist(), strict=True) if here[i] and there[j] and not was]
        if near:
            message = f"{len({j for _, j in near})} of {len(others)} rows of {two} nearly stand in {one}"
            named = tuple((one, ids[i], two, others[j]) for i, j in near)
            found.append(Finding("near-duplicate-across-splits", "warning", message, named))
    return found


def _same(one: np.ndarray, two: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of equal keys: each row of either side that has a partner stands in one at least, so that they stay few."""
    both = np.intersect1d(np.unique(one[one != 0]), np.unique(two[two != 0]), assume_unique=True)
    first_one: dict[int, int] = {}
    first_two: dict[int, int] = {}
    for first, keys in ((first_one, one), (first_two, two)):
        for i in np.flatnonzero(np.isin(keys, both)).tolist():
            first.setdefault(int(keys[i]), i)
    pairs = {(i, first_two[int(one[i])]) for i in np.flatnonzero(np.isin(one, both)).tolist()}
    pairs |= {(first_one[int(two[j])], j) for j in np.flatnonzero(np.isin(two, both)).tolist()}
    return sorted(pairs)


def _close(one: _Seen, two: _Seen) -> list[tuple[int, int]]:
    """For each image of the second split that has one, its nearest look-alike in the first; all pairs, in blocks of numpy."""
    assert one.grey is not None and two.grey is not None
    best: dict[int, tuple[float, int]] = {}
    block = max(1, 2**22 // max(len(one.near), 1))  # 4M pairs, 32 MB, at a time
    for start in range(0, len(two.near), block):
        bits = np.bitwise_count(two.near[start : start + block, None] ^ one.near[None, :])
        later, earlier = np.nonzero(bits <= CLOSE)
        for at in range(0, len(later), 2**14):
            j, i = later[at : at + 2**14] + start, earlier[at : at + 2**14]
            apart = np.abs(one.grey[i].astype(np.int16) - two.grey[j].astype(np.int16)).mean(1)
            order = np.lexsort((i, apart, j))  # the nearest of each j first
            for row in order[np.unique(j[order], return_index=True)[1]]:
                candidate = (float(apart[row]), int(i[row]))
                if apart[row] <= GREY and candidate < best.get(int(j[row]), (np.inf, 0)):
                    best[int(j[row])] = candidate
    return sorted((i, j) for j, (_, i) in best.items())


def _within(data: Data, seen: dict[str, _Seen]) -> list[Finding]:
    """Repeats within train, and equal content under different labels anywhere."""
    keys = np.sort(np.concatenate([one.exact for one in seen.values()]))
    twice = np.unique(keys[1:][(keys[1:] == keys[:-1]) & (keys[1:] != 0)])  # the others need no look
    repeats: list[Row] = []
    conflicts: list[Row] = []
    met: dict[int, tuple[str, str, str]] = {}
    for name, split in data.splits():
        first: dict[int, int] = {}
        for i in np.flatnonzero(np.isin(seen[name].exact, twice)).tolist():
            digest, label, row = int(seen[name].exact[i]), str(split.targets[i]), split.ids[i]
            if name == "train" and first.setdefault(digest, i) != i:
                repeats.append((name, row, name, split.ids[first[digest]]))
            label_then, split_then, row_then = met.setdefault(digest, (label, name, row))
            if label_then != label:
                conflicts.append((name, row, split_then, row_then))
    found = []
    if data.kind == "text":  # of pictures, all pairs would have to be looked at
        alike = _near_repeats(data.train, seen["train"])
        if alike:
            message = f"{len(alike)} rows of train nearly repeat an earlier one"
            found.append(Finding(NEARLY_REPEATED, "warning", message, tuple(alike)))
    if repeats:
        message = f"{len(repeats)} of {len(data.train)} rows of train repeat an earlier one"
        found.append(Finding(REPEATED, "warning", message, tuple(repeats)))
    if conflicts:
        message = f"{len(conflicts)} rows have the content of another row, but another label"
        found.append(Finding("conflicting-labels", "warning", message, tuple(conflicts)))
    return found


def _near_repeats(train: Split, seen: _Seen) -> list[Row]:
    """Texts of train that fold to an earlier row's, each with the first of its kind; those that equal one are left out."""
    order, first = np.unique(seen.near, return_index=True)
    leader = first[np.searchsorted(order, seen.near)]
    _, equal = np.unique(seen.exact, return_index=True)
    new = np.zeros(len(train), bool)
    new[equal] = True  # the first of its content
    found = np.flatnonzero(new & (seen.near != 0) & (leader != np.arange(len(train))))
    return [("train", train.ids[i], "train", train.ids[leader[i]]) for i in found.tolist()]


def leaders(split: Split, findings: Iterable[Finding]) -> np.ndarray | None:
    """(N,) for each of train's rows, or some of them, the number of the first that it repeats, else its own; None: none do.

    `findings` are those of `check` on the whole of train.
    """
    root = {row: first for f in findings if f.kind in (REPEATED, NEARLY_REPEATED) for _, row, _, first in f.rows}
    if not root:
        return None
    found, seen = np.arange(len(split)), dict[str, int]()
    for i, row in enumerate(split.ids):
        while row in root:
            row = root[row]
        found[i] = seen.setdefault(row, i)
    return found


# ------------------------------------------------------------------------------------------------------- labels, lengths
def _labels(data: Data) -> list[Finding]:
    found = []
    counts = Counter(str(label) for label in data.train.targets)
    if len(counts) == 1:
        message = f"all {len(data.train)} rows of train have the label '{next(iter(counts))}'; "
        message += "expected two labels or more: check the label column"
        found.append(Finding("one-class", "error", message))
    for name, split in data.splits():
        rows = tuple((name, row, "", "") for row, label in zip(split.ids, split.targets, strict=True) if str(label) not in counts)
        if rows and counts:
            new = sorted({str(label) for label in split.targets} - counts.keys())
            message = f"{len(rows)} rows of {name} have labels that train does not have ({_few(new)})"
            found.append(Finding("label-only-in-test", "warning", message, rows))
    rare = {label for label, count in counts.items() if count < 2}
    if rare:
        pairs = zip(data.train.ids, data.train.targets, strict=True)
        rows = tuple(("train", row, "", "") for row, label in pairs if str(label) in rare)
        message = f"{len(rare)} of {len(counts)} labels have one row in train ({_few(sorted(rare))})"
        found.append(Finding("rare-label", "warning", message, rows))
    if len(counts) > 1:
        (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
        if high > SKEW * low:
            message = f"train has {high} rows of '{most}' and {low} of '{least}', {high / low:.0f} to 1"
            found.append(Finding("imbalance", "warning", message))
    return found


# ----------------------------------------------------------------------------------------------------------------- boxes
FAULTS = {  # what `boxes.cleaned` counted -> what became of it
    boxes.CLIPPED: "leave their picture and are clipped to it",
    boxes.OUTSIDE: "lie outside their picture and are left out",
    boxes.EMPTY: "have no area and are left out",
    boxes.BROKEN: "are not finite numbers and are left out",
}


def _boxes(data: Data) -> list[Finding]:
    """What was mended or left out, what is not taught, pictures without boxes, and classes that cannot be learnt."""
    found = []
    for name, split in data.splits():
        for fault, words in FAULTS.items():
            counts = [dict(target.faults).get(fault, 0) for target in split.targets]
            rows = tuple((name, row, "", "") for row, count in zip(split.ids, counts, strict=True) if count)
            if rows:
                message = f"{sum(counts)} boxes in {len(rows)} pictures of {name} {words}"
                found.append(Finding(f"box-{fault}", "warning", message, rows))
        crowds = sum(int(target.crowd.sum()) for target in split.targets)
        if crowds:
            message = (
                f"{crowds} boxes of {name} are crowds or hard to tell: not taught, and neither right nor wrong in the scores"
            )
            found.append(Finding("box-crowd", "warning", message))
        rows = tuple((name, row, "", "") for row, target in zip(split.ids, split.targets, strict=True) if not len(target))
        if rows:
            message = (
                f"{len(rows)} of {len(split)} pictures of {name} have no box: they are kept, as ones where nothing is to be found"
            )
            found.append(Finding("no-boxes", "warning", message, rows))
    counted = Counter(str(kind) for target in data.train.targets for kind in target.classes[~target.crowd])
    if not counted:
        found.append(Finding("empty-split", "error", "train has no box in any picture: nothing can be learnt"))
        return found
    for name, split in data.splits():
        new = [{str(kind) for kind in target.classes} - counted.keys() for target in split.targets]
        rows = tuple((name, row, "", "") for row, kinds in zip(split.ids, new, strict=True) if kinds)
        if rows:
            named = _few(sorted(set().union(*new)))
            message = f"{len(rows)} pictures of {name} have boxes of classes that train does not have ({named})"
            found.append(Finding("label-only-in-test", "warning", message, rows))
    rare = sorted(kind for kind, count in counted.items() if count < 2)
    if rare:
        message = f"{len(rare)} of {len(counted)} classes have one box in train ({_few(rare)})"
        found.append(Finding("rare-label", "warning", message))
    (most, high), (least, low) = counted.most_common()[0], counted.most_common()[-1]
    if high > SKEW * low:
        message = f"train has {high} boxes of '{most}' and {low} of '{least}', {high / low:.0f} to 1"
        found.append(Finding("imbalance", "warning", message))
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
