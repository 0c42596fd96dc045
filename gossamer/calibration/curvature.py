"""Derivatives of the loss by weights: gradients, diagonals of the Hessian, and rows of the Gauss-Newton matrix.

The Gauss-Newton matrix is J^T H J, with J the derivatives of the outputs by the weights and H the Hessian of the loss
by the outputs. With H = S S^T, one backward run for each column s of S gives J^T s, and the matrix is the sum of
(J^T s)(J^T s)^T. All second derivatives are means over samples, of a loss that is itself a mean over a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import Layer, input_rows, output_rows, sample_chunks
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.batches import Model, inputs_and_target
from gossamer.core.placement import evaluating, place, place_whole
from gossamer.errors import BadInput, GossamerError, own_error, unknown

Loss = Callable[[Model, Any], Tensor]
Use = tuple[str, Tensor, Tensor]
Curvature = Literal["gauss_newton", "fisher", "exact"]

# One run of the network backwards for every weight: beyond this many nobody waits for it.
EXACT_WEIGHTS = 20_000


def summed_gradients(
    model: nn.Module, loss: Loss, batches: Iterable[Any], weights: Mapping[str, Tensor], *, squared: bool = False
) -> tuple[dict[str, Tensor], int]:
    """The sum over batches of the gradients of each one's loss by these weights of the model, or of their squares; and
    how many batches there were. The model runs in the mode that it is in; what a run does not use counts nothing.
    Raises BadInput where there is no batch."""
    sums, count = {name: torch.zeros_like(w, requires_grad=False) for name, w in weights.items()}, 0
    for batch in batches:
        value = loss(model, place_whole(model, batch))
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        for total, g in zip(sums.values(), gradients):
            if g is not None:
                total += g.abs().square() if squared else g
        count += 1
    if not count:
        raise BadInput("gradients of the loss need at least one batch of labelled training data, got none")
    return sums, count


def diagonal(
    model: nn.Module, loss: Loss, batches: Iterable[Any], layers: Sequence[str], kind: str
) -> dict[str, Tensor]:
    """d2 loss / dw2 of every layer's weights, by layer, each of its weight's shape. Raises BadInput.

    "gauss_newton": sum_c (J^T s_c)^2 with J the outputs' derivatives and s_c s_c^T summing to the loss's Hessian by the
    outputs: what LeCun's recursion approximates, exact where the outputs are linear in the weights. One run backwards
    for each output. "fisher": the mean of squared gradients, one run backwards. "exact": one for each weight. A layer
    that is used several times counts the sum over its uses.
    """
    match kind:
        case "gauss_newton":
            return _squares(model, batches, layers, lambda batch, z: output_factors(loss, batch, z))
        case "fisher":
            return _squares(model, batches, layers, lambda batch, z: _own_gradient(loss, batch, z))
        case "exact":
            return exact_diagonal(model, loss, batches, layers)
        case _:
            raise unknown("curvature", kind, get_args(Curvature))


def output_factors(loss: Loss, batch: Any, z: Tensor) -> list[Tensor]:
    """Cotangents s_c of the outputs z (N, C), each (N, C), with sum_c s_c s_c^T = each sample's Hessian of the loss."""
    if z.dim() != 2:
        raise BadInput(
            f"curvature 'gauss_newton' needs outputs of shape (samples, classes), got {tuple(z.shape)}; use 'fisher'"
        )
    z = z.detach().requires_grad_()
    # The loss couples samples only through its mean, so d2 loss / dz2 is one C x C block for each sample: C backward
    # runs through the loss alone give all blocks.
    [slope] = torch.autograd.grad(_loss_at(loss, batch, z), z, create_graph=True)
    if not slope.requires_grad:
        raise BadInput("curvature 'gauss_newton' needs a loss that is curved in the outputs; use 'fisher'")
    rows = [torch.autograd.grad(slope[:, c].sum(), z, retain_graph=True)[0] for c in range(z.shape[1])]
    # The loss is a mean over the batch, so that of one sample is len(z) times as curved. The root of the Hessian comes
    # from its eigenvectors; rounding may make an eigenvalue slightly negative.
    values, vectors = torch.linalg.eigh(len(z) * torch.stack(rows, 1).double())
    factors = vectors * values.clamp(min=0).sqrt()[:, None]
    # Cross entropy has C - 1 directions, squared error C: a column of zeros would cost a backward run for nothing.
    return [s for s in factors.to(z.dtype).unbind(2) if bool(s.any())]


def _own_gradient(loss: Loss, batch: Any, z: Tensor) -> list[Tensor]:
    # The empirical Fisher: the gradient of the loss itself is the only cotangent.
    z = z.detach().requires_grad_()
    return [len(z) * torch.autograd.grad(_loss_at(loss, batch, z), z)[0]]


def _loss_at(loss: Loss, batch: Any, z: Tensor) -> Tensor:
    """The loss of outputs of eval mode. Raises BadInput where it needs others, such as the losses that detectors give
    in train mode."""
    try:
        return loss(lambda *_: z, batch)
    except GossamerError:
        raise
    except Exception as error:
        raise BadInput(
            "this curvature needs a loss that is a function of what the network gives in eval mode, and the task's "
            f"fails on that: {own_error(error)}; use one that needs gradients by weights alone"
        ) from error


def _squares(
    model: nn.Module, batches: Iterable[Any], layers: Sequence[str], cotangents: Callable[[Any, Tensor], list[Tensor]]
) -> dict[str, Tensor]:
    sums = {name: torch.zeros_like(effective_weight(model, f"{name}.weight")) for name in layers}
    samples = 0
    for batch, z, uses in _runs(model, batches, layers):
        samples += len(z)
        for cotangent in cotangents(batch, z):
            for name, x, g in _backward(z, uses, cotangent):
                layer: Any = model.get_submodule(name)
                sums[name] += squared_gradients(layer, x, g)
    return {name: total / samples for name, total in sums.items()}


