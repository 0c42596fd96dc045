"""The neighbourhood of a trained network: its sub-networks of fewer channels and blocks, which share its weights, with
fewer bits of the weights of each layer.

Source: Cai et al. 2020, arXiv:1908.09791, section 3 (train once, then search sub-networks without training); Wang et
al. 2019, arXiv:1811.08886 (HAQ: bits of each layer).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

from torch import nn

from gossamer.constraints.weights import weights_of
from gossamer.core.layer_names import layer_name
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.graph.groups import find_groups
from gossamer.graph.pruner import prune
from gossamer.methods._base import Method
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.quantize.uniform import UniformQuantization
from gossamer.methods.restructure.blocks import BlockRemoval
from gossamer.modules.elastic import ElasticNetwork, Subnetwork, elastic_network
from gossamer.nas.space import Genes, Space
from gossamer.train import recalibrate


@dataclass(frozen=True, repr=False)
class NeighbourSpace(Space):
    """Sub-networks of a network that `distill.once_for_all` has trained: which blocks are left out, how wide each group
    of coupled channels is, how many bits the weights of each layer have. Its networks have weights and need no
    training.

    Args:
        elastic: the trained network and its sub-networks; see `neighbourhood`.
        bits: that the weights of a layer can have, the most first; none: they are left as they are.

    Example:
        >>> import gossamer
        >>> from gossamer.nas import neighbourhood
        >>> task = gossamer.data.tiny_task()
        >>> trained, _ = gossamer.methods.distill.OnceForAll(epochs=1, lr=0.01)(gossamer.data.tiny_network(), task)
        >>> space = neighbourhood(trained, task)
        >>> found = space.derive((0,) * len(space.choices), task)
        >>> found.model.conv1.out_channels
        8
        >>> space.words(tuple(n - 1 for n in space.choices))
        'conv1 2/8, conv2 4/16, fc1 4/16'
    """

    elastic: ElasticNetwork
    bits: tuple[int, ...] = ()

    def __repr__(self) -> str:
        blocks, widths = len(self.elastic.blocks), dict(self.elastic.widths)
        bits = f", bits {self.bits} of {len(self.layers)} layers" if self.bits else ""
        return f"NeighbourSpace({type(self.elastic.model).__name__}, {blocks} blocks, {widths}{bits})"

    @property
    def choices(self) -> tuple[int, ...]:
        widths = (len(options) for options in self.elastic.widths.values())
        return (*(2 for _ in self.elastic.blocks), *widths, *(len(self.bits) for _ in self.layers))

    @property
    def cheapest(self) -> Genes:
        """Without any block, the fewest channels and bits."""
        return self.canonical(tuple(n - 1 for n in self.choices))

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Whose bits are searched."""
        return tuple(layer_name(name) for name in weights_of(self.elastic.model)) if self.bits else ()

    def without(self, genes: Genes) -> tuple[str, ...]:
        """The blocks that are left out."""
        return tuple(block.name for block, gone in zip(self.elastic.blocks, genes) if gone)

    def widths(self, genes: Genes) -> dict[str, int]:
        """Channels of every group that is narrower than in the large network."""
        options, chosen = self.elastic.widths, genes[len(self.elastic.blocks) : self._cut]
        return {name: options[name][number] for name, number in zip(options, chosen) if number}

    def layer_bits(self, genes: Genes) -> dict[str, int]:
        """Bits of the weights of every layer that is there, by its name."""
        without = self.without(genes)
        chosen = zip(self.layers, genes[self._cut :])
        return {layer: self.bits[number] for layer, number in chosen if not _inside(layer, without)}

    def canonical(self, genes: Genes) -> Genes:
        """Groups of a block that is left out have no width, and its layers no bits."""
        blocks, without = genes[: len(self.elastic.blocks)], self.without(genes)
        gone = {name for block in without for name in self._inner[block]}
        widths = zip(self.elastic.widths, genes[len(blocks) : self._cut])
        bits = zip(self.layers, genes[self._cut :])
        return (
            *blocks,
            *(0 if name in gone else number for name, number in widths),
            *(0 if _inside(layer, without) else number for layer, number in bits),
        )

    def random(self, rng: Random) -> Genes:
        """Light and heavy cuts alike: drawn evenly, nearly all networks would be in between."""
        strength = rng.random()
        genes = tuple(sum(rng.random() < strength for _ in range(n - 1)) for n in self.choices)
        return self.canonical(genes)

    @property
    def _cut(self) -> int:
        """How many numbers say what is cut; those of the bits come after them."""
        return len(self.elastic.blocks) + len(self.elastic.widths)

    @cached_property
    def _inner(self) -> dict[str, list[str]]:
        return {block.name: self.elastic.within(block.name) for block in self.elastic.blocks}

    def build(self, genes: Genes) -> nn.Module:
        """The sub-network with its part of the weights. Its batch norms are those of the large network, its weights are
        constrained to grids where it has bits."""
        return self._rounded(self.elastic.subnetwork(self.widths(genes), self.without(genes)).model, genes)

    def derive(self, genes: Genes, task: Task) -> Subnetwork:
        """The sub-network as it can be used: its cut is proven, and its batch norms are estimated again.

        Args:
            genes: which one.
            task: whose calibration data are run through it.

        Returns:
            The network and the proof.
        """
        found = self.elastic.subnetwork(self.widths(genes), self.without(genes), prove=True)
        found = replace(found, model=self._rounded(found.model, genes))
        recalibrate(found.model, task.calibration)
        return found

    def _rounded(self, model: nn.Module, genes: Genes) -> nn.Module:
        return self._rounding(genes)(model).model if self.bits else model

    def _rounding(self, genes: Genes) -> UniformQuantization:
        bits = self.layer_bits(genes)
        most = max(bits.values())
        return UniformQuantization(bits=most, layer_bits={n: b for n, b in bits.items() if b != most}, scale="mse")

    def steps(self, genes: Genes) -> tuple[Method, ...]:
        """What makes this sub-network of the large network, as steps of a recipe."""
        widths, without = self.widths(genes), self.without(genes)
        blocks = (BlockRemoval(names=without, reconstruct=False),) if without else ()
        cut = (ChannelPruning(widths=widths, criterion="order", reconstruct=False),) if widths else ()
        return (*blocks, *cut, *((self._rounding(genes),) if self.bits else ()))

    def shares(self, genes: Genes) -> dict[str, float]:
        """What is left of each layer's multiply-adds."""
        return self.elastic.layer_shares(self.widths(genes), self.without(genes))

    def words(self, genes: Genes) -> str:
        widths, options = self.widths(genes), self.elastic.widths
        parts = [f"{name} {width}/{options[name][0]}" for name, width in widths.items()]
        gone = self.without(genes)
        parts += [f"{name} {bits} bits" for name, bits in self.layer_bits(genes).items() if bits != self.bits[0]]
        return ", ".join([*([f"without {' '.join(gone)}"] if gone else []), *parts]) or "all of it"


