"""Network in Network (Lin et al. 2014, arXiv:1312.4400), in the sizes that its authors published for Caffe."""

from torch import Tensor, nn

from gossamer.models.layers import conv_relu, he_normal


def mlpconv(in_channels: int, widths: tuple[int, int, int], kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution and two 1x1 convolutions, each with ReLU: a small perceptron at every pixel.

    Convolutions with a stride have no padding, others keep the size of the map.
    """
    padding = kernel // 2 if stride == 1 else 0
    first = conv_relu(in_channels, widths[0], kernel, stride, padding)
    return nn.Sequential(*first, *conv_relu(widths[0], widths[1], 1), *conv_relu(widths[1], widths[2], 1))


class NIN(nn.Module):
    """Three mlpconv blocks for 32x32 images; the classes are the means of the last maps: no linear layer.

    `widths` are the outputs of the first block; the variant called all-192 has 192 there as everywhere else.
    """

    def __init__(
        self, widths: tuple[int, int, int] = (192, 160, 96), *, in_channels: int = 3, classes: int = 10
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            mlpconv(in_channels, widths, 5),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Dropout(0.5),
            mlpconv(widths[2], (192, 192, 192), 5),
            nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.Dropout(0.5),
            mlpconv(192, (192, 192, classes), 3),
        )
        he_normal(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.features(x_NCHW).mean((2, 3))  # type: ignore[no-any-return]


class NINImageNet(nn.Module):
    """Four mlpconv blocks for ImageNet, 11x11, 5x5, 3x3 and 3x3; the classes are the means of the last maps."""

    def __init__(self, *, in_channels: int = 3, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            mlpconv(in_channels, (96, 96, 96), 11, 4),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            mlpconv(96, (256, 256, 256), 5),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            mlpconv(256, (384, 384, 384), 3),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Dropout(0.5),
            mlpconv(384, (1024, 1024, classes), 3),
        )
        he_normal(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.features(x_NCHW).mean((2, 3))  # type: ignore[no-any-return]
