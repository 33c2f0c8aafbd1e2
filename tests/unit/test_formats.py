"""Data sets in the formats that others publish them in, as small files made here; and damaged ones."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet
from small_dataset import images_and_labels, write_idx

from fltestbed.errors import ExperimentError
from fltestbed.experiment import Data
from fltestbed.formats import Dataset, Files

PARTS = {"train": 60, "test": 20}


def ask(name: str = "mine", **more: Any) -> Data:
    return Data(source="folder", name=name, path="x", **more)


def load(path: Path, name: str = "mine", **more: Any) -> Dataset:
    return Files(path, ask(name, **more)).load()


def coloured(part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images of shape (n, 32, 32, 3), and labels of which all ten are there."""
    rng = np.random.default_rng(PARTS[part])
    return rng.integers(0, 256, (PARTS[part], 32, 32, 3), dtype=np.uint8), np.arange(PARTS[part]) % 10


def write_cifar(folder: Path) -> None:
    folder.mkdir()
    for part, files in (("train", [f"data_batch_{number}" for number in range(1, 6)]), ("test", ["test_batch"])):
        images, labels = coloured(part)
        rows = np.hstack([labels[:, None].astype(np.uint8), images.transpose(0, 3, 1, 2).reshape(-1, 3072)])
        for name, piece in zip(files, np.array_split(rows, len(files)), strict=True):
            (folder / f"{name}.bin").write_bytes(piece.tobytes())


def write_cifar_100(folder: Path) -> None:
    folder.mkdir()
    for part, number in (("train", 200), ("test", 100)):
        rows = np.random.default_rng(number).integers(0, 20, (number, 3074), dtype=np.uint8)
        rows[:, 1] = np.arange(number) % 100
        (folder / f"{part}.bin").write_bytes(rows.tobytes())


def write_npz(file: Path, **more: Any) -> None:
    arrays = {}
    for part in PARTS:
        arrays[f"x_{part}"], arrays[f"y_{part}"] = coloured(part)
    np.savez(file, **{**arrays, **more})


def png(image: NDArray[np.uint8]) -> bytes:
    held = io.BytesIO()
    Image.fromarray(image).save(held, "PNG")
    return held.getvalue()


def table(rows: dict[str, list[Any]]) -> bytes:
    held = io.BytesIO()
    parquet.write_table(pyarrow.table(rows), held)
    return held.getvalue()


def write_parquet(folder: Path) -> None:
    folder.mkdir()
    for part in PARTS:
        images, labels = coloured(part)
        rows = {"img": [{"bytes": png(image), "path": None} for image in images], "label": labels.tolist()}
        (folder / f"{part}-00000-of-00001.parquet").write_bytes(table(rows))


def write_images(folder: Path) -> None:
    for part in PARTS:
        for number, (image, label) in enumerate(zip(*coloured(part), strict=True)):
            place = folder / part / f"label-{label}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:03}.png").write_bytes(png(image))


@pytest.mark.parametrize("write", [write_cifar, write_parquet, write_images])
def test_a_folder_holds_what_was_written(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "data")
    data = load(tmp_path / "data", "cifar-10" if write is write_cifar else "mine")
    for part, inputs, labels in (
        ("train", data.train_inputs, data.train_labels),
        ("test", data.test_inputs, data.test_labels),
    ):
        images, wanted = coloured(part)
        by_content = {image.tobytes(): label for image, label in zip(images.transpose(0, 3, 1, 2), wanted, strict=True)}
        assert {image.tobytes(): label for image, label in zip(inputs, labels, strict=True)} == by_content
        assert (inputs.dtype, labels.dtype) == (np.uint8, np.int64)
    assert data.classes == 10


def test_cifar_100_has_its_fine_labels(tmp_path: Path) -> None:
    write_cifar_100(tmp_path / "data")
    data = load(tmp_path / "data", "cifar-100")
    assert data.classes == 100
    assert data.train_labels.tolist() == [*range(100)] * 2


def test_an_npz_file_in_colour_and_in_grey(tmp_path: Path) -> None:
    write_npz(tmp_path / "data.npz")
    assert np.array_equal(load(tmp_path / "data.npz").train_inputs, coloured("train")[0].transpose(0, 3, 1, 2))
    grey = {f"x_{part}": coloured(part)[0][..., 0] for part in PARTS}
    write_npz(tmp_path / "grey.npz", **grey)
    assert load(tmp_path / "grey.npz").test_inputs.shape == (20, 1, 32, 32)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_is_what_is_in_it(tmp_path: Path, kind: str) -> None:
    write_cifar(tmp_path / "cifar-10-batches-bin")
    archive = tmp_path / f"data.{kind}"
    files = sorted((tmp_path / "cifar-10-batches-bin").iterdir())
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for file in files:
                packed.write(file, file.relative_to(tmp_path))
    else:
        with tarfile.open(archive, "w:gz") as tar:
            for file in files:
                tar.add(file, file.relative_to(tmp_path))
    assert np.array_equal(load(archive).train_inputs, load(tmp_path / "cifar-10-batches-bin").train_inputs)
    archive.write_bytes(archive.read_bytes()[:-600])
    with pytest.raises(ExperimentError, match=f"data.{kind}: .*the archive is damaged"):
        load(archive)


def test_idx_files_need_not_be_packed(tmp_path: Path) -> None:
    import gzip

    write_idx(tmp_path / "data", train=60, test=20)
    for file in list((tmp_path / "data").iterdir()):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert np.array_equal(load(tmp_path / "data", "mnist").train_inputs, images_and_labels(60, seed=0)[0][:, None])


