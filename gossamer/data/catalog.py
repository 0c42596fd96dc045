"""What is known about the built-in data sets: files, where they come from, statistics, augmentation."""

from dataclasses import dataclass

from gossamer.data.batches import Augmentation, Normalisation

DIGITS = tuple("0123456789")


@dataclass(frozen=True, kw_only=True)
class File:
    """One file as published. checksum: "md5:..." or "sha256:..." of the file as it is downloaded."""

    name: str
    url: str
    checksum: str


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One built-in data set. validation: samples cut from the training set. package: Debian's, where there is one.

    classes is empty where the names are in the files themselves.
    """

    channels: int
    size: int
    classes: tuple[str, ...]
    validation: int
    normalisation: Normalisation
    augmentation: Augmentation
    files: tuple[File, ...] = ()
    package: str | None = None


def _idx_files(base: str, checksums: tuple[str, str, str, str]) -> tuple[File, ...]:
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return tuple(File(name=n, url=base + n, checksum=c) for n, c in zip(names, checksums, strict=True))


def _file(base: str, name: str, checksum: str) -> File:
    return File(name=name, url=base + name, checksum=checksum)


DATASETS: dict[str, DataSet] = {
    "fashion-mnist": DataSet(
        channels=1,
        size=28,
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        validation=5000,
        normalisation=Normalisation(mean=(0.2860,), std=(0.3530,)),
        augmentation=Augmentation(pad=2, flip=True),
        files=_idx_files(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
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
        classes=DIGITS,
        validation=5000,
        normalisation=Normalisation(mean=(0.1307,), std=(0.3081,)),
        augmentation=Augmentation(pad=2),
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
    "digits": DataSet(
        channels=1,
        size=28,
        classes=DIGITS,
        validation=300,
        normalisation=Normalisation(mean=(0.3059,), std=(0.3247,)),
        augmentation=Augmentation(pad=2),
    ),
}
