"""Networks of Hugging Face's transformers: `hf:NAME` of the hub or its cache, `hf:FOLDER` with what `save_pretrained`
wrote there.

Only weights in safetensors are read, and no code of a repository is run.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.preprocessing import INTERPOLATIONS, Preprocessing
from gossamer.errors import BadInput, CorruptFile, first_line, require

CONFIG, IMAGES = "config.json", "preprocessor_config.json"
# Pillow's numbers of its filters, as they stand in these files.
FILTERS = dict(zip((0, 4, 2, 5, 3, 1), INTERPOLATIONS))
PIXELS = "pixel_values"  # what classes for images call their input
TOKENS = 16  # of an example text
TEXT_INPUTS = ("input_ids", "attention_mask")


@dataclass(frozen=True, kw_only=True)
class HuggingFaceModel:
    """A network with what its files say. inputs: an example, by position. names: of the inputs of a text network."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    names: tuple[str, ...] = ()


def load_hugging_face(name: str, *, trained: bool = True, classes: int | None = None) -> HuggingFaceModel:
    """A network of transformers, in eval mode, of the class that its configuration names.

    Args:
        name: of the hub, or a folder. What the cache has is taken from it; all else is downloaded.
        trained: with its weights; False: as it is initialized, from the configuration alone.
        classes: outputs of the last layer; None: as in the configuration.

    Returns:
        The network and example inputs: an image, or token numbers with their mask.

    Raises:
        MissingExtra: transformers is not installed.
        BadInput: there is no such network, or it has no weights in safetensors.
    """
    transformers = require("transformers")
    transformers.utils.logging.disable_progress_bar()  # of reading files, which takes moments
    config = _configuration(name)
    if classes is not None:
        config.num_labels = classes
    if hasattr(config, "use_cache"):
        config.use_cache = False  # or outputs hold the keys and values of all layers
    kind = _class_of(transformers, config, name)
    if trained:
        model = _from_files(
            name, lambda **where: kind.from_pretrained(name, config=config, use_safetensors=True, **where)
        )
    else:
        model = kind(config) if kind.__name__ != "AutoModel" else kind.from_config(config)
    network: nn.Module = model.float().eval()
    inputs = _example(config, name, getattr(network, "main_input_name", ""))
    return HuggingFaceModel(model=network, inputs=inputs, names=TEXT_INPUTS if len(inputs) == len(TEXT_INPUTS) else ())


