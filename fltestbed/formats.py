"""The formats of data sets: a folder, an archive or a file is recognized by its names, read and checked."""

import gzip
import hashlib
import io
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fltestbed.errors import ExperimentError
from fltestbed.known import KNOWN

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp")
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")
_TEST_SHARE = 0.1  # of a text that has no test part
_KNOWN_FORMATS = """known are
  IDX: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, or with .gz
  CIFAR's binary version: data_batch_1.bin, ..., test_batch.bin; of CIFAR-100 train.bin, test.bin
  NumPy: one .npz file with x_train, y_train, x_test, y_test
  Parquet: train*.parquet, test*.parquet, with an image and a label in each row
  images: train/<label>/*.png, test/<label>/*.png
  text: train.txt, test.txt; or *.txt, one file a writer, in train and test or without a test part"""


class Asked(Protocol):
    """What is said of the files beside where they are; an experiment's `data`, for one."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def tokens(self) -> str: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...


@dataclass(frozen=True)
class Dataset:
    """Inputs: images, uint8 of shape (n, channels, height, width), or tokens of shape (n, length).

    Labels: int64 of shape (n,), from 0 to `classes` - 1. `train_groups` says which examples belong together: int64 of
    shape (n,).
    """

    train_inputs: NDArray[Any]
    train_labels: NDArray[np.int64]
    test_inputs: NDArray[Any]
    test_labels: NDArray[np.int64]
    classes: int
    train_groups: NDArray[np.int64] | None = None


class _Unreadable(Exception):
    """A file is not what its name says; `args` are its path, or that of its folder, and what is wrong."""


@dataclass(frozen=True)
class Files:
    """A folder, an archive or a file, and what an experiment says of it."""

    path: Path
    data: Asked

    def fingerprint(self) -> str:
        """Return a hash of the names and contents of the files, and of what they are read with."""
        asked = {key: getattr(self.data, key) for key in ("name", "tokens", "sequence_length", "vocabulary")}
        digest = hashlib.sha256(repr(sorted(asked.items())).encode())
        files = sorted(path for path in self.path.rglob("*") if path.is_file()) if self.path.is_dir() else [self.path]
        for path in files:
            try:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").digest()
            except OSError as error:
                raise self._unusable(path, error.strerror or "it cannot be read") from error
            digest.update(str(path.relative_to(self.path)).encode() + b"\0" + content)
        return digest.hexdigest()

    def load(self) -> Dataset:
        """Return the arrays. Raises ExperimentError when a file is missing, damaged or of another kind."""
        try:
            with _unpacked(self.path) as folder:
                read = _reader(folder)
                if read is None:
                    raise ExperimentError(
                        f"{self.path}: there is no data set in a known format", f"see the names: {_KNOWN_FORMATS}"
                    )
                if self.data.source == "device" and read in (_image_folders, _text):
                    what = (
                        "images in folders, and text, are numbered by what is there: it differs from device to device"
                    )
                    raise ExperimentError(f"{self.path}: {what}", "bring them as .npz, IDX, CIFAR or Parquet")
                found = read(folder, self.data)
        except _Unreadable as error:
            path, what = error.args
            raise self._unusable(path, what) from error
        except ImportError as error:
            raise ExperimentError(
                f"{self.path}: to read it takes the Python packages pyarrow and pillow, and not both are here: {error}",
                "write images_extra_requirements: [pyarrow, pillow] into the inventory, and run fltestbed up"
                if self.data.source == "device"
                else "install them beside fltestbed: pip install 'fltestbed[data]'",
            ) from error
        if problem := _problem(found, self.data):
            raise self._unusable(self.path, problem)
        return found

    def _unusable(self, path: Path, what: str) -> ExperimentError:
        if path != self.path and self.path.is_file():
            path = self.path / path.name  # in an archive, which was unpacked elsewhere
        hint = {
            "debian": f"remove {self.path} and run again, it is fetched anew; if a package put it there, reinstall it",
            "device": "correct the files on the device, or the path in the inventory",
            "hub": f"remove {self.path} and run again, it is fetched anew",
        }.get(self.data.source, "fetch the file again, and compare its size and hash with the publisher's")
        return ExperimentError(f"{path}: the data set cannot be used: {what}", hint)


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """Yield the folder, the file, or a temporary folder with what is in the archive."""
    if path.is_dir() or not path.name.endswith(_ARCHIVES):
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        try:
            if path.suffix == ".zip":
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(temporary)  # noqa: S202
            else:
                with tarfile.open(path) as tar:
                    tar.extractall(temporary, filter="data")
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise _Unreadable(path, f"the archive is damaged: {error}") from error
        folder = Path(temporary)
        while len(inside := list(folder.iterdir())) == 1:  # most archives hold one folder, or one file
            (folder,) = inside
            if folder.is_file():
                break
        yield folder


def _reader(path: Path) -> Callable[[Path, Asked], Dataset] | None:
    """Return the function that reads what is at the path."""
    if path.is_file():
        return {".npz": _npz, ".txt": _text}.get(path.suffix)
    looks: tuple[tuple[str, Callable[[Path, Asked], Dataset]], ...] = (
        ("*-ubyte*", _idx),
        ("*_batch*.bin", _cifar),
        ("train.bin", _cifar),
        ("train*.parquet", _parquet),
        ("*/train*.parquet", _parquet),
        ("train/*/*", _image_folders),
        ("*.txt", _text),
        ("train/*.txt", _text),
    )
    return next((read for pattern, read in looks if any(path.glob(pattern))), None)


def _problem(data: Dataset, asked: Asked) -> str | None:
    """Return what is wrong with a data set that could be read, None if nothing is."""
    for part, inputs, labels in (
        ("train", data.train_inputs, data.train_labels),
        ("test", data.test_inputs, data.test_labels),
    ):
        if len(inputs) != len(labels):
            return f"it has {len(inputs)} {part} inputs, but {len(labels)} labels"
        if not len(labels):
            return f"its {part} part is empty"
        if not 0 <= labels.min() <= labels.max() < data.classes:
            return f"its {part} part has labels from {labels.min()} to {labels.max()}, not 0 to {data.classes - 1}"
    if data.train_inputs.shape[1:] != data.test_inputs.shape[1:]:
        return f"its examples are {_size(data.train_inputs)} in the train part, {_size(data.test_inputs)} in the other"
    if known := KNOWN.get(asked.name):
        if data.train_inputs.shape[1:] != known.shape:
            return f"its examples are {_size(data.train_inputs)}, those of {asked.name} {_shape(known.shape)}"
        if data.classes != known.classes:
            return f"it has {data.classes} labels, {asked.name} has {known.classes}"
    if asked.source == "device":
        return None  # it has the labels that it has
    if data.train_inputs.ndim == 4 and (lacking := sorted({*range(data.classes)} - {*np.unique(data.train_labels)})):
        return f"it has no example of the label{'s' * (len(lacking) > 1)} {', '.join(map(str, lacking))} to train on"
    return None


def _size(inputs: NDArray[Any]) -> str:
    return _shape(inputs.shape[1:])


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _bytes(path: Path) -> bytes:
    """Return a file's content, unpacked if its name ends with .gz."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _Unreadable(path, str(error)) from error
    except OSError as error:
        raise _Unreadable(path, error.strerror or "it cannot be read") from error


