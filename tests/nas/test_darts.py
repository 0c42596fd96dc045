"""DARTS: the supernet of cells, its training, and the cells that are read from it."""

from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer.core.metrics import Top1
from gossamer.core.progress import Quiet
from gossamer.errors import BadInput, Diverged
from gossamer.nas import SEARCHERS, CellSpace, DartsSearch, Genes, MobileSpace, SearchPlan, search
from gossamer.nas.cells import CellNetwork, cell_operation
from gossamer.nas.darts import WINDOW, Looks, RelaxedTraining, train_supernet
from gossamer.nas.decisions import Decisions
from gossamer.nas.searchers.darts import drawn, strongest
from gossamer.nas.supernet import MixedOperations, Supernet

NAMES = ("same", "conv3", "max")


class ThreeOperations(CellSpace):
    """Cells of few operations."""

    operations: ClassVar[tuple[str, ...]] = NAMES


def images(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Two classes: stripes along or across."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(4):
        y = torch.randint(2, (16,), generator=generator)
        stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(8, 8)
        x = torch.where(y[:, None, None] == 1, stripes, stripes.T) + torch.randn(16, 8, 8, generator=generator) / 2
        found.append((x[:, None], y))
    return found


def striped() -> gossamer.Task:
    return gossamer.Task.from_loaders(images(0), images(1), name="stripes")


def one_hot(supernet: Supernet, space: CellSpace, genes: Genes) -> None:
    """All weight on the operations and edges of one network."""
    for cell, number in zip(space.decoded(genes), (0, 2)):
        operations, edges = supernet.architecture()[number : number + 2]
        with torch.no_grad():
            operations.fill_(0)
            edges.fill_(-1e4)
            first = 0
            for block, (a, one, b, other) in enumerate(cell):
                for state, name in ((a, one), (b, other)):
                    operations[first + state, space.operations.index(name)] = 1e4
                    edges[first + state] = 0
                first += block + 2


def channels_of(results: list[int], width: int) -> list[int]:
    return [channel for result in results for channel in range(result * width, (result + 1) * width)]


def fill(small: nn.Module, large: nn.Module, channels: list[int]) -> None:
    """The weights of a projection, of some of its input channels."""
    for tensor, whole in zip(small.state_dict().values(), large.state_dict().values(), strict=True):
        tensor.copy_(whole[:, channels] if whole.dim() == 4 else whole)


def test_with_all_weight_on_one_network_the_supernet_computes_what_that_network_computes() -> None:
    space = ThreeOperations(channels=1, classes=3, blocks=3, filters=2, stages=2)
    genes = space.encoded(
        ((0, "conv3", 1, "same"), (0, "same", 2, "conv3"), (1, "conv3", 2, "same")),
        ((0, "conv3", 1, "conv3"), (1, "same", 2, "conv3"), (0, "conv3", 1, "same")),
    )
    torch.manual_seed(0)
    supernet, network = Supernet(space, parts=1).eval(), space.build(genes).eval()
    assert isinstance(network, CellNetwork)
    one_hot(supernet, space, genes)
    fill(network.stem, supernet.stem, [0])
    before = now = [0, 1]  # channels of the supernet's that the network has, too: of the stem, all
    for cell, relaxed in zip(network.cells, supernet.cells, strict=True):
        for number, (a, one, b, other) in enumerate(space.decoded(genes)[int(relaxed.reduction)]):
            first = sum(block + 2 for block in range(number))
            for half, (state, name) in enumerate(((a, one), (b, other))):
                known = relaxed.edges[first + state].operations[NAMES.index(name)]
                cell.operations[2 * number + half].load_state_dict(known.state_dict())
        fill(cell.current, relaxed.current, now)
        fill(cell.previous, relaxed.previous, before)
        before, now = now, channels_of([state - 2 for state in cell.unused], relaxed.out_channels // space.blocks)
    network.fc.weight.data, network.fc.bias.data = supernet.fc.weight.data[:, now], supernet.fc.bias.data
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(supernet(x), network(x), rtol=1e-4, atol=1e-5)


def test_a_part_of_the_channels_goes_through_the_operations_and_all_are_shuffled() -> None:
    mixed = MixedOperations(("same", "conv1"), 8, 1, parts=4).eval()
    x = torch.arange(8.0).view(1, 8, 1, 1)
    out = mixed(x, torch.tensor([3.0, 0.0])).flatten().tolist()
    # Channels 0 and 1 are tripled; of four groups of two, the first ones of all come first.
    assert out == [0.0, 2.0, 4.0, 6.0, 3.0, 3.0, 5.0, 7.0]
    strided = MixedOperations(("same", "conv1"), 8, 2, parts=4)
    assert strided(torch.zeros(2, 8, 7, 7), torch.ones(2)).shape == (2, 8, 4, 4)


def test_the_strongest_cell_by_hand() -> None:
    operations = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.9, 0.05, 0.05]])
    edges = [np.array([0.5, 0.5]), np.array([0.5, 0.26, 0.24])]
    # Second block: 0.5 x 0.8 of conv3, 0.26 x 0.7 of max, 0.24 x 0.9 of same: the first and the last.
    assert strongest(operations, edges, NAMES, None) == [(0, "conv3", 1, "same"), (0, "conv3", 2, "same")]
    # Both skip connections are forbidden: then conv3 is next on the edge of the first, max on another of the second.
    assert strongest(operations, edges, NAMES, 0) == [(0, "conv3", 1, "conv3"), (0, "conv3", 1, "max")]


