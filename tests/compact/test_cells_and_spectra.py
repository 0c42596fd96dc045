"""Recurrent cells and Fourier transforms in `.gsr` graphs: saved, loaded without the class, equal outputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from patterns import Function
from torch import Tensor, nn

from gossamer.compact.reading import load
from gossamer.compact.writing import save


def steps(m: Any, x: Tensor) -> Tensor:
    state = m.cell(x[:, 0])
    for t in range(1, x.shape[1]):
        state = m.cell(x[:, t], state)
    return m.head(state[0] if isinstance(state, tuple) else state)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, "relu"])
def test_recurrent_cells(kind: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    cell = nn.RNNCell(6, 5, nonlinearity="relu") if kind == "relu" else kind(6, 5)
    check(Function(steps, cell=cell, head=nn.Linear(5, 2)).to(dtype), torch.randn(2, 3, 6, dtype=dtype), tmp_path)


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "fft": lambda x: torch.fft.fft(x).abs(),
    "rfft": lambda x: torch.fft.rfft(x).real + torch.fft.rfft(x).imag,
    "irfft": lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(x.flip(1))),
    "fft2": lambda x: torch.fft.fft2(x).angle(),
    "as numbers": lambda x: torch.view_as_real(torch.fft.ifft(torch.view_as_complex(x.unflatten(1, (32, 2))))),
    "stft": lambda x: torch.stft(x, 16, 8, window=torch.ones(16, dtype=x.dtype), return_complex=True).abs(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_spectra(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = Function(lambda m, x: TRANSFORMS[name](m.first(x)), first=nn.Linear(8, 64))
    check(model.to(dtype), torch.randn(2, 8, dtype=dtype), tmp_path)


def check(model: nn.Module, x: Tensor, folder: Path) -> None:
    model = model.eval()
    save(model, folder / "net.gsr", example_inputs=(x,))
    again = load(folder / "net.gsr")
    with torch.no_grad():
        for given in (x, torch.cat([x, x + 1])):
            torch.testing.assert_close(again(given), model(given))