def hugging_face_preprocessing(name: str) -> Preprocessing | None:
    """How images become inputs, as the files say; None for networks that take none."""
    path = _file(name, IMAGES)
    if path is None:
        return None
    try:
        return image_preprocessing(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptFile(f"{path}: it does not say how images become inputs: {first_line(error)}") from error


def hugging_face_labels(name: str) -> list[str]:
    """The names of the outputs, in order; without names of their own none."""
    known = getattr(_configuration(name), "id2label", None) or {}
    names = [str(known[key]) for key in sorted(known, key=int)]
    return [] if all(one.startswith("LABEL_") for one in names) else names


def image_preprocessing(raw: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing of a `preprocessor_config.json`.

    Args:
        raw: its JSON object.

    Returns:
        The same, as gossamer says it.

    Raises:
        BadInput: sizes or numbers are missing.

    Example:
        >>> raw = {"size": {"shortest_edge": 256}, "crop_size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        >>> image_preprocessing(raw).crop
        0.875
    """
    size, scaled = _sides(raw.get("size")), None
    if raw.get("do_center_crop", "crop_size" in raw) and raw.get("crop_size") is not None:
        scaled, size = size, _sides(raw["crop_size"])
    if size is None:
        raise BadInput(f"{IMAGES} names no size of images")
    height, width = size
    whole = scaled is None and "shortest_edge" not in _as_mapping(raw.get("size"))
    factor = float(raw.get("rescale_factor", 1 / 255)) * 255 if raw.get("do_rescale", True) else 255.0
    normalized = raw.get("do_normalize", True) and raw.get("image_mean") is not None
    mean, std = (raw["image_mean"], raw["image_std"]) if normalized else ([0.0] * 3, [1.0] * 3)
    return Preprocessing(
        size=height,
        width=None if width == height else width,
        channels=len(mean),
        mean=tuple(one / factor for one in mean),
        std=tuple(one / factor for one in std),
        crop=None if whole else min(1.0, height / (scaled or size)[0]),
        interpolation=FILTERS.get(int(raw.get("resample", 2)), "bilinear"),
    )


def _as_mapping(size: Any) -> Mapping[str, Any]:
    return size if isinstance(size, Mapping) else {"shortest_edge": size} if size is not None else {}


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width of what may be a number, a pair or a mapping."""
    if isinstance(size, list | tuple):
        return int(size[0]), int(size[-1])
    known = _as_mapping(size)
    if "height" in known:
        return int(known["height"]), int(known["width"])
    return (int(known["shortest_edge"]),) * 2 if "shortest_edge" in known else None


def _configuration(name: str) -> Any:
    transformers = require("transformers")
    return _from_files(name, lambda **where: transformers.AutoConfig.from_pretrained(name, **where))


def _class_of(transformers: Any, config: Any, name: str) -> Any:
    """The class of the network that the files were written from; without one, the body alone."""
    for architecture in config.architectures or ():
        kind = getattr(transformers, architecture, None)
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            return kind
        raise BadInput(
            f"hf:{name}: its class {architecture[:80]} is not one of transformers {transformers.__version__}"
        )
    return transformers.AutoModel


def _from_files(name: str, load: Any) -> Any:
    """From a folder, from the cache, or else from the hub."""
    if _local(name) is not None:
        try:
            return load(local_files_only=True)
        except Exception as error:
            raise BadInput(f"hf:{name} cannot be loaded: {_said(error)}") from error
    try:
        return load(local_files_only=True)
    except Exception:  # not in the cache, or not all of it
        pass
    try:
        return load()
    except Exception as error:
        raise BadInput(
            f"hf:{name} is not in the cache and cannot be downloaded: {_said(error)}; where there is no network, copy "
            "its folder (config.json, model.safetensors) and name that: hf:FOLDER"
        ) from error


def _local(name: str) -> Path | None:
    """The folder that is meant; None for a name of the hub. Raises BadInput where it is none that can be read."""
    folder = Path(name)
    if not (folder.is_dir() or len(folder.parts) > 2 or name.startswith((".", "/", "~"))):
        return None
    if name.startswith("~"):  # no shell expands it within `hf:~/FOLDER`
        raise BadInput(f"hf:{name}: write the folder out: hf:{os.path.expanduser(name)}")  # noqa: PTH111
    if not (folder / CONFIG).is_file():
        raise BadInput(f"hf:{name}: there is no {folder / CONFIG}; give a folder that `save_pretrained` wrote")
    return folder


def _said(error: BaseException) -> str:
    text = first_line(error)
    return f"{text} (only weights in safetensors are read)" if "safetensors" in str(error) else text


def _file(name: str, file: str) -> Path | None:
    """A file of a network, in its folder, the cache or on the hub; None where there is none."""
    if (folder := Path(name)).is_dir() or _local(name) is not None:
        return folder / file if (folder / file).is_file() else None
    cached = require("transformers.utils.hub").cached_file
    for offline in (True, False):
        try:
            found = cached(name, file, local_files_only=offline, _raise_exceptions_for_missing_entries=False)
        except OSError:
            continue
        if found is not None:
            return Path(found)
    return None


def _example(config: Any, name: str, main: str) -> tuple[Tensor, ...]:
    """An input by position: an image where the files tell of images, or the class takes them, else tokens with their
    mask. main: what the class calls its input."""
    image = hugging_face_preprocessing(name)
    side = getattr(config, "image_size", None)
    if image is not None or side is not None or main == PIXELS:
        height, width = image.sides if image is not None else _sides(side) or (224, 224)
        channels = int(getattr(config, "num_channels", 3))
        return (torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(0)),)
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "vocab_size", None):
        raise BadInput(f"hf:{name}: it is not known what it takes; networks for images or one text can be loaded")
    tokens = torch.randint(int(config.vocab_size), (1, TOKENS), generator=torch.Generator().manual_seed(0))
    return tokens, torch.ones_like(tokens)
