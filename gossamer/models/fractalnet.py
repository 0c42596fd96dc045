"""FractalNet with drop-path and anytime columns (Larsson et al. 2017, arXiv:1605.07648)."""

import torch
from torch import Tensor, nn

from gossamer.models.layers import GlobalAveragePool, he_normal

GLOBAL = 0.5


def conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution with bias, BatchNorm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def join_columns(paths: list[Tensor], drop: float) -> Tensor:
    """The mean of the paths that are left when each is dropped with probability `drop`; never all: one is drawn."""
    if drop:
        keep = (torch.rand(len(paths)) >= drop).tolist()
        if not any(keep):
            keep[int(torch.randint(len(paths), ()))] = True
        paths = [path for path, kept in zip(paths, keep) if kept]
    return sum(paths[1:], paths[0]) / len(paths)


class FractalBlock(nn.Module):
    """`columns` chains of 1, 2, 4 ... convolutions over the same stretch; those that end at one place are joined there.

    The convolutions follow f_(C+1)(z) = [f_C(f_C(z))] join conv(z), with neighbouring joins made one.
    """

    def __init__(self, in_channels: int, out_channels: int, columns: int) -> None:
        super().__init__()
        self.columns = nn.ModuleList(
            nn.ModuleList(conv_bn_relu(out_channels if i else in_channels, out_channels) for i in range(2**number))
            for number in range(columns)
        )

    def forward(self, x_NCHW: Tensor, drop: float = 0.0) -> Tensor:
        """drop: the probability with which each path into a join is dropped."""
        steps = len(self.columns[-1])  # type: ignore[arg-type]
        state = [x_NCHW] * len(self.columns)
        for step in range(1, steps + 1):
            ending = [c for c in range(len(self.columns)) if step % (steps >> c) == 0]
            # column c has done step / (steps / 2**c) convolutions when this one ends
            paths = [self.columns[c][step // (steps >> c) - 1](state[c]) for c in ending]  # type: ignore[index]
            joined = join_columns(paths, drop)
            for c in ending:
                state[c] = joined
        return state[-1]


class FractalNet(nn.Module):
    """Blocks of `widths` channels, each followed by dropout and a 2x2 max-pool that rounds up; one linear layer.

    Training draws for each batch, with equal chances, either one column for the whole network or local drop-path with
    probability `drop_path` at every join. 0 turns both off. Dropout rises from 0 in the first to `dropout` in the last
    block.
    """

    def __init__(
        self,
        columns: int,
        widths: tuple[int, ...] = (16, 32, 64, 128, 128),
        *,
        drop_path: float = 0.15,
        dropout: float = 0.4,
        in_channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        channels = [in_channels, *widths]
        self.blocks = nn.ModuleList(FractalBlock(a, b, columns) for a, b in zip(channels, widths))
        self.dropouts = nn.ModuleList(nn.Dropout(dropout * i / max(len(widths) - 1, 1)) for i in range(len(widths)))
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.fc = nn.Linear(widths[-1], classes)
        he_normal(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        drop = self.drop_path if self.training else 0.0
        if drop and float(torch.rand(())) < GLOBAL:
            columns = len(self.blocks[0].columns)  # type: ignore[arg-type]
            return self.column(int(torch.randint(columns, ())))(x_NCHW)  # type: ignore[no-any-return]
        for block, dropout in zip(self.blocks, self.dropouts):
            x_NCHW = self.pool(dropout(block(x_NCHW, drop)))
        return self.fc(x_NCHW.mean((2, 3)))  # type: ignore[no-any-return]

    def column(self, number: int) -> nn.Sequential:
        """A plain network of one column, 0 the shallowest, on the same parameters: its answer at 2**number convolutions
        per block."""
        layers: list[nn.Module] = []
        for block, dropout in zip(self.blocks, self.dropouts):
            layers += [*block.columns[number], dropout, self.pool]  # type: ignore[index]
        network = nn.Sequential(*layers, GlobalAveragePool(), self.fc)
        # Not train(): that would also switch the layers that both share, some of which may be frozen.
        network.training = self.training
        return network