def test_a_text_is_sequences_with_what_follows(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.txt").write_text("abcd" * 50)
    (tmp_path / "data/b.txt").write_text("abdc" * 25)
    data = load(tmp_path / "data", sequence_length=3)
    assert data.classes == 5  # and one for what is not known
    assert data.train_inputs[0].tolist() == [1, 2, 3]
    assert data.train_labels[0] == 4
    assert data.train_inputs[1].tolist() == [4, 1, 2]
    assert data.train_groups is not None
    assert np.bincount(data.train_groups).tolist() == [59, 29]  # of 180 and 90 characters
    assert len(data.test_labels) == 6 + 3


def test_words_that_are_rare_are_all_the_same(tmp_path: Path) -> None:
    for part, text in (("train", "The cat, the dog, the cat. " * 20), ("test", "the bird, the cat " * 10)):
        (tmp_path / part).mkdir()
        (tmp_path / part / "writer.txt").write_text(text)
    data = load(tmp_path, tokens="words", sequence_length=2, vocabulary=4)
    assert data.classes == 4  # of ',', 'cat', 'the'; and any other
    assert data.train_inputs[0].tolist() == [3, 2]
    assert data.test_inputs[0].tolist() == [3, 0]


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(b"abc\xff")
    with pytest.raises(ExperimentError, match="it is not text in UTF-8: invalid start byte at byte 3"):
        load(tmp_path / "data.txt")


def damage(write: Callable[[Path], None], name: str, content: bytes | None) -> Callable[[Path], None]:
    """Return what writes a data set, and then other content into one of its files, or removes it."""

    def written(path: Path) -> None:
        write(path)
        file = path / name if name else path
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)

    return written


def npz(**more: Any) -> Callable[[Path], None]:
    return lambda path: write_npz(path, **more)


@pytest.mark.parametrize(
    ("write", "name", "said"),
    [
        (damage(write_cifar, "data_batch_3.bin", b"x" * 3072), "mine", "data_batch_3.bin: .* 3072 bytes are no whole"),
        (damage(write_cifar, "data_batch_3.bin", None), "cifar-10", "it has 4 of the 5 files"),
        (damage(write_cifar, "test_batch.bin", None), "mine", "test_batch.bin: .*No such file"),
        (damage(write_cifar, "test_batch.bin", b"\x0b" * 3073), "mine", "labels from 11 to 11, not 0 to 9"),
        (write_cifar_100, "cifar-10", "it has 100 labels, cifar-10 has 10"),
        (write_cifar, "mnist", "its examples are 3 x 32 x 32, those of mnist 1 x 28 x 28"),
        (damage(write_parquet, "test-00000-of-00001.parquet", b"PAR1"), "mine", "test-00000-of-00001.parquet: "),
        (damage(write_parquet, "test-00000-of-00001.parquet", None), "mine", "there is no test"),
        (
            damage(write_parquet, "test-00000-of-00001.parquet", table({"img": ["x"], "label": [1]})),
            "mine",
            "its column img does not hold the bytes of images",
        ),
        (
            damage(write_parquet, "test-00000-of-00001.parquet", table({"picture": ["x"], "label": [1]})),
            "mine",
            "it has no column image or img, but picture, label",
        ),
        (damage(write_images, "train/label-3/003.png", b"no image"), "mine", "003.png: .*it is no image"),
        (
            damage(write_images, "train/label-3/003.png", png(np.zeros((9, 9, 3), dtype=np.uint8))),
            "mine",
            "differ in size: 59 of 3 x 32 x 32, 1 of 3 x 9 x 9",
        ),
        (lambda path: path.mkdir(), "mine", "there is no data set in a known format"),
    ],
)
def test_what_is_wrong_with_a_folder(tmp_path: Path, write: Callable[[Path], None], name: str, said: str) -> None:
    write(tmp_path / "data")
    with pytest.raises(ExperimentError, match=said) as caught:
        load(tmp_path / "data", name)
    assert str(tmp_path / "data") in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (damage(write_npz, "", b"PK\x03\x04"), "data.npz: the data set cannot be used: "),
        (npz(x_test=np.zeros((20, 28, 28, 3), dtype=np.uint8)), "3 x 32 x 32 in the train part, 3 x 28 x 28 in the"),
        (npz(x_train=np.zeros((60, 32, 32, 3))), "its images are float64 of shape"),
        (npz(y_train=np.zeros(60)), "its labels are float64, not whole numbers"),
        (npz(y_train=np.zeros(59, dtype=int)), "it has 60 train inputs, but 59 labels"),
        (npz(y_train=np.arange(60) % 10 - 1), "labels from -1 to 8"),
        (npz(y_test=np.full(20, 10)), "its test part has labels from 10 to 10, not 0 to 9"),
        (npz(y_train=np.where(np.arange(60) % 10 == 4, 9, np.arange(60) % 10)), "no example of the label 4 to train"),
        (
            npz(x_test=np.zeros((0, 32, 32, 3), dtype=np.uint8), y_test=np.zeros(0, dtype=int)),
            "its test part is empty",
        ),
        (lambda path: np.savez(path, other=np.zeros(1)), "it has no array of that name: "),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, write: Callable[[Path], None], said: str) -> None:
    write(tmp_path / "data.npz")
    with pytest.raises(ExperimentError, match=said):
        load(tmp_path / "data.npz")


def test_the_fingerprint_covers_content_names_and_what_is_asked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    prints = [Files(tmp_path, ask()).fingerprint(), Files(tmp_path, ask(sequence_length=9)).fingerprint()]
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    prints.append(Files(tmp_path, ask()).fingerprint())
    (tmp_path / "b.txt").write_text("other")
    prints.append(Files(tmp_path, ask()).fingerprint())
    assert len(set(prints)) == 4
    assert Files(tmp_path, ask()).fingerprint() == prints[3]