def test_of_too_many_skip_connections_the_weakest_are_replaced() -> None:
    operations = np.array([[0.9, 0.06, 0.04]] * 2 + [[0.8, 0.04, 0.16], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    edges = [np.array([0.5, 0.5]), np.array([0.4, 0.35, 0.25])]
    assert strongest(operations, edges, NAMES, None) == [(0, "same", 1, "same"), (0, "same", 1, "same")]
    # State 1 of the second block falls to 0.35 x 0.2, so state 2 is taken; then state 0 falls to 0.4 x 0.16.
    assert strongest(operations, edges, NAMES, 2) == [(0, "same", 1, "same"), (1, "conv3", 2, "conv3")]


def test_cells_are_drawn_by_their_shares_with_few_skip_connections() -> None:
    rng = Random(0)
    operations = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.4, 0.3, 0.3], [0.4, 0.3, 0.3]])
    edges = [np.array([0.5, 0.5]), np.array([0.8, 0.15, 0.05])]
    cells = [drawn(operations, edges, NAMES, None, rng) for _ in range(2000)]
    assert all(a < b for cell in cells for a, _, b, _ in cell)
    assert np.mean([cell[0][1] == "same" for cell in cells]) == pytest.approx(0.8, abs=0.03)
    # State 0 first: 0.8; or second, after 1 or 2: 0.15 x 0.8 / 0.85 + 0.05 x 0.8 / 0.95.
    taken = float(np.mean([cell[1][0] == 0 for cell in cells]))
    assert taken == pytest.approx(0.8 + 0.15 * 0.8 / 0.85 + 0.05 * 0.8 / 0.95, abs=0.02)
    few = [drawn(operations, edges, NAMES, 1, rng) for _ in range(200)]
    assert max(str(cell).count("same") for cell in few) == 1
    sure = np.array([[1.0, 0.0, 0.0]] * 5)
    assert "same" not in str(drawn(sure, edges, NAMES, 0, rng))