def _of(parts: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], asked: Asked, classes: int | None = None) -> Dataset:
    """Return a data set of images; without `classes`, as many as are known, or as the labels of the train part say.

    Of data on a device, which may lack labels, those of the test part count too.
    """
    known = KNOWN.get(asked.name)
    labels = {part: values.astype(np.int64) for part, (_, values) in parts.items()}
    counted = labels.values() if asked.source == "device" else [labels["train"]]
    return Dataset(
        parts["train"][0],
        labels["train"],
        parts["test"][0],
        labels["test"],
        classes or (known.classes if known else max(int(each.max(initial=0)) for each in counted) + 1),
    )


def _idx(folder: Path, asked: Asked) -> Dataset:
    """Read the four files of MNIST and its relatives. The format: https://yann.lecun.org/exdb/mnist/"""
    return _of(
        {
            part: (_idx_array(folder, f"{name}-images", 3)[:, None], _idx_array(folder, f"{name}-labels", 1))
            for part, name in (("train", "train"), ("test", "t10k"))
        },
        asked,
    )


def _idx_array(folder: Path, name: str, dimensions: int) -> NDArray[np.uint8]:
    found = sorted(folder.glob(f"{name}?idx{dimensions}-ubyte*"))
    path = found[0] if found else folder / f"{name}-idx{dimensions}-ubyte.gz"
    content = _bytes(path)
    header = 4 + 4 * dimensions
    sizes = np.frombuffer(content[:header], dtype=">u4") if len(content) >= header else np.zeros(1)
    if sizes[0] != 0x800 + dimensions:  # unsigned bytes
        raise _Unreadable(path, "it has no IDX header of the expected kind")
    shape = tuple(int(size) for size in sizes[1:])
    if len(content) - header != np.prod(shape):
        raise _Unreadable(path, f"{len(content) - header} bytes of data, but the header says {np.prod(shape)}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _cifar(folder: Path, asked: Asked) -> Dataset:
    """Read CIFAR's binary version. The format: https://www.cs.toronto.edu/~kriz/cifar.html"""
    fine = (folder / "train.bin").exists()  # CIFAR-100, with a coarse label before the fine one
    train = [folder / "train.bin"] if fine else sorted(folder.glob("data_batch_*.bin"))
    parts = {"train": train, "test": [folder / ("test.bin" if fine else "test_batch.bin")]}
    if not fine and len(train) != 5 and asked.name == "cifar-10":
        raise _Unreadable(folder, f"it has {len(train)} of the 5 files data_batch_1.bin to data_batch_5.bin")
    read = {}
    for part, paths in parts.items():
        rows = np.concatenate([_cifar_rows(path, 2 if fine else 1) for path in paths])
        read[part] = (rows[:, -3072:].reshape(-1, 3, 32, 32), rows[:, -3073])
    return _of(read, asked, 100 if fine else 10)


def _cifar_rows(path: Path, labels: int) -> NDArray[np.uint8]:
    content, row = _bytes(path), labels + 3072
    if not content or len(content) % row:
        raise _Unreadable(path, f"its {len(content)} bytes are no whole number of rows of {row}")
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, row)


