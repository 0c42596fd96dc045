"""The zoo: networks by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from gossamer.errors import BadInput, unknown
from gossamer.models.lenet import LeNet5, LeNet300
from gossamer.models.mobilenet import MobileNetV1
from gossamer.models.resnet import ResNet, WideResNet
from gossamer.models.vgg import VGG16Small
from gossamer.task import Task


@dataclass(frozen=True)
class Entry:
    """A factory, and the input that the published counts refer to.

    input_size: the side of the square images. sized: the factory must be told it, because a linear layer follows the
    pixels; other networks take images of any size from `smallest` on.
    """

    factory: Callable[..., nn.Module]
    input_size: int
    in_channels: int = 3
    sized: bool = False
    smallest: int = 8


ENTRIES: dict[str, Entry] = {
    "lenet300": Entry(LeNet300, 28, in_channels=1, sized=True, smallest=1),
    "lenet5": Entry(LeNet5, 28, in_channels=1, sized=True, smallest=16),
    "vgg16_small": Entry(VGG16Small, 32, sized=True, smallest=17),
    "resnet8": Entry(partial(ResNet, 1), 32),
    **{f"resnet{n}": Entry(partial(ResNet, (n - 2) // 6), 32) for n in (14, 20, 32, 44, 56, 110)},
    **{f"resnet{n}a": Entry(partial(ResNet, (n - 2) // 6, option="A"), 32) for n in (20, 32, 44, 56, 110)},
    **{
        f"wrn{d}_{k}": Entry(partial(WideResNet, d, k), 32)
        for d, ks in ((16, (1, 2, 4, 8)), (40, (1, 2, 4)))
        for k in ks
    },
    "mobilenet_v1": Entry(partial(MobileNetV1, 1.0), 224),
    "mobilenet_v1_075": Entry(partial(MobileNetV1, 0.75), 224),
    "mobilenet_v1_050": Entry(partial(MobileNetV1, 0.5), 224),
    "mobilenet_v1_025": Entry(partial(MobileNetV1, 0.25), 224),
}


def build(name: str, *, in_channels: int | None = None, classes: int = 10, input_size: int | None = None) -> nn.Module:
    """A network of the zoo with fresh weights from torch's global generator.

    in_channels and input_size (side of the square images, in pixels) are by default those that the published counts
    refer to: 1 and 28 for the LeNets, 3 and 32 for the networks made for CIFAR, 3 and 224 for MobileNet.
    """
    if name not in ENTRIES:
        raise unknown("model", name, ENTRIES)
    entry = ENTRIES[name]
    channels = entry.in_channels if in_channels is None else in_channels
    size = entry.input_size if input_size is None else input_size
    if channels < 1 or classes < 2:
        raise BadInput(f"{name}: in_channels = {channels} must be at least 1 and classes = {classes} at least 2")
    if size < entry.smallest:
        raise BadInput(f"{name}: input_size = {size} pixels is too small, it needs at least {entry.smallest}")
    if entry.sized:
        return entry.factory(in_channels=channels, classes=classes, input_size=size)
    return entry.factory(in_channels=channels, classes=classes)


def build_for(name: str, task: Task) -> nn.Module:
    """A network of the zoo with fresh weights that fits the task's images and classes."""
    _, channels, height, width = task.example_inputs[0].shape
    if height != width:
        raise BadInput(f"{name}: the networks of the zoo need square images, {task.name} has {height}x{width}")
    return build(name, in_channels=channels, classes=len(task.classes), input_size=height)