class Toy(nn.Module):
    """The target is a linear function; beside it, a mixture offers noise and nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(4, 2), nn.Linear(4, 2)
        self.mix = nn.Parameter(torch.zeros(3))

    def architecture(self) -> list[nn.Parameter]:
        return [self.mix]

    def weights(self) -> list[nn.Parameter]:
        return [*self.linear.parameters(), *self.other.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        shares = self.mix.softmax(0)
        return shares[0] * self.other(torch.randn(x.shape)) + shares[1] * self.linear(x) + shares[2] * torch.zeros(2)


def batches_of_a_line() -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(4, 32, 4, generator=torch.Generator().manual_seed(0))
    return [(one, (one[:, 0] > 0).long()) for one in x]


LINE = batches_of_a_line()


@pytest.mark.parametrize("order", [1, 2])
def test_the_operation_that_is_best_gets_the_weight(order: int) -> None:
    torch.manual_seed(0)
    model = Toy()
    training = RelaxedTraining(model, gossamer.Task.from_loaders(LINE, LINE), steps=100, lr=0.1, order=order)
    for number in range(100):
        training.step(LINE[number % 2], LINE[2 + number % 2])
        if number == 29:
            assert torch.equal(model.mix, torch.zeros(3))  # the weights start alone
    shares = model.mix.softmax(0)
    assert shares[1] > 0.6 and shares[1] > 2 * max(shares[0], shares[2])


def test_the_gradient_of_a_training_is_that_of_the_unrolled_step() -> None:
    torch.manual_seed(0)
    space = ThreeOperations(channels=1, classes=2, blocks=2, filters=2, stages=1)
    model, task = Supernet(space).double(), striped()
    train, (x, y) = ((x.double(), y) for x, y in (images(0)[0], images(1)[0]))
    training = RelaxedTraining(model, task, steps=9, lr=0.1, order=2)
    found = training.gradient(train, (x, y), 0.05)
    own = dict(zip(training.names, training.weights))
    loss = task.loss(model, train)
    slopes = torch.autograd.grad(loss, list(own.values()), create_graph=True, materialize_grads=True)
    moved = {name: w - 0.05 * slope for (name, w), slope in zip(own.items(), slopes)}
    loss = nn.functional.cross_entropy(torch.func.functional_call(model, moved, (x,)), y)
    expected = torch.autograd.grad(loss, training.architecture, materialize_grads=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)
    assert found[0].abs().max() > 0 and not found[2].abs().max()  # one stage has no reduction cell


def test_a_search_ends_before_the_curvature_rises() -> None:
    looks = Looks()
    for number in range(2 * WINDOW):
        assert looks.before_the_rise is None
        looks.add(1.0 if number < WINDOW else 1.4, [torch.full((2,), float(number))])
    before = looks.before_the_rise  # 1 / 1.4 is below 0.75
    assert before is not None and before[0].tolist() == [WINDOW - 1.0] * 2
    for eigenvalues in ([1.0] * 5 + [1.3] * 5, [-1.0] * 5 + [1.0] * 5, [2.0] * 5 + [1.0] * 5):
        assert Looks(eigenvalues, [[torch.zeros(1)]] * 10).before_the_rise is None


def test_a_training_that_overfits_goes_back_to_its_architecture_before(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([1.0] * WINDOW + [2.0] * WINDOW)
    monkeypatch.setattr("gossamer.nas.darts.largest_eigenvalue", lambda *rest: next(values))
    model = Toy()
    training = RelaxedTraining(model, gossamer.Task.from_loaders(LINE, LINE), steps=1000, lr=0.1)
    training.done, seen = 300, []
    for _ in range(400):
        training.step(LINE[0], LINE[1])
        if not training.done % 20:
            seen.append(model.mix.detach().clone())
        if training.overfits(LINE[1]):
            break
    assert len(seen) == 2 * WINDOW and torch.equal(model.mix, seen[WINDOW - 1])


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    x, y = LINE[0]
    training = RelaxedTraining(Toy(), gossamer.Task.from_loaders(LINE, LINE), steps=3, lr=0.1)
    with pytest.raises(Diverged, match="lower the learning rate"):
        training.step((x * float("nan"), y), (x, y))


class Noise(nn.Module):
    """Numbers that have nothing to do with the input."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x[:, :, :: self.stride, :: self.stride])


