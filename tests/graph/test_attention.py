"""Attention as language models write it: few key heads, rotary positions, packed projections, experts."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from patterns import Function, randomized
from test_channels import EXACT, check, count
from torch import Tensor, nn

from gossamer.graph.groups import find_groups
from gossamer.methods.prune.channels import prune_channels

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
HEADS, KEY_HEADS, WIDTH = 8, 4, 4


class Attention(Function):
    """A forward with projections of `heads` query heads and `key_heads` key and value heads; the sizes are numbers."""

    def __init__(self, forward: Callable[..., Tensor], key_heads: int = HEADS) -> None:
        inner, keys = HEADS * WIDTH, key_heads * WIDTH
        layers = {"q": nn.Linear(6, inner), "k": nn.Linear(6, keys), "v": nn.Linear(6, keys), "o": nn.Linear(inner, 3)}
        super().__init__(forward, **layers)
        self.heads, self.key_heads, self.width, self.repeats = HEADS, key_heads, WIDTH, HEADS // key_heads
        self.register_buffer("frequencies", torch.tensor([0.9, 0.3]))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, positions, width)."""
        given: Any = self
        q = given.q(x).view(*x.shape[:2], self.heads, self.width).transpose(1, 2)
        k = given.k(x).view(*x.shape[:2], self.key_heads, self.width).transpose(1, 2)
        return q, k, given.v(x).view(*x.shape[:2], self.key_heads, self.width).transpose(1, 2)

    def join(self, values: Tensor) -> Tensor:
        """The heads in one row, projected."""
        given: Any = self
        out: Tensor = given.o(values.transpose(1, 2).flatten(2))
        return out


def fused(m: Attention, x: Tensor) -> Tensor:
    q, k, v = m.split(x)
    return m.join(F.scaled_dot_product_attention(q, k, v, scale=0.5, is_causal=True, enable_gqa=True))


def attend(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) / 2
    return m.join(scores.softmax(-1) @ v)


def interleaved(m: Attention, x: Tensor) -> Tensor:
    q, k, v = m.split(x)
    return attend(m, q, k.repeat_interleave(m.repeats, 1), v.repeat_interleave(m.repeats, 1))


def expanded(m: Attention, x: Tensor) -> Tensor:
    q, k, v = m.split(x)
    shape = (len(x), m.key_heads, m.repeats, x.shape[1], m.width)
    k, v = (t[:, :, None].expand(shape).reshape(len(x), m.key_heads * m.repeats, x.shape[1], m.width) for t in (k, v))
    return attend(m, q, k, v)


def in_groups(m: Attention, x: Tensor) -> Tensor:
    q, k, v = m.split(x)
    q = q.view(len(x), m.key_heads, m.repeats, x.shape[1], m.width)
    scores = torch.einsum("bgrtd,bgsd->bgrts", q, k) / 2
    out = torch.einsum("bgrts,bgsd->bgrtd", scores.softmax(-1), v)
    return m.join(out.reshape(len(x), m.heads, x.shape[1], m.width))


GROUPED = {"fused": fused, "repeat_interleave": interleaved, "expand": expanded, "einsum": in_groups}


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.slow
def test_grouped_query_attention_is_cut_by_heads_and_by_dimensions(name: str, heads: bool, dtype: torch.dtype) -> None:
    model, x = randomized(Attention(GROUPED[name], KEY_HEADS)).eval().to(dtype), X.to(dtype)
    result = prune_channels(model, x, 0.5, heads=heads)
    check(model, x, result)
    assert not result.skipped
    assert result.model.q.out_features == 2 * result.model.k.out_features == HEADS * WIDTH // 2
    assert count(result.model) < 0.53 * count(model)


