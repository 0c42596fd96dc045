"""Tiny networks, one for each way in which channels get coupled. PATTERNS: factory and example inputs by name."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Function(nn.Module):
    """Named modules and a forward that uses them."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def conv(i: int, o: int, k: int = 3, **options: Any) -> nn.Module:
    """Convolution and batch norm that keep the size."""
    return nn.Sequential(nn.Conv2d(i, o, k, 1, k // 2, **options), nn.BatchNorm2d(o))


def squeeze_excite() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        scale = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1)))))
        return m.head((x * scale).mean((2, 3)))

    return Function(forward, a=conv(3, 12), down=nn.Conv2d(12, 4, 1), up=nn.Conv2d(4, 12, 1), head=nn.Linear(12, 5))


def concat() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(m.a(x)), F.relu(m.b(x)), x], 1)
        return m.head(F.relu(m.c(x)).mean((2, 3)))

    return Function(forward, a=conv(3, 8), b=conv(3, 6, 1), c=conv(17, 10), head=nn.Linear(10, 4))


def concat_split() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = torch.cat([m.a(x), m.b(x)], 1)
        left, right = x.chunk(2, 1)
        return m.head((F.relu(left) * torch.sigmoid(right)).mean((2, 3)))

    return Function(forward, a=conv(3, 12), b=conv(3, 4, 1), head=nn.Linear(8, 4))


def shuffle() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        left, right = x.chunk(2, 1)
        x = torch.cat([left, F.relu(m.b(right))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return m.head(F.relu(m.c(x)).mean((2, 3)))

    return Function(forward, a=conv(3, 16), b=conv(8, 8), c=conv(16, 6), head=nn.Linear(6, 4))


def module_shuffle() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.ChannelShuffle(4),
        nn.ReLU(),
        conv(16, 8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def grouped() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3)))

    return Function(forward, a=conv(3, 16), b=conv(16, 24, groups=4), head=nn.Linear(24, 4))


def depthwise() -> nn.Module:
    return nn.Sequential(
        conv(3, 12, 1), nn.ReLU6(), conv(12, 12, groups=12), nn.Hardswish(inplace=True), conv(12, 8, 1), nn.Flatten(),
        nn.Linear(8 * 36, 4),
    )  # fmt: skip


def depthwise_multiplier() -> nn.Module:
    return nn.Sequential(
        conv(3, 8, 1), conv(8, 24, groups=8), nn.ReLU(inplace=True), conv(24, 6, 1), nn.Flatten(), nn.Linear(216, 4)
    )


def dense() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        features = [F.relu(m.stem(x))]
        for layer in (m.a, m.b, m.c):
            features.append(layer(F.relu(torch.cat(features, 1))))
        return m.head(m.norm(torch.cat(features, 1)).mean((2, 3)))

    return Function(
        forward,
        stem=conv(3, 8),
        a=conv(8, 4),
        b=conv(12, 4),
        c=conv(16, 4),
        norm=nn.BatchNorm2d(20),
        head=nn.Linear(20, 4),
    )


class Attention(nn.Module):
    """Packed qkv, as most people write it: the inner width is taken from the residual one."""

    def __init__(self, dim: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.randn(2 * tokens - 1, heads))
        place = torch.arange(tokens)
        self.register_buffer("place", (place[:, None] - place[None]) + tokens - 1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * (c // self.num_heads) ** -0.5
        scores = scores + self.table[self.place.view(-1)].view(n, n, -1).permute(2, 0, 1)[None]
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class Transformer(nn.Module):
    """Patches, a class token and positions as loose parameters, two blocks."""

    def __init__(self, attention: Callable[[int], nn.Module], dim: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 3, 3)
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.place = nn.Parameter(torch.randn(1, 5, dim))
        self.attention = nn.ModuleList(attention(dim) for _ in range(2))
        self.norm1 = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.norm2 = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)) for _ in range(2)
        )
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        for attention, norm1, norm2, mlp in zip(self.attention, self.norm1, self.norm2, self.mlp):
            x = x + attention(norm1(x))
            x = x + mlp(norm2(x))
        return self.head(x[:, 0])


class TorchAttention(nn.Module):
    """nn.MultiheadAttention on itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(dim, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 8, 3), nn.GroupNorm(8, 8), nn.Flatten(),
        nn.Linear(32, 4),
    )  # fmt: skip


def layer_norm() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(108, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 12), nn.Linear(12, 4)
    )


def shared() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        for _ in range(3):
            x = F.relu(m.block(x))
        return m.head(x.mean((2, 3)))

    return Function(forward, stem=conv(3, 8), block=conv(8, 8), head=nn.Linear(8, 4))


def tied_embedding() -> nn.Module:
    embedding, head = nn.Embedding(11, 12), nn.Linear(12, 11, bias=False)
    head.weight = embedding.weight

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.tanh(m.hidden(m.embedding(x))))

    return Function(forward, embedding=embedding, hidden=nn.Linear(12, 12), head=head)


class Loose(nn.Module):
    """Weights that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(12, 3, 3, 3)), nn.Parameter(torch.randn(12, 4))
        self.scale = nn.Parameter(torch.randn(12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.w1) * self.scale)
        return x.mean((2, 3)) @ self.w2


