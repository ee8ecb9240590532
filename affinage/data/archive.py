"""Reads WebDataset tars: files that differ after the first dot (`000123.jpg`, `000123.cls`) are one sample; in shards, a split.

One pass finds where each picture lies: it stays in the tar and is read from there when it is looked at. Texts go to a spool.
Nothing is ever unpacked, so that a member's name is only a name, wherever it points.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

from ..errors import AffinageError
from ..spool import Cells, pread
from ..types import Columns, Kind
from .growing import Growing
from .table import IMAGES, SPLITS, TEXT, Table, label_name

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}  # how such files begin
SHARD = re.compile(r"(?P<split>[a-z]+)([-_.].*)?", re.I)  # train-000000.tar, val_3.tar, test.tar
FILE = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<part>[^/]+)")  # a/b.seg.png is the part seg.png of the sample a/b
TEXTS = ("txt", *TEXT)  # names of parts, or of keys in the part `json`
LABELS = ("cls", "label", "labels")
CODE = ("pyd", "pickle", "pkl", "pth", "pt", "joblib")  # to read one of these may be to run what is in it
ORDER = "the files of a sample follow each other (tar --sort=name)"
LABEL_LENGTH = 500  # characters; what is longer is a text and no class


class Member(NamedTuple):
    """Where the content of a file lies inside its tar, in bytes."""

    start: int
    size: int


Sample = dict[str, Member]  # by part


def accepts(source: Any) -> bool:
    """A tar, or a folder of tars: named after splits, in folders named after splits, or nothing but tars."""
    if not isinstance(source, str | Path):
        return False
    path = Path(source).expanduser()
    return _is_tar(path) if path.is_file() else path.is_dir() and bool(_splits(path))


def read(source: Any, columns: Columns, kind: str | None = None) -> dict[str, Table]:
    """The rows by split. Ids are `train-000000.tar/000123`. Columns are parts of a sample (`cls`, `txt`) or keys of its JSON.

    Raises:
        AffinageError: cut short, compressed, no tar, with pickles in it, or with samples that lack a label, a picture or a text.
    """
    path = Path(source).expanduser()
    splits = {"train": [path]} if path.is_file() else _splits(path)
    return {split: _table(tars, split, columns, kind) for split, tars in splits.items()}


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(TARS) and not path.name.startswith(".")


def _splits(folder: Path) -> dict[str, list[Path]]:
    """The shards by split, in the order of their names."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    tars = [entry for entry in entries if _is_tar(entry) and entry.is_file()]
    found: dict[str, list[Path]] = {}
    for tar in tars:
        named = SHARD.fullmatch(tar.name)
        split = SPLITS.get(named["split"].lower()) if named else None
        if split is not None:
            found.setdefault(split, []).append(tar)
    for inner in () if tars else entries:
        split = SPLITS.get(inner.name.lower())
        if split is not None and inner.is_dir():
            inside = sorted(entry for entry in inner.iterdir() if not entry.name.startswith("."))
            if inside and all(_is_tar(entry) and entry.is_file() for entry in inside):
                found.setdefault(split, []).extend(inside)
    if "train" in found:
        return found
    # Tars beside class folders or tables are what those were unpacked from.
    return {"train": tars} if tars and len(tars) == len(entries) else {}


# ------------------------------------------------------------------------------------------------------------------- rows
class Pictures(Sequence[bytes]):
    """N pictures, encoded as they lie in their tars; in memory are 24 bytes a picture, for its place."""

    def __init__(self) -> None:
        self.tars: list[Path] = []
        self.places = array("q")  # of each: the number of its tar, start, size

    def add(self, item: tuple[Path, Member]) -> None:
        tar, member = item
        if not self.tars or self.tars[-1] != tar:
            self.tars.append(tar)
        self.places.extend((len(self.tars) - 1, *member))

    def __len__(self) -> int:
        return len(self.places) // 3

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> list[bytes]: ...
    def __getitem__(self, at: int | slice) -> bytes | list[bytes]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        at = 3 * (int(at) % len(self))
        tar, start, size = self.places[at : at + 3]
        file = os.open(self.tars[tar], os.O_RDONLY)  # anew each time: there may be more tars than files that may be open
        try:
            return pread(file, start, size)
        finally:
            os.close(file)