def squared_gradients(layer: Layer, x: Tensor, g: Tensor) -> Tensor:
    """Sum over the samples of each one's squared gradient by the weights, shape as the weight.

    x: the layer's input; g: the gradients by its output.
    """
    total = torch.zeros_like(layer.weight, requires_grad=False)
    for part_x, part_g in sample_chunks(layer, x, g):
        rows_x, rows_g = input_rows(layer, part_x), output_rows(layer, part_g)
        if rows_x.shape[2] == 1:  # one position: the square of a product is the product of squares
            found = rows_g[:, :, 0].square().permute(1, 2, 0) @ rows_x[:, :, 0].square().transpose(0, 1)
            total += found.reshape_as(total)
        else:
            # Gradients of one sample are summed over positions before they are squared: shared weights are one weight.
            for one_x, one_g in zip(rows_x, rows_g):
                total += (one_g.mT @ one_x).square().reshape_as(total)
    return total


def sample_gradients(layer: Layer, x: Tensor, g: Tensor) -> Tensor:
    """Each sample's gradient by the weights, shape (samples, number of weights)."""
    # (samples, groups, O / groups, D): flattened, in the order of `weight.flatten()`.
    return (output_rows(layer, g).mT @ input_rows(layer, x)).flatten(1)


def gauss_newton_rows(model: nn.Module, loss: Loss, batches: Iterable[Any], layers: Sequence[str]) -> Iterator[Tensor]:
    """Rows X (samples, number of weights of all layers), float64; the mean over samples of all X^T X is the
    Gauss-Newton matrix. Weights run layer by layer, each as `weight.flatten()`."""
    for batch, z, uses in _runs(model, batches, layers):
        for cotangent in output_factors(loss, batch, z):
            found: dict[str, Tensor] = {}
            for name, x, g in _backward(z, uses, cotangent):
                layer: Any = model.get_submodule(name)
                found[name] = sample_gradients(layer, x, g).double() + found.get(name, 0.0)
            yield torch.cat([found[name] for name in layers], 1)


def exact_diagonal(model: nn.Module, loss: Loss, batches: Iterable[Any], layers: Sequence[str]) -> dict[str, Tensor]:
    """The diagonal of the whole Hessian, by differentiating every component of the gradient."""
    raw = weights_of(model)
    weights = {name: raw[f"{name}.weight"] for name in layers}
    count = sum(w.numel() for w in weights.values())
    if count > EXACT_WEIGHTS:
        raise BadInput(
            f"curvature 'exact' takes one run backwards for each of {count:,} weights; the limit is {EXACT_WEIGHTS:,}: "
            "use 'gauss_newton', or choose fewer layers"
        )
    sums = {name: torch.zeros_like(w, requires_grad=False) for name, w in weights.items()}
    samples = 0
    with evaluating(model), torch.enable_grad():
        for batch in batches:
            size = len(inputs_and_target(batch)[0][0])
            samples += size
            placed = place_whole(model, batch)
            gradients = torch.autograd.grad(loss(model, placed), list(weights.values()), create_graph=True)
            # Row k of the Hessian is the gradient of component k of the gradient. Entry k of it is on the diagonal.
            for (name, w), g in zip(weights.items(), gradients):
                rows = [
                    torch.autograd.grad(one, w, retain_graph=True)[0].flatten()[k] for k, one in enumerate(g.flatten())
                ]
                # The loss is a mean over its batch: weighted by the size, batches of all sizes count by their samples.
                sums[name] += size * torch.stack(rows).reshape_as(w)
    return {name: total / samples for name, total in sums.items()}


def _runs(model: nn.Module, batches: Iterable[Any], layers: Sequence[str]) -> Iterator[tuple[Any, Tensor, list[Use]]]:
    """(batch, outputs, uses of the layers as (name, input, output)) for every batch."""
    empty = True
    for batch in batches:
        empty = False
        batch = _placed(model, batch)
        with evaluating(model), torch.enable_grad(), _uses(model, layers) as uses:
            z = model(*batch[0])
        if not isinstance(z, Tensor):
            raise BadInput(f"this curvature needs a network that gives one tensor, got {type(z).__name__}")
        yield batch, z, uses
    if empty:
        raise BadInput("curvature needs at least one batch of labelled data, got none")


def _placed(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], Any]:
    """(inputs, target) on the model's device."""
    inputs, target = place(model, batch), inputs_and_target(batch)[1]
    device = next((x.device for x in inputs if isinstance(x, Tensor)), torch.device("cpu"))
    return inputs, target.to(device) if isinstance(target, Tensor) else target


@contextmanager
def _uses(model: nn.Module, layers: Sequence[str]) -> Iterator[list[Use]]:
    """Every call of the layers: name, input, output."""
    uses: list[Use] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            # With frozen weights before it, an output needs no gradient; here one is asked for.
            output = output if output.requires_grad else output.requires_grad_()
            uses.append((name, inputs[0].detach(), output))
            # A copy goes on: an operation in place would make `output` the result of that operation.
            return output.clone()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in layers]
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def _backward(z: Tensor, uses: list[Use], cotangent: Tensor) -> Iterator[Use]:
    """(layer, its input, the gradient by its output) for every use."""
    outputs = [output for _, _, output in uses]
    gradients = torch.autograd.grad(z, outputs, cotangent, retain_graph=True, allow_unused=True)
    for (name, x, output), g in zip(uses, gradients):
        yield name, x, torch.zeros_like(output) if g is None else g