def rotated(m: Attention, x: Tensor, turn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    q, k, v = m.split(x)
    angles = torch.arange(x.shape[1]).to(x)[:, None] * m.frequencies
    return attend(m, turn(q, angles.cos(), angles.sin()), turn(k, angles.cos(), angles.sin()), v)


def halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * torch.cat([cos, cos], -1) + torch.cat([-b, a], -1) * torch.cat([sin, sin], -1)


def strides(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def complex_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cos, sin)
    return torch.view_as_real(turned).flatten(-2)


def nothing_left(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    n = 2 * cos.shape[-1]
    return torch.cat([halves(x[..., :n], cos, sin), x[..., n:]], -1)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("turn", [halves, strides, pairs, complex_pairs, nothing_left])
def test_rotary_positions_are_cut_in_pairs(turn: Callable[..., Tensor], dtype: torch.dtype) -> None:
    model = randomized(Attention(lambda m, x: rotated(m, x, turn))).eval().to(dtype)
    result = prune_channels(model, X.to(dtype), 0.5)
    check(model, X.to(dtype), result)
    assert not result.skipped
    assert result.model.q.out_features == HEADS * WIDTH // 2
    assert result.model.frequencies.shape == (1,)


def test_packed_queries_keys_and_values_may_come_last() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).unflatten(-1, (m.heads, m.width, 3)).permute(4, 0, 2, 1, 3)
        out: Tensor = m.o(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2))
        return out

    model: Any = randomized(Function(forward, qkv=nn.Linear(6, 48), o=nn.Linear(16, 3)), dtype=torch.float32)
    model.heads, model.width = 2, 8
    result = prune_channels(model, X, 0.5)
    check(model, X, result)
    assert (result.model.qkv.out_features, result.model.o.in_features) == (24, 8)


class Parts(nn.Module):
    """One gate and two parts of the same size, as separable self-attention has them."""

    def __init__(self, by_slices: bool) -> None:
        super().__init__()
        self.size, self.by_slices, self.a, self.b = 16, by_slices, nn.Linear(6, 33), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.by_slices:
            gate, key, value = x[..., :1], x[..., 1 : 1 + self.size], x[..., 1 + self.size :]
        else:
            gate, key, value = x.split([1, self.size, self.size], -1)
        out: Tensor = self.b(value.relu() * (key * gate.softmax(1)).sum(1, keepdim=True))
        return out


@pytest.mark.parametrize("dtype", EXACT)
def test_one_channel_split_off_stays_and_the_others_are_cut(dtype: torch.dtype) -> None:
    model = randomized(Parts(by_slices=False)).eval().to(dtype)
    result = prune_channels(model, X.to(dtype), 0.5)
    check(model, X.to(dtype), result)
    assert (result.model.a.out_features, result.model.size) == (17, 8)


def test_one_channel_in_the_middle_fixes_the_whole_dimension() -> None:
    model = Function(lambda m, x: m.b(x.softmax(1) * m.a(x)[..., 3:4]), a=nn.Linear(6, 9), b=nn.Linear(6, 3)).eval()
    assert [g.reason for g in find_groups(model, X).groups if g.name == "a"] == ["picked at aten.slice in the network"]