def _inside(layer: str, blocks: Sequence[str]) -> bool:
    return any(f"{layer}.".startswith(f"{block}.") for block in blocks)


class Condition:
    """Whether a sub-network should cost about what is allowed, by the costs of the layers of the large network.

    Sums of layers are off, since runtimes fuse layers and have overheads. So the prediction is scaled by the median of
    what was measured over what was predicted.

    Args:
        space: of sub-networks.
        layer_costs: of the large network, in any one unit, by layer.
        whole: cost ratio of the large network: its cost over what is allowed.
        limit: largest cost ratio.
    """

    ABOVE, BELOW = 1.1, 0.6  # times the limit: what costs much less than it may is not the best

    def __init__(self, space: NeighbourSpace, layer_costs: dict[str, float], whole: float, limit: float) -> None:
        self.space, self.layer_costs, self.whole, self.limit = space, layer_costs, whole, limit
        self.seen: list[float] = []
        self.sums: dict[Genes, float] = {}

    def predicted(self, genes: Genes) -> float:
        """The cost ratio that is expected."""
        if genes not in self.sums:
            shares, total = self.space.shares(genes), sum(self.layer_costs.values())
            kept = sum(cost * shares.get(layer, 1.0) for layer, cost in self.layer_costs.items())
            self.sums[genes] = kept / max(total, 1e-12)
        return self.whole * self.sums[genes] * self.scale

    @property
    def scale(self) -> float:
        """Measured over predicted, the median so far."""
        return sorted(self.seen)[len(self.seen) // 2] if self.seen else 1.0

    def learn(self, genes: Genes, measured: float) -> None:
        """Take a measured cost ratio into account."""
        self.seen.append(measured / max(self.predicted(genes) / self.scale, 1e-12))

    def __call__(self, genes: Genes) -> bool:
        return self.BELOW * self.limit <= self.predicted(genes) <= self.ABOVE * self.limit


class Within(Space):
    """The part of a space that a condition holds for, as far as drawing and repairing finds it.

    Args:
        space: the whole space.
        holds: of a vector.
        start: a vector for which it holds, or the nearest to it: what is taken where none is found.
    """

    TRIES = 100

    def __init__(self, space: Space, holds: Callable[[Genes], bool], start: Genes) -> None:
        self.space, self.holds, self.start = space, holds, start

    @property
    def choices(self) -> tuple[int, ...]:
        return self.space.choices

    def build(self, genes: Genes) -> nn.Module:
        return self.space.build(genes)

    def words(self, genes: Genes) -> str:
        return self.space.words(genes)

    def canonical(self, genes: Genes) -> Genes:
        return self.space.canonical(genes)

    @property
    def cheapest(self) -> Genes | None:
        return self.space.cheapest

    def repaired(self, genes: Genes, rng: Random) -> Genes | None:
        """The first of ever cheaper networks for which the condition holds; None where there is none."""
        return next((one for one in (genes, *self.space.ever_cheaper(genes, rng)) if self.holds(one)), None)

    def random(self, rng: Random) -> Genes:
        """Drawn by chance; where that finds none, the last that was drawn is repaired."""
        for _ in range(self.TRIES):
            if self.holds(drawn := self.space.random(rng)):
                return drawn
        return self.repaired(drawn, rng) or self.start

    def mutated(self, genes: Genes, rng: Random) -> Genes:
        """One step, or a few where one leaves the condition: a wider group and a narrower one, for instance."""
        for _ in range(self.TRIES):
            child = genes
            for _ in range(rng.choice((1, 1, 2, 3))):
                child = self.space.mutated(child, rng)
            if child != genes and self.holds(child):
                return child
        found = self.repaired(child, rng)
        return self.random(rng) if found is None or found == genes else found


def neighbourhood(
    model: nn.Module, task: Task, *, round_to: int = 1, bits: Sequence[int] = (), cut: bool = True
) -> NeighbourSpace:
    """The sub-networks of a network that `distill.once_for_all` has trained.

    Args:
        model: the trained network, of the user's own class.
        task: with example inputs that it runs on.
        round_to: as in the training: widths are multiples of it.
        bits: that the weights of each layer can have, from 16 to 2, the most first, such as (8, 4, 2); they are rounded
            by `quantize.uniform`. None: no weights are rounded.
        cut: whether channels and blocks are left out. False: bits alone are searched, of any trained network.

    Returns:
        The space.

    Raises:
        NoEffect: the network has no sub-networks.
        BadInput: bits that cannot be, or nothing to search.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> neighbourhood(model, task, round_to=4).choices
        (2, 4, 4)
        >>> space = neighbourhood(model, task, bits=(8, 4, 2), cut=False)
        >>> space.words((0, 1, 2, 0))
        'conv2 4 bits, fc1 2 bits'
    """
    allowed = tuple(sorted(set(bits), reverse=True))
    if tuple(bits) != allowed or any(not 2 <= one <= 16 for one in bits):
        raise BadInput(f"bits = {tuple(bits)}: give whole numbers from 16 to 2, the most first, such as (8, 4, 2)")
    if not cut and len(bits) < 2:
        raise BadInput("cut=False searches bits alone: give at least two, such as bits=(8, 4, 2)")
    if cut:
        return NeighbourSpace(elastic_network(model, task.example_inputs, round_to=round_to), allowed)
    channels = find_groups(model, task.example_inputs)
    prune(channels, {}, {})  # sub-networks, of which the whole is the only one, take what this learns
    return NeighbourSpace(ElasticNetwork(channels=channels, widths={}, blocks=()), allowed)
