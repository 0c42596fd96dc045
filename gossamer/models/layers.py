"""Pieces that several families are made of."""

from torch import Tensor, nn


def conv_relu(in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    """Convolution with bias, ReLU."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel, stride, padding), nn.ReLU())


def vgg_stage(in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
    """`depth` convolutions of 3x3, each with its ReLU."""
    return nn.Sequential(
        *(
            layer
            for i in range(depth)
            for layer in conv_relu(in_channels if not i else out_channels, out_channels, 3, 1, 1)
        )
    )


def conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def pooled_side(side: int, kernel: int, stride: int) -> int:
    """Side of the map after a convolution or pool without padding that rounds down."""
    return (side - kernel) // stride + 1


class GlobalAveragePool(nn.Module):
    """The mean over all pixels, (N, C)."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.mean((2, 3))


def he_normal(model: nn.Module) -> None:
    """Weights of convolutions from He's normal distribution over outputs; biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
