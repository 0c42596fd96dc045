"""What timm, torchvision and transformers know about their networks besides the weights: preprocessing and names of
classes."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from gossamer.core.preprocessing import Preprocessing
from gossamer.errors import BadInput, MissingExtra, own_error, require, unknown
from gossamer.models.hugging_face import hugging_face_labels, hugging_face_preprocessing

LIBRARIES = ("timm", "torchvision", "hf")
USUAL_CROP = 0.875  # timm's own, where a configuration names none


def installed(name: str) -> Any:
    """The library, which is also the name of the extra that brings it."""
    try:
        return require(name)
    except MissingExtra:
        raise
    except Exception as error:  # torchvision without its compiled part, for one
        raise BadInput(f"{name} is installed but cannot be imported: {own_error(error)}") from error


def configuration(name: str) -> Any:
    """timm's facts on a network, `resnet18`, or on one of its trained weights, `resnet18.a1_in1k`; BadInput where there
    are none."""
    timm = installed("timm")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown("timm model", architecture, timm.list_models(), listed="`timm.list_models()`")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise unknown(f"weights of timm:{architecture}", tag, tags)
    return timm.get_pretrained_cfg(name)


def trained_weights(name: str) -> Any:
    """torchvision's best weights of a network, with what it knows of them; BadInput where there is no such network."""
    models = installed("torchvision").models
    if name not in models.list_models():
        raise unknown("torchvision model", name, models.list_models(), listed="`torchvision.models.list_models()`")
    return models.get_model_weights(name).DEFAULT


def preprocessing_of(text: str) -> Preprocessing | None:
    """How images were made for the training of `timm:NAME`, `torchvision:NAME` or `hf:NAME`; None where that is not
    known, or for what takes no images."""
    kind, _, name = text.partition(":")
    if kind == "hf":
        return hugging_face_preprocessing(name)
    return _of_timm(configuration(name)) if kind == "timm" else _of_torchvision(trained_weights(name).transforms())


def _of_timm(facts: Any) -> Preprocessing | None:
    channels, height, width = facts.input_size if facts is not None else (0, 0, 1)
    if height != width:
        return None
    return Preprocessing(
        size=height,
        channels=channels,
        mean=tuple(facts.mean),
        std=tuple(facts.std),
        crop=None if facts.crop_mode == "squash" else float(facts.crop_pct or USUAL_CROP),
        interpolation="bicubic" if facts.interpolation == "random" else facts.interpolation,
    )


def _of_torchvision(transforms: Any) -> Preprocessing | None:
    crop, scaled = getattr(transforms, "crop_size", None), getattr(transforms, "resize_size", None)
    if not crop or not scaled:
        return None
    return Preprocessing(
        size=crop[0],
        channels=3,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        crop=crop[0] / scaled[0],
        interpolation=transforms.interpolation.value.removesuffix("-exact"),
    )


def class_names(text: str, outputs: int) -> dict[str, int]:
    """Which output a name means, for the weights of `timm:NAME`, `torchvision:NAME` or `hf:NAME`: plain names, and of
    ImageNet the
    identifiers (`n01440764`). Names that two outputs share are left out."""
    kind, _, name = text.partition(":")
    lists: list[Iterable[str]] = []
    if kind == "hf":
        lists.append(hugging_face_labels(name))
    elif kind == "torchvision":
        lists.append(trained_weights(name).meta.get("categories") or ())
    elif (facts := configuration(name)) is not None and facts.label_names:
        lists.append(facts.label_names)
    if kind == "timm" and outputs == 1000:
        info = installed("timm").data.ImageNetInfo("imagenet-1k")
        lists += [info.label_names(), info.label_descriptions()]
    found: dict[str, set[int]] = {}
    for names in lists:
        for number, given in enumerate(names):
            for one in {given, *given.split(",")}:
                found.setdefault(plain_values(one), set()).add(number)
    return {one: min(numbers) for one, numbers in found.items() if len(numbers) == 1}


def plain_values(name: str) -> str:
    """A class name as it is compared: without case, `_` as a space."""
    return " ".join(name.replace("_", " ").lower().split())


def outputs_of(classes: Iterable[str], names: Mapping[str, int]) -> list[int] | None:
    """The output of every class of the data, by name; None where a class has none, or two have the same."""
    found = [names.get(plain_values(one), math.nan) for one in classes]
    known = [int(one) for one in found if not math.isnan(one)]
    return known if len(set(known)) == len(found) else None