def _table(tars: Sequence[Path], split: str, columns: Columns, kind: str | None) -> Table:
    rows: Growing | None = None
    for tar in tars:
        with tar.open("rb") as file:
            for key, sample in samples(tar):
                row = f"{tar.name}/{key}"
                picture = _picture(sample, columns, row) if kind != "text" else None
                what: Kind = "image" if picture else "text"
                if rows is None:
                    rows = Growing(
                        what, Pictures() if picture else Cells(str), f'; expected .cls, or a "label" in .json; {ORDER}'
                    )
                try:
                    text = None if picture else _value(file.fileno(), sample, (columns.text,) if columns.text else TEXTS, row)
                    label = _label(file.fileno(), sample, columns, what, row)
                except UnicodeDecodeError:
                    rows.unreadable.append((row, "not UTF-8"))
                    continue
                if picture is None and (text is None or kind == "image"):
                    wanted = {"image": f"{key}.jpg", "text": f"{key}.txt"}.get(kind or "", f"{key}.jpg or {key}.txt")
                    raise AffinageError(f"{row} holds only {', '.join(sample)}; expected a part such as {wanted}; {ORDER}")
                if what != rows.kind:
                    raise AffinageError(f"{tar.name} mixes pictures and texts, first at {key}: name a kind with --task")
                if label is None:
                    rows.unlabelled.append(row)
                elif picture and not picture.size:
                    rows.unreadable.append((row, "no bytes"))
                elif picture:
                    rows.add((tar, picture), label, row)
                elif str(text).strip():
                    rows.add(str(text), label, row)
                else:
                    rows.unreadable.append((row, "empty text"))
    where = tars[0].name + (f" and {len(tars) - 1} more" if len(tars) > 1 else "")
    if rows is None:
        raise AffinageError(f"{where} holds no samples: expected files such as 000123.jpg and 000123.cls")
    return rows.table(where, split)


def _picture(sample: Sample, columns: Columns, row: str) -> Member | None:
    found = [part for part in sample if part == columns.image or (columns.image is None and f".{part}" in IMAGES)]
    if len(found) > 1:
        raise AffinageError(f"{row} has the pictures {', '.join(found)}: name one, for example --image-column {found[0]}")
    return sample[found[0]] if found else None


def _label(file: int, sample: Sample, columns: Columns, what: str, row: str) -> str | None:
    """The name of the class. Where nothing else tells it, that is the text beside a picture."""
    names: tuple[str, ...] = (columns.label,) if columns.label else (*LABELS, *(TEXTS if what == "image" else ()))
    name = label_name(_value(file, sample, names, row), None, row)
    if name is not None and len(name) > LABEL_LENGTH:
        raise AffinageError(f"{row} has a label of {len(name)} characters; expected the name of a class: name its part or key "
                            "with --label-column")  # fmt: skip
    return name


def _value(file: int, sample: Sample, names: Sequence[str], row: str) -> Any:
    """What the first of the names says that is a part of the sample, or a key in its JSON.

    Raises:
        AffinageError: its JSON is none.
        UnicodeDecodeError: not UTF-8.
    """
    told: Any = {}
    if "json" in sample and not any(name in sample for name in names[:1]):
        try:
            told = json.loads(pread(file, *sample["json"]))
        except json.JSONDecodeError as error:
            raise AffinageError(f"{row}.json is not JSON: {error}") from None
        if not isinstance(told, dict):
            raise AffinageError(f'{row}.json holds a {type(told).__name__}; expected an object such as {{"label": "…"}}')
    for name in names:
        if name in sample:
            return pread(file, *sample[name]).decode("utf-8-sig")
        if told.get(name) is not None:
            return told[name]
    return None


# ------------------------------------------------------------------------------------------------------------------- tars
def samples(path: Path) -> Iterator[tuple[str, Sample]]:
    """(name, parts) of each sample of a tar, in order; no content is read.

    Raises:
        AffinageError: compressed, no tar, cut short, with a pickle in it, or one name twice.
    """
    with path.open("rb") as file:
        head = file.read(6)
    for begin, how in PACKED.items():
        if head.startswith(begin):
            raise AffinageError(f"{path.name} is compressed ({how}), so that no sample can be read without all before it: "
                                "unpack it to a plain .tar; pictures are compressed already")  # fmt: skip
    last, sample = "", Sample()
    seen: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it would keep them all
                named = FILE.fullmatch(member.name.removeprefix("./"))
                if not member.isreg() or not named:
                    continue
                key, part = named["key"], named["part"].lower()
                if part.rpartition(".")[2] in CODE:
                    raise AffinageError(f"{path.name} holds {member.name}: a pickle may run code when it is read, so the tar is "
                                        "refused; write its content as .json, .txt or .cls")  # fmt: skip
                if member.issparse():
                    raise AffinageError(f"{path.name} holds {member.name} as a sparse file: write the tar without --sparse")
                if key != last:
                    if sample:
                        yield last, sample
                        seen.add(last)
                    sample = Sample()
                if key in seen:
                    raise AffinageError(f"{path.name} holds {key} in two places: the files of a sample follow each other, and "
                                        "each sample has a name of its own")  # fmt: skip
                if part in sample:
                    raise AffinageError(f"{path.name} holds {member.name} twice: expected a name of its own for each sample")
                last, sample[part] = key, Member(member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, OSError, EOFError) as error:
        raise AffinageError(f"{path.name} is no tar, or cut short ({error}): fetch or write it anew") from None
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any nonsense for the end
            raise AffinageError(f"{path.name} is cut short, or damaged at byte {end:,}: fetch or write it anew")
    if sample:
        yield last, sample