@pytest.mark.slow
def test_a_planted_operation_is_found_in_a_supernet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools and skip connections give noise: only the convolutions let anything through."""

    def planted(name: str, channels: int, stride: int) -> nn.Module:
        return cell_operation(name, channels, stride) if name == "conv3" else Noise(stride)

    monkeypatch.setattr("gossamer.nas.supernet.cell_operation", planted)
    space = ThreeOperations(channels=1, classes=2, blocks=1, filters=4, stages=2)
    found = train_supernet(space, striped(), epochs=15, lr=0.4, context=gossamer.Context())
    again = train_supernet(space, striped(), epochs=15, lr=0.4, context=gossamer.Context())
    assert found == again and found["steps"] == 60
    searcher = DartsSearch(space)
    searcher.prepare(found)
    best = space.words(searcher.ask().genes)
    assert best == "normal 0:conv3+1:conv3; reduction 0:conv3+1:conv3"


def test_a_budget_of_time_shortens_the_supernet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.nas.darts._timed", lambda *rest: 6.0)
    space = ThreeOperations(channels=1, classes=2, blocks=1, filters=4, stages=1)
    found = train_supernet(space, striped(), epochs=50, lr=0.1, context=gossamer.Context(), minutes=1.0)
    assert found["steps"] == 5  # in half a minute


def result_of(step: Any) -> dict[str, Any]:
    if step.kind == "supernet":
        rows = [[[0.0, 2.0, 1.0]] * 5, [0.0] * 5] * 2
        return {"genes": [], "architecture": rows, "seconds": 100.0, "order": step.order}
    if step.kind == "measure":
        costs = {"params": 9.0, "macs": float(sum(step.genes)), "activation_bytes": 1.0, "latency_ms": 1.0}
        return {"genes": list(step.genes), "costs": costs, "words": "", "seconds": 1.0}
    return {"genes": list(step.genes), "epochs": step.epochs, "value": 0.5, "seconds": 10.0}


@pytest.mark.parametrize(("searcher", "order"), [("darts", 1), ("darts2", 2)])
def test_the_supernet_comes_first_and_its_time_counts(searcher: str, order: int) -> None:
    space = ThreeOperations(channels=1, classes=2, blocks=2, filters=4)
    plan, results = SearchPlan(searcher=searcher, trials=6, concurrent=2), dict[str, Any]()
    about: dict[str, Any] = {"minutes": None, "metric": Top1(), "progress": Quiet(), "results": results.get}
    decisions = Decisions(SEARCHERS[searcher](space), plan, (3, 15), limits={"macs": 14.0}, **about)
    [first] = decisions.ready()
    assert (first.kind, first.epochs, first.order) == ("supernet", 3, order)
    while (ready := decisions.ready()) or not decisions.finished:
        results[ready[0].key] = result_of(ready[0])
    trained = [one for one in decisions.found if one.trained]
    assert len({one.genes for one in trained}) == 6  # the strongest, then others that are drawn
    assert decisions.found[0].genes == space.encoded(*[((0, "conv3", 1, "conv3"),) * 2] * 2)
    assert all(one.trained == (one.costs["macs"] <= 14) for one in decisions.found)
    assert decisions.seconds == 100 + sum(one.seconds for one in decisions.found)
    again = Decisions(SEARCHERS[searcher](space), plan, (3, 15), limits={"macs": 14.0}, **about)
    assert again.ready() == [] and again.found == decisions.found


def test_other_spaces_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    space, plan = MobileSpace(channels=1, classes=2, side=8), SearchPlan(searcher="darts")
    with pytest.raises(BadInput, match=r"darts relaxes .*; MobileSpace.* take CellSpace") as caught:
        search(space, striped(), goal=gossamer.Goal(), plan=plan, out=tmp_path / "x")
    assert "--space cells" in str(caught.value.shell) and not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_search_by_darts_delivers_a_network_and_a_finished_one_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = ThreeOperations(channels=1, classes=2, blocks=1, filters=4, stages=2)
    goal, plan = gossamer.Goal(params=100_000), SearchPlan(searcher="darts2", trials=2, epochs=1, final_epochs=2)
    found = search(space, striped(), goal=goal, plan=plan, out=tmp_path, verbose=False)
    assert sum(one.trained for one in found.found) == 2
    assert "ended_early" in (tmp_path / "search.json").read_text()

    def again(*rest: Any, **options: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr("gossamer.nas.trials.train_supernet", again)
    assert search(space, striped(), goal=goal, plan=plan, out=tmp_path, verbose=False).best == found.best