class Experts(nn.Module):
    """A mixture of experts: rows are sorted by expert, and every run of rows meets its own matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate, self.head = nn.Linear(6, 32), nn.Linear(6, 4), nn.Linear(32, 5)
        self.up, self.down = (nn.Parameter(torch.randn(4, *shape) / 6) for shape in ((32, 48), (48, 32)))

    def forward(self, x: Tensor) -> Tensor:
        x, rows = self.embed(x).flatten(0, 1), x.flatten(0, 1)
        weight, expert = self.gate(rows).softmax(-1).max(-1, keepdim=True)
        order = expert[:, 0].argsort()
        ends = torch.histc(expert.float(), 4, 0, 3).cumsum(0).to(torch.int32)
        y = torch._grouped_mm(torch._grouped_mm(x[order], self.up, offs=ends).relu(), self.down, offs=ends)
        out: Tensor = self.head(x + y[order.argsort()] * weight)
        return out


def test_experts_are_cut_inside() -> None:
    model = randomized(Experts(), dtype=torch.float32)
    result = prune_channels(model, X, 0.5)
    assert result.proof is not None
    assert result.proof.max_relative < EXACT[torch.float32]
    assert result.model.up.shape == (4, 16, 24)
    assert result.model.down.shape == (4, 24, 16)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("groups", [1, 3])
def test_channels_in_the_place_of_pixels_pass_a_kernel_of_one(groups: int, dtype: torch.dtype) -> None:
    # Three branches are joined by a convolution over the branches: their channels lie where pixels would.
    def forward(m: Any, x: Tensor) -> Tensor:
        x = torch.stack([m.a(x), m.b(x), m.c(x)], 1)
        out: Tensor = m.head(m.join(x).sum(1))
        return out

    layers = {name: nn.Linear(6, 16) for name in "abc"} | {"head": nn.Linear(16, 3)}
    model = randomized(Function(forward, **layers, join=nn.Conv1d(3, 3, 1, groups=groups)), dtype=dtype)
    x = X[:, 0].to(dtype)
    result: Any = prune_channels(model, x, 0.5)
    check(model, x, result)
    assert [layer.out_features for layer in (result.model.a, result.model.b, result.model.c)] == [8, 8, 8]


def test_channels_in_the_place_of_pixels_stay_where_a_kernel_mixes_them() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        out: Tensor = m.head(m.join(m.a(x)[:, None])[:, 0])
        return out

    layers = {"a": nn.Linear(6, 16), "join": nn.Conv1d(1, 1, 3, padding=1), "head": nn.Linear(16, 3)}
    reasons = {g.name: g.reason for g in find_groups(Function(forward, **layers).eval(), X[:, 0]).groups}
    assert reasons["a"] == "aten.convolution in join works along this dimension"


class Packed(nn.Module):
    """One projection for all; where the keys begin is heads x width, of a configuration that counts heads first."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(layers=8, heads=HEADS, key_heads=KEY_HEADS)
        self.width = 16
        self.qkv = nn.Linear(6, (HEADS + 2 * KEY_HEADS) * self.width)
        self.o = nn.Linear(HEADS * self.width, 3)

    def forward(self, x: Tensor) -> Tensor:
        qkv, end, keys = self.qkv(x), self.config.heads * self.width, self.config.key_heads * self.width
        parts = qkv[..., :end], qkv[..., end : end + keys], qkv[..., end + keys :]
        q, k, v = (part.view(*x.shape[:2], -1, self.width).transpose(1, 2) for part in parts)
        values = F.scaled_dot_product_attention(q, k, v, scale=0.5, enable_gqa=True)
        out: Tensor = self.o(values.transpose(1, 2).flatten(2))
        return out


def test_of_several_numbers_that_explain_a_size_the_width_of_a_head_follows() -> None:
    model = randomized(Packed(), dtype=torch.float32)
    result: Any = prune_channels(model, X, 0.5)
    check(model, X, result)
    assert (result.model.width, result.model.config.heads, result.model.config.key_heads) == (8, HEADS, KEY_HEADS)
    assert not result.skipped


class Literal(nn.Module):
    """A width that stands in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.some, self.other = nn.Linear(6, 16), nn.Linear(16, 6), 8, 32

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).view(*x.shape[:2], 16).relu())
        return x + y


def test_what_nothing_helps_in_one_module_is_not_searched_for_in_the_next_of_its_class() -> None:
    model = randomized(nn.Sequential(*(Literal() for _ in range(4))), dtype=torch.float32)
    channels = find_groups(model, X)
    result = prune_channels(model, X, 0.5, channels=channels)
    assert sorted(result.skipped) == [f"{i}.a" for i in range(4)]
    assert channels.solver is not None
    one = find_groups(model[:1], X)
    prune_channels(model[:1], X, 0.5, channels=one)
    assert one.solver is not None
    assert channels.solver.tries <= one.solver.tries + 4