def two_inputs() -> nn.Module:
    def forward(m: Any, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        both = F.relu(m.a(x)) + F.relu(m.b(z))
        return m.head(both), m.other(both)

    return Function(forward, a=nn.Linear(6, 10), b=nn.Linear(4, 10), head=nn.Linear(10, 3), other=nn.Linear(10, 2))


def dictionaries() -> nn.Module:
    def forward(m: Any, *, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        hidden = F.relu(m.a(x * scale))
        return {"out": m.head(hidden), "more": [m.other(hidden).sigmoid()]}

    return Function(forward, a=nn.Linear(6, 10), head=nn.Linear(10, 3), other=nn.Linear(10, 2))


def pixel_shuffle() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 24, 1), nn.PixelShuffle(2), nn.PReLU(6), nn.Conv2d(6, 2, 3)
    )


class Padded(nn.Module):
    """A shortcut whose new channels are zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = 3, 5
        self.a, self.b, self.c = conv(3, 8), conv(8, 16), conv(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(self.b(x) + F.pad(x, (0, 0, 0, 0, self.before, self.after)))
        return self.head(F.relu(x + self.c(x)).mean((2, 3)))


def in_place() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        x += m.b(x)
        x[:, :3] += m.c(x)
        return m.head(x.relu_().mean((2, 3)))

    return Function(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 3), head=nn.Linear(8, 4))


class Auxiliary(nn.Module):
    """A head that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 12), nn.Linear(12, 4)
        self.aux = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(8, 6, 1), nn.Flatten(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        out = self.head(F.relu(self.b(x)).mean((2, 3)))
        return (out, self.aux(x)) if self.training else out


class Baked(nn.Module):
    """Its forward knows its own sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.sizes = 12, (4, 8)
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(4, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)).view(-1, self.width)
        left, right = x.split(self.sizes, 1)
        return self.b(left) + self.c(right)


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, 2, groups=2), nn.InstanceNorm2d(12), nn.ReLU(),
        nn.ConvTranspose2d(12, 6, 2), nn.ReLU(), nn.Conv2d(6, 2, 1),
    )  # fmt: skip


def normalized() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(F.normalize(m.a(x), dim=1) * 3)

    return Function(forward, a=nn.Linear(6, 10), head=nn.Linear(10, 3))


def recurrent() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(F.relu(m.b(m.rnn(F.relu(m.a(x)))[0])))

    return Function(
        forward, a=nn.Linear(6, 10), rnn=nn.LSTM(10, 8, batch_first=True), b=nn.Linear(8, 12), head=nn.Linear(12, 3)
    )


IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))

PATTERNS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "squeeze_excite": (squeeze_excite, IMAGE),
    "concat": (concat, IMAGE),
    "concat_split": (concat_split, IMAGE),
    "shuffle": (shuffle, IMAGE),
    "module_shuffle": (module_shuffle, IMAGE),
    "grouped": (grouped, IMAGE),
    "depthwise": (depthwise, IMAGE),
    "depthwise_multiplier": (depthwise_multiplier, IMAGE),
    "dense": (dense, IMAGE),
    "packed_qkv": (lambda: Transformer(lambda dim: Attention(dim, 4, 5)), IMAGE),
    "torch_attention": (lambda: Transformer(TorchAttention), IMAGE),
    "group_norm": (group_norm, IMAGE),
    "layer_norm": (layer_norm, IMAGE),
    "shared": (shared, IMAGE),
    "tied_embedding": (tied_embedding, torch.arange(10).view(2, 5)),
    "loose": (Loose, IMAGE),
    "two_inputs": (two_inputs, (ROWS, ROWS[:, :4])),
    "dictionaries": (dictionaries, {"x": ROWS, "scale": 2.0}),
    "pixel_shuffle": (pixel_shuffle, IMAGE),
    "padded": (Padded, IMAGE),
    "in_place": (in_place, IMAGE),
    "auxiliary": (Auxiliary, IMAGE),
    "baked": (Baked, ROWS),
    "transposed": (transposed, IMAGE),
    "normalized": (normalized, ROWS),
    "recurrent": (recurrent, ROWS.view(1, 3, 6)),
}


def randomized(model: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """In eval mode, nothing constant, or a wrong cut would not be seen."""
    generator = torch.Generator().manual_seed(seed)
    model = model.to(dtype).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5)
                if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                    tensor.add_(1)
    return model


def doubled(inputs: Any, dtype: torch.dtype = torch.float64) -> Any:
    """Floating point inputs in double precision, or another one."""
    from torch.utils._pytree import tree_map_only

    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)


def pattern(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any]:
    """A network and its inputs."""
    torch.manual_seed(seed)
    factory, inputs = PATTERNS[name]
    return randomized(factory(), seed, dtype), doubled(inputs, dtype)
