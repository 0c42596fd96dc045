"""The zoo: networks by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from gossamer.core.kinds import checked_arguments
from gossamer.core.task import Task
from gossamer.detection.metrics import BoxMetric
from gossamer.errors import BadInput, unknown
from gossamer.models.alexnet import AlexNet, AlexNetOneTower
from gossamer.models.anchor_free import AnchorFreeDetector
from gossamer.models.densenet import DenseNet, densenet_cifar
from gossamer.models.dsod import DSOD
from gossamer.models.flattened import FlattenedNet
from gossamer.models.fractalnet import FractalNet
from gossamer.models.googlenet import GoogLeNet
from gossamer.models.inception_v3 import InceptionV3
from gossamer.models.ion import ion_on_csp, ion_on_vgg16
from gossamer.models.lenet import LeNet5, LeNet300
from gossamer.models.mobilenet import MobileNetV1
from gossamer.models.nasnet import NASNetA
from gossamer.models.nin import NIN, NINImageNet
from gossamer.models.resnet import ResNet, WideResNet
from gossamer.models.resnet_imagenet import ResNetImageNet
from gossamer.models.shufflenet import STAGE2, ShuffleNet
from gossamer.models.squeezenet import SqueezeNet
from gossamer.models.ssd import SSD300, SSDOnCSP
from gossamer.models.stochastic import StochasticResNet
from gossamer.models.vgg import VGG16Small
from gossamer.models.vgg_imagenet import VGG
from gossamer.models.vgg_small import BatchNormMLP, VGGSmall


@dataclass(frozen=True)
class Entry:
    """A factory, and the input that the published counts refer to.

    input_size: the side of the square images. sized: the factory must be told it, because a linear layer follows the
    pixels; other networks take images of any size from `smallest` on. boxes: it is a detector.
    """

    factory: Callable[..., nn.Module]
    input_size: int
    in_channels: int = 3
    sized: bool = False
    smallest: int = 8
    boxes: bool = False


# Depth and growth rate of the DenseNets for 32x32 images.
DENSENETS = ((40, 12), (100, 12), (100, 24))
DENSENETS_BC = ((100, 12), (250, 24), (190, 40))

ENTRIES: dict[str, Entry] = {
    "lenet300": Entry(LeNet300, 28, in_channels=1, sized=True, smallest=1),
    "lenet5": Entry(LeNet5, 28, in_channels=1, sized=True, smallest=16),
    "mlp_3x2048": Entry(BatchNormMLP, 28, in_channels=1, sized=True, smallest=1),
    "vgg_small": Entry(VGGSmall, 32, sized=True),
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
    "nin": Entry(NIN, 32),
    "nin_192": Entry(partial(NIN, (192, 192, 192)), 32),
    **{f"densenet{d}_{k}": Entry(partial(densenet_cifar, d, k, compact=False), 32) for d, k in DENSENETS},
    **{f"densenet_bc{d}_{k}": Entry(partial(densenet_cifar, d, k, compact=True), 32) for d, k in DENSENETS_BC},
    **{f"fractalnet{5 * 2**c}": Entry(partial(FractalNet, c + 1), 32) for c in range(6)},
    "fractalnet20_wide": Entry(partial(FractalNet, 3, (64, 128, 256, 512, 512)), 32),
    **{f"resnet{n}_stochastic": Entry(partial(StochasticResNet, (n - 2) // 6), 32) for n in (20, 32, 56, 110)},
    "flattened": Entry(FlattenedNet, 32),
    "flattened_dense": Entry(partial(FlattenedNet, flat=False), 32),
    "nasnet_cifar": Entry(partial(NASNetA, 6, 32, 96, stem="cifar"), 32),
    "alexnet": Entry(AlexNet, 227, sized=True, smallest=67),
    "alexnet_one_tower": Entry(AlexNetOneTower, 224, sized=True, smallest=63),
    "vgg16": Entry(partial(VGG, (2, 2, 3, 3, 3)), 224, sized=True, smallest=32),
    "vgg19": Entry(partial(VGG, (2, 2, 4, 4, 4)), 224, sized=True, smallest=32),
    "nin_imagenet": Entry(NINImageNet, 224, smallest=39),
    "googlenet": Entry(GoogLeNet, 224, smallest=31),
    "googlenet_aux": Entry(partial(GoogLeNet, auxiliary=True), 224, sized=True, smallest=79),
    "squeezenet1_0": Entry(SqueezeNet, 224, smallest=21),
    "squeezenet1_0_simple": Entry(partial(SqueezeNet, bypass="simple"), 224, smallest=21),
    "squeezenet1_0_complex": Entry(partial(SqueezeNet, bypass="complex"), 224, smallest=21),
    "squeezenet1_1": Entry(partial(SqueezeNet, "1.1"), 224, smallest=17),
    "resnet18": Entry(partial(ResNetImageNet, (2, 2, 2, 2)), 224),
    "resnet34": Entry(partial(ResNetImageNet, (3, 4, 6, 3)), 224),
    "resnet50": Entry(partial(ResNetImageNet, (3, 4, 6, 3), bottleneck=True), 224),
    "resnet101": Entry(partial(ResNetImageNet, (3, 4, 23, 3), bottleneck=True), 224),
    "resnet152": Entry(partial(ResNetImageNet, (3, 8, 36, 3), bottleneck=True), 224),
    "densenet121": Entry(partial(DenseNet, (6, 12, 24, 16), 32, 64), 224, smallest=29),
    "densenet169": Entry(partial(DenseNet, (6, 12, 32, 32), 32, 64), 224, smallest=29),
    "densenet201": Entry(partial(DenseNet, (6, 12, 48, 32), 32, 64), 224, smallest=29),
    "densenet161": Entry(partial(DenseNet, (6, 12, 36, 24), 48, 96), 224, smallest=29),
    "inception_v3": Entry(InceptionV3, 299, smallest=75),
    "inception_v3_aux": Entry(partial(InceptionV3, auxiliary=True), 299, smallest=299),
    "nasnet_mobile": Entry(partial(NASNetA, 4, 44, 32), 224),
    "nasnet_large": Entry(partial(NASNetA, 6, 168, 96, skip=True), 331),
    **{f"shufflenet_g{g}": Entry(partial(ShuffleNet, g), 224) for g in STAGE2},
    **{
        f"shufflenet_g{g}_{percent:03d}": Entry(partial(ShuffleNet, g, percent / 100), 224)
        for g in STAGE2
        for percent in (25, 50, 150, 200)
    },
    "csp_pan_n": Entry(AnchorFreeDetector, 640, smallest=32, boxes=True),
    "csp_pan_s": Entry(partial(AnchorFreeDetector, 0.5), 640, smallest=32, boxes=True),
    "ssd_csp_n": Entry(SSDOnCSP, 320, smallest=32, boxes=True),
    "ssd300": Entry(SSD300, 300, smallest=268, boxes=True),
    "ion_csp_n": Entry(ion_on_csp, 320, smallest=32, boxes=True),
    "ion_vgg16": Entry(ion_on_vgg16, 600, smallest=64, boxes=True),
    "dsod300": Entry(DSOD, 300, smallest=264, boxes=True),
}


@checked_arguments
def build(name: str, *, in_channels: int | None = None, classes: int = 10, input_size: int | None = None) -> nn.Module:
    """Build a network of the zoo with fresh weights from torch's global generator.

    Args:
        name: of the network; `gossamer models` lists them.
        in_channels: of the images.
        classes: number of outputs; of detectors, kinds of objects.
        input_size: side of the square images, in pixels. By default, in_channels and input_size are those that the
            published counts refer to: 1 and 28 for the LeNets, 3 and 32 for the networks made for CIFAR, 3 and 224
            for most made for ImageNet.

    Returns:
        The network, in training mode.

    Raises:
        BadInput: for an unknown name, or a size that the network does not take.

    Example:
        >>> sum(p.numel() for p in build("lenet5").parameters())
        431080
    """
    if name not in ENTRIES:
        raise unknown("model", name, ENTRIES, listed="`gossamer models`")
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
    """Build a network of the zoo with fresh weights that fits the images and classes of a task.

    Args:
        name: of the network.
        task: data with images as the only input, and class labels, or boxes for a detector.

    Returns:
        The network, in training mode.

    Example:
        >>> import torch, gossamer
        >>> build_for("lenet300", gossamer.load_task("digits"))(torch.zeros(1, 1, 28, 28)).shape
        torch.Size([1, 10])
    """
    if (boxes := isinstance(task.metric, BoxMetric)) != (name in ENTRIES and ENTRIES[name].boxes):
        alike = ", ".join(one for one, entry in ENTRIES.items() if entry.boxes)
        kind = f"a detector, such as {alike}" if boxes else "a network that gives classes"
        raise BadInput(f"{name}: {task.name} needs {kind}")
    _, channels, height, width = task.example_inputs[0].shape
    if height != width:
        raise BadInput(f"{name}: the networks of the zoo need square images, {task.name} has {height}x{width}")
    return build(name, in_channels=channels, classes=len(task.classes), input_size=height)