def _npz(path: Path, asked: Asked) -> Dataset:
    parts = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for part in ("train", "test"):
                parts[part] = (_channels_first(path, arrays[f"x_{part}"]), arrays[f"y_{part}"].reshape(-1))
    except KeyError as error:
        raise _Unreadable(path, f"it has no array of that name: {error.args[0]}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _Unreadable(path, str(error)) from error
    for _, labels in parts.values():
        if labels.dtype.kind not in "iu":
            raise _Unreadable(path, f"its labels are {labels.dtype}, not whole numbers")
    return _of(parts, asked)


def _channels_first(path: Path, images: NDArray[Any]) -> NDArray[np.uint8]:
    """Return images of shape (n, height, width) or (n, height, width, channels) as (n, channels, height, width)."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise _Unreadable(
            path,
            f"its images are {images.dtype} of shape {images.shape}, not uint8 of (n, height, width) or "
            "(n, height, width, channels)",
        )
    return images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _parquet(folder: Path, asked: Asked) -> Dataset:
    """Read rows of an image, as a file's bytes, and a label, as the Hugging Face hub has them."""
    from pyarrow import parquet  # slow, and needed for nothing else here

    parts = {}
    for part in ("train", "test"):
        paths = sorted([*folder.glob(f"{part}*.parquet"), *folder.glob(f"*/{part}*.parquet")])
        if not paths:
            raise _Unreadable(folder, f"there is no {part}*.parquet")
        images, labels = [], []
        for path in paths:
            try:
                table = parquet.read_table(path)
            except (OSError, ValueError) as error:  # pyarrow's errors are either
                raise _Unreadable(path, str(error)) from error
            columns = [
                _column(path, table.column_names, names) for names in (("image", "img"), ("fine_label", "label"))
            ]
            for image in table[columns[0]].to_pylist():
                content = image.get("bytes") if isinstance(image, dict) else image
                if not isinstance(content, bytes):
                    raise _Unreadable(path, f"its column {columns[0]} does not hold the bytes of images")
                images.append(_picture(path, io.BytesIO(content)))
            labels += table[columns[1]].to_pylist()
        parts[part] = (_stacked(folder, images), np.asarray(labels))
    return _of(parts, asked)


def _column(path: Path, columns: Iterable[str], names: Sequence[str]) -> str:
    found = [name for name in names if name in set(columns)]
    if not found:
        raise _Unreadable(path, f"it has no column {' or '.join(names)}, but {', '.join(columns)}")
    return found[0]


def _image_folders(folder: Path, asked: Asked) -> Dataset:
    """Read a folder of images for each label; the labels are numbered in the order of their names."""
    names = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    parts = {}
    for part in ("train", "test"):
        images, labels = [], []
        if not (folder / part).is_dir():
            raise _Unreadable(folder / part, "there is no such folder")
        for place in sorted(path for path in (folder / part).iterdir() if path.is_dir()):
            if place.name not in names:
                raise _Unreadable(place, f"there is no folder train/{place.name}")
            for path in sorted(path for path in place.iterdir() if path.suffix.lower() in _IMAGES):
                images.append(_picture(path, path))
                labels.append(names.index(place.name))
        parts[part] = (_stacked(folder / part, images), np.asarray(labels))
    return _of(parts, asked, len(names))


def _picture(path: Path, file: Path | io.BytesIO) -> NDArray[np.uint8]:
    """Return an image as uint8 of shape (channels, height, width): one channel if it is grey, else three."""
    from PIL import Image  # not everywhere, as pyarrow

    try:
        with Image.open(file) as image:
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # a broken PNG is a SyntaxError
        raise _Unreadable(path, f"it is no image: {error}") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _stacked(path: Path, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    shapes = Counter(image.shape for image in images)
    if len(shapes) != 1:
        found = ", ".join(f"{number} of {_shape(shape)}" for shape, number in shapes.most_common(3))
        raise _Unreadable(path, f"its images differ in size: {found}" if shapes else "it has no images")
    return np.stack(images)


def _text(path: Path, asked: Asked) -> Dataset:
    """Read text as sequences that do not overlap, each labelled with the token behind it. A file is a group.

    The vocabulary is that of the train part: its characters, or its most frequent words. Token 0 is every other.
    """
    texts = {part: [_tokens(file, asked) for file in files] for part, files in _text_files(path).items()}
    if not texts["test"]:
        cuts = [round(len(tokens) * (1 - _TEST_SHARE)) for tokens in texts["train"]]
        pairs = [(tokens[:cut], tokens[cut:]) for tokens, cut in zip(texts["train"], cuts, strict=True)]
        texts = {"train": [first for first, _ in pairs], "test": [last for _, last in pairs]}
    counts = Counter(token for tokens in texts["train"] for token in tokens)
    frequent = sorted(counts, key=lambda token: (-counts[token], token))[: asked.vocabulary - 1]
    number = {token: place for place, token in enumerate(sorted(frequent), start=1)}
    kind = np.min_scalar_type(len(number))
    sequences = {
        part: [_sequences([number.get(token, 0) for token in tokens], asked.sequence_length) for tokens in each]
        for part, each in texts.items()
    }
    joined = {part: np.concatenate(each) if each else np.empty((0, 1)) for part, each in sequences.items()}
    return Dataset(
        joined["train"][:, :-1].astype(kind),
        joined["train"][:, -1].astype(np.int64),
        joined["test"][:, :-1].astype(kind),
        joined["test"][:, -1].astype(np.int64),
        classes=len(number) + 1,
        train_groups=np.repeat(np.arange(len(sequences["train"])), list(map(len, sequences["train"]))),
    )


def _text_files(path: Path) -> dict[str, list[Path]]:
    """Return the files to train on, and those to test on, of which there may be none."""
    if path.is_file():
        return {"train": [path], "test": []}
    if (path / "train").is_dir():
        return {part: sorted((path / part).glob("*.txt")) for part in ("train", "test")}
    test = [path / "test.txt"] if (path / "test.txt").exists() else []
    return {"train": sorted({*path.glob("*.txt")} - {*test}), "test": test}


def _tokens(path: Path, asked: Asked) -> Sequence[str]:
    try:
        text = _bytes(path).decode()
    except UnicodeDecodeError as error:
        raise _Unreadable(path, f"it is not text in UTF-8: {error.reason} at byte {error.start}") from error
    return text if asked.tokens == "characters" else re.findall(r"\w+|[^\w\s]", text.lower())


def _sequences(tokens: Sequence[int], length: int) -> NDArray[np.int64]:
    """Return rows of `length` tokens and the one behind them; what is left at the end is not used."""
    rows = max(0, (len(tokens) - 1) // length)
    starts = np.arange(rows)[:, None] * length
    return np.take(np.asarray(tokens, dtype=np.int64), starts + np.arange(length + 1))
