"""What is known about the built-in data sets: files, where they come from, statistics, augmentation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gossamer.data.batches import Augmentation, Normalisation
from gossamer.data.cifar import read_cifar10, read_cifar100
from gossamer.data.formats import Published, read_digits, read_idx_set, read_svhn

DIGITS = tuple("0123456789")


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One file as published. checksum: "md5:..." or "sha256:..." of the file as it is downloaded.

    also: other names under which the same content is accepted: unpacked, or in the authors' other format.
    """

    name: str
    url: str
    checksum: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One built-in data set. validation: samples cut from the training set. package: Debian's, where there is one.

    classes: how many. names: of the classes, where the files do not hold them. read: from the files' paths.
    """

    channels: int
    size: int
    classes: int
    validation: int
    normalisation: Normalisation
    augmentation: Augmentation
    read: Callable[[Sequence[Path]], Published]
    names: tuple[str, ...] = ()
    files: tuple[DataFile, ...] = ()
    package: str | None = None


def _idx_files(base: str, checksums: Sequence[str]) -> tuple[DataFile, ...]:
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return tuple(
        DataFile(name=f"{name}.gz", url=f"{base}{name}.gz", checksum=checksum, also=(name,))
        for name, checksum in zip(names, checksums, strict=True)
    )


def _file(base: str, name: str, checksum: str, also: tuple[str, ...] = ()) -> DataFile:
    return DataFile(name=name, url=base + name, checksum=checksum, also=also)


TORONTO = "https://www.cs.toronto.edu/~kriz/"
STANFORD = "http://ufldl.stanford.edu/housenumbers/"
CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"

DATASETS: dict[str, DataSet] = {
    "fashion-mnist": DataSet(
        channels=1,
        size=28,
        classes=10,
        names=tuple(CLOTHES.split(",")),
        validation=5000,
        normalisation=Normalisation(mean=(0.2860,), std=(0.3530,)),
        augmentation=Augmentation(pad=2, flip=True),
        read=read_idx_set,
        files=_idx_files(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            (
                "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "md5:25c81989df183df01b3e8a0aad5dffbe",
                "md5:bef4ecab320f06d8554ea6380940ec79",
                "md5:bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
        package="dataset-fashion-mnist",
    ),
    "mnist": DataSet(
        channels=1,
        size=28,
        classes=10,
        names=DIGITS,
        validation=5000,
        normalisation=Normalisation(mean=(0.1307,), std=(0.3081,)),
        augmentation=Augmentation(pad=2),
        read=read_idx_set,
        files=_idx_files(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            (
                "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        ),
    ),
    "cifar10": DataSet(
        channels=3,
        size=32,
        classes=10,
        validation=5000,
        normalisation=Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        augmentation=Augmentation(pad=4, flip=True),
        read=read_cifar10,
        files=(
            _file(
                TORONTO,
                "cifar-10-binary.tar.gz",
                "md5:c32a1d4ab5d03f1284b67883e8d87530",
                also=("cifar-10-batches-bin", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
            ),
        ),
    ),
    "cifar100": DataSet(
        channels=3,
        size=32,
        classes=100,
        validation=5000,
        normalisation=Normalisation(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
        augmentation=Augmentation(pad=4, flip=True),
        read=read_cifar100,
        files=(
            _file(
                TORONTO,
                "cifar-100-binary.tar.gz",
                "md5:03b5dce01913d631647c71ecec9e9cb8",
                also=("cifar-100-binary", "cifar-100-python.tar.gz", "cifar-100-python"),
            ),
        ),
    ),
    "svhn": DataSet(
        channels=3,
        size=32,
        classes=10,
        names=DIGITS,
        validation=6000,
        normalisation=Normalisation(mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970)),
        augmentation=Augmentation(pad=2),
        read=read_svhn,
        files=(
            _file(STANFORD, "train_32x32.mat", "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),
            _file(STANFORD, "test_32x32.mat", "md5:eb5a983be6a315427106f1b164d9cef3"),
        ),
    ),
    "digits": DataSet(
        channels=1,
        size=28,
        classes=10,
        names=DIGITS,
        validation=300,
        normalisation=Normalisation(mean=(0.3059,), std=(0.3247,)),
        augmentation=Augmentation(pad=2),
        read=read_digits,
    ),
}
