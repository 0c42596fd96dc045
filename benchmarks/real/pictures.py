"""Pictures that ordinary packages ship, as folders for gossamer: a class folder, and pictures without labels.

python -m benchmarks.real.pictures classes folder
python -m benchmarks.real.pictures unlabelled folder
"""

import argparse
import hashlib
import struct
from pathlib import Path

from benchmarks.common.packages import from_debian, from_wheel

FOOLBOX = "foolbox==3.3.4"  # 20 photographs of ImageNet
DEBIAN = ("openclipart-png", "tuxpaint-stamps-default")
EVERY = 6  # how many pictures of the class folder stand for one without a label
MOST_PIXELS = 50_000_000  # one clip art is larger than gossamer reads
CLIP_ART, STAMPS = "usr/share/openclipart/png", "usr/share/tuxpaint/stamps"
# Class: folders of `openclipart-png`, and of `tuxpaint-stamps-default`.
CLASSES = {
    "animals": ("animals", "animals"),
    "buildings": ("buildings", "town"),
    "food": ("food", "food"),
    "people": ("people", "people"),
    "plants": ("plants", "plants"),
    "recreation": ("recreation", "hobbies"),
    "tools": ("tools", "household"),
    "vehicles": ("transportation", "vehicles"),
}


def pixels(path: Path) -> int:
    """Of a PNG file, by its header."""
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return int(width * height)


def class_folder(folder: Path) -> int:
    """Links to the pictures, one folder a class; the number of pictures."""
    art, stamps = from_debian("openclipart-png") / CLIP_ART, from_debian("tuxpaint-stamps-default") / STAMPS
    seen: set[str] = set()
    for name, (first, second) in CLASSES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for place in (art / first, stamps / second):
            for path in sorted(place.rglob("*.png")):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                link = folder / name / f"{digest[:16]}.png"
                if digest in seen or pixels(path) > MOST_PIXELS:
                    continue
                seen.add(digest)
                if not link.exists():
                    link.symlink_to(path)
    return len(seen)


def unlabelled(folder: Path) -> int:
    """Links to pictures in one folder: the photographs, and every sixth picture of the classes; how many there are."""
    classes = folder.parent / f"{folder.name}-classes"
    class_folder(classes)
    folder.mkdir(parents=True, exist_ok=True)
    photographs = [path for path in from_wheel(FOOLBOX, ".jpg") if path.name.startswith("imagenet")]
    pictures = [path.resolve() for path in sorted(classes.rglob("*.png"))[::EVERY]]
    for number, path in enumerate([*photographs, *pictures]):
        link = folder / f"{number:04}{path.suffix}"
        if not link.exists():
            link.symlink_to(path)
    return len(photographs) + len(pictures)


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["classes", "unlabelled"])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print((class_folder if args.kind == "classes" else unlabelled)(args.folder), "pictures in", args.folder)


if __name__ == "__main__":
    main()
