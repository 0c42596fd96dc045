"""PASCAL VOC: one XML file for each image, and lists of images for each split."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch

from gossamer.data.box_files import AnnotatedImage, AnnotatedSplits, Faults, Faulty, existing, refuse_empty, sound_box
from gossamer.data.objects import Objects
from gossamer.errors import BadInput, CorruptFile, first_line

# The classes of 2007 and 2012; a data set of one's own has those that its files name, sorted.
NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
CLASSES = tuple(NAMES.split())
LISTS = Path("ImageSets") / "Main"
MOST_BYTES = 2**22  # of an XML file; published ones have a thousandth


def voc_folder(folder: Path) -> Path | None:
    """The folder with `Annotations` and `ImageSets/Main`: this one, or the only one below `VOCdevkit`."""
    places = [folder, *sorted(folder.glob("VOC*")), *sorted(folder.glob("VOCdevkit/VOC*"))]
    found = [p for p in places if (p / "Annotations").is_dir() and (p / LISTS).is_dir()]
    if len(found) > 1:
        raise BadInput(f"{folder} holds several data sets; give one of them: {', '.join(map(str, found))}")
    return found[0] if found else None


def read_voc(folder: Path, faulty: Faulty = "refuse") -> AnnotatedSplits:
    """A folder as PASCAL VOC publishes it, with its official splits.

    Where there is a test list, training is `trainval` or `train` and test is `test`. Where there is none, as with VOC
    2012, training is `train` and test is `val`.

    Args:
        folder: with `Annotations`, `ImageSets/Main` and `JPEGImages`.
        faulty: what to do with faulty annotations.

    Returns:
        The images of each split.

    Raises:
        BadInput: the lists of a training and a test split are not there.
        CorruptFile: a file cannot be read, or annotations are faulty and refused.
    """
    lists = {path.stem: path for path in (folder / LISTS).glob("*.txt")}
    has_test = "test" in lists
    train = next((name for name in (("trainval", "train") if has_test else ("train",)) if name in lists), None)
    test = "test" if has_test else "val" if "val" in lists else None
    if train is None:
        raise BadInput(f"{folder / LISTS} has no list train.txt or trainval.txt; it has {', '.join(sorted(lists))}")
    faults = Faults(faulty)
    parsed = {
        split: [_parsed(folder, stem, faults) for stem in _stems(lists[split], faults)]
        for split in (train, test)
        if split is not None
    }
    named = {row[0] for images in parsed.values() for image in images if image is not None for row in image[2]} - {""}
    classes = CLASSES if named <= set(CLASSES) else tuple(sorted(named))
    made = {
        split: [_image(*one, classes, faults) for one in images if one is not None] for split, images in parsed.items()
    }
    found = {split: [one for one in images if one is not None] for split, images in made.items()}
    said = faults.finish()
    return AnnotatedSplits(
        train=refuse_empty(found[train], str(lists[train])),
        validation=None,
        test=None if test is None else found[test],
        classes=classes,
        said=said,
    )


def _stems(path: Path, faults: Faults) -> list[str]:
    """The images of a list, each once."""
    stems = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for stem in {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else set():
        faults.add("image that is in a list twice", f"{path.name} {stem}")
    return list(dict.fromkeys(stems))


Row = tuple[str, list[float | None], str]
Parsed = tuple[Path, tuple[int, int], list[Row], str]


def _parsed(folder: Path, stem: str, faults: Faults) -> Parsed | None:
    """Path, height and width, and (class, corners, difficult) of the objects of one image."""
    path = folder / "Annotations" / f"{stem}.xml"
    if not path.is_file():
        faults.add("annotation file that is missing", str(path))
        return None
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can grow without end
            raise ValueError("it declares entities")
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise CorruptFile(f"{path} cannot be read as XML: {first_line(error)}") from error
    if root.tag != "annotation":
        raise CorruptFile(f"{path} is no annotation of PASCAL VOC: it begins with <{root.tag}>")
    height, width = (_number(root.findtext(f"size/{side}")) for side in ("height", "width"))
    image = folder / "JPEGImages" / (root.findtext("filename") or f"{stem}.jpg")
    if not height or not width:
        faults.add("image without height and width", path.name)
        return None
    if not existing(image, faults):
        return None
    rows: list[Row] = []
    for one in root.iter("object"):
        corners = [_number(one.findtext(f"bndbox/{end}")) for end in ("xmin", "ymin", "xmax", "ymax")]
        rows.append(((one.findtext("name") or "").strip(), corners, (one.findtext("difficult") or "0").strip()))
    return image, (int(height), int(width)), rows, path.name


def _image(
    path: Path, sides: tuple[int, int], rows: list[Row], file: str, classes: tuple[str, ...], faults: Faults
) -> AnnotatedImage | None:
    """With its sound objects. Corners count pixels from 1, and the last one is inside of the object."""
    boxes, labels, difficult = [], [], []
    for place, (name, corners, hard) in enumerate(rows):
        left, top, *ends = corners
        shifted = [None if left is None else left - 1, None if top is None else top - 1, *ends]
        sound = sound_box(shifted, sides[1], sides[0], faults, f"{file} object {place}")
        if sound is None:
            continue
        if name not in classes:
            faults.add("object without a class", f"{file} object {place}")
            continue
        if hard not in ("0", "1"):
            faults.add("difficult that is neither 0 nor 1", f"{file} object {place} ({hard})")
            continue
        boxes.append(sound)
        labels.append(classes.index(name))
        difficult.append(hard == "1")
    objects = Objects(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        difficult=torch.tensor(difficult, dtype=torch.bool),
    )
    return AnnotatedImage(path=path, sides=sides, objects=objects)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
