"""Scores of sequences: perplexity of tokens, word and character error."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.core.batches import Loss, Model, inputs_and_labels
from gossamer.core.metric import Evidence, SumMetric
from gossamer.core.outputs import first_tensor
from gossamer.core.validation import KnownArguments
from gossamer.errors import BadInput

NO_TOKEN = -100  # the label of positions that do not count, as in torch's cross entropy

Decoder = Callable[[Any], Sequence[Sequence[Hashable]]]


@dataclass(frozen=True, kw_only=True)
class Perplexity(KnownArguments, SumMetric):
    """e to the mean cross entropy of a token in nats: logits (N, T, tokens) for labels (N, T); lower is better.

    Tokens of all samples count together.

    Args:
        shift: whether the logits at a position are of the label at the next one, as causal language models give them
            for labels that are their inputs.
        ignore: the label of positions that do not count.
        points: what one point is: a goal's `max_drop=2` with `points=0.1` allows 0.2 more.
        name: in tables and reports.

    Example:
        >>> Perplexity().score(torch.nn.Identity(), [(torch.zeros(2, 3, 10), torch.zeros(2, 3).long())])
        10.000000000000002
    """

    shift: bool = False
    ignore: int = NO_TOKEN
    points: float = 1.0
    name: str = "perplexity"
    unit = ""
    higher_is_better = False
    perfect = 1.0

    def batch(self, output: Any, target: Any) -> Evidence:
        losses, counted = self._losses(first_tensor(output).double(), target)
        return {"nll": losses.sum(1), "tokens": counted.sum(1).double()}

    def _losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy of each position, 0 where it does not count, and whether it counts; both (N, T)."""
        if logits.ndim != 3 or tuple(target.shape) != tuple(logits.shape[:2]):
            shapes = f"{tuple(logits.shape)} and {tuple(target.shape)}"
            raise BadInput(f"{self.name} needs outputs (N, T, tokens) and labels (N, T); they are {shapes}")
        if self.shift:
            logits, target = logits[:, :-1], target[:, 1:]
        target, counted = target.to(logits.device).long(), target.to(logits.device) != self.ignore
        known = target[counted]
        if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < logits.shape[2]:
            raise BadInput(
                f"{self.name}: labels from {int(known.min())} to {int(known.max())} where the network has "
                f"{logits.shape[2]} tokens; those that do not count are {self.ignore}"
            )
        losses = F.cross_entropy(logits.transpose(1, 2), target, ignore_index=self.ignore, reduction="none")
        return losses, counted

    def from_sums(self, sums: Evidence) -> Tensor:
        return (sums["nll"] / sums["tokens"]).exp()

    def usual_loss(self) -> Loss:
        return self._loss

    def _loss(self, model: Model, batch: Any) -> Tensor:
        """Mean cross entropy of the tokens that count, in nats."""
        inputs, target = inputs_and_labels(batch)
        losses, counted = self._losses(first_tensor(model(*inputs)), target)
        return losses.sum() / counted.sum().clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class SequenceError(KnownArguments, SumMetric):
    """Edits that lead from what is said to what is right, over the length of what is right: word error, phoneme error,
    character error; lower is better, and it can be above 100 %.

    Args:
        decode: `decode(output)` gives the sequence of each sample, of anything that can be compared; None: tokens with
            the largest logits of (N, T, tokens).
        ends: tokens after which a sequence says nothing, such as the end of a sentence and padding; in labels, too.
        characters: whether strings are compared by character, else by word.
        name: in tables and reports.

    Targets are tensors (N, T), or sequences of strings or of sequences.

    Example:
        >>> heard = SequenceError(decode=lambda output: ["the cat sat" for _ in output])
        >>> heard.score(torch.nn.Identity(), [(torch.zeros(1, 2), ["a cat sat down"])])
        0.5

    Source: Levenshtein 1966, Soviet Physics Doklady 10(8).
    """

    decode: Decoder | None = None
    ends: tuple[int, ...] = (NO_TOKEN,)
    characters: bool = False
    name: str = "word error"
    higher_is_better = False

    def batch(self, output: Any, target: Any) -> Evidence:
        if self.decode is not None:
            said = [self._parts(one) for one in self.decode(output)]
        else:
            logits = first_tensor(output)
            if logits.ndim != 3:
                raise BadInput(f"{self.name} needs outputs (N, T, tokens), or `decode`; they are {tuple(logits.shape)}")
            said = [self._parts(row) for row in logits.argmax(2).tolist()]
        right = [self._parts(one) for one in (target.tolist() if isinstance(target, Tensor) else target)]
        if len(said) != len(right):
            raise BadInput(f"{self.name}: {len(said)} sequences are said for {len(right)} targets")
        lengths = torch.tensor([len(one) for one in right], dtype=torch.float64)
        return {"edits": edit_distances(said, right).double(), "length": lengths}

    def _parts(self, sequence: Sequence[Hashable]) -> Sequence[Hashable]:
        """What is compared, up to where it ends."""
        if isinstance(sequence, str):
            return list(sequence) if self.characters else sequence.split()
        found = [int(one) if isinstance(one, Tensor) else one for one in sequence]
        return found[: next((i for i, one in enumerate(found) if one in self.ends), len(found))]

    def from_sums(self, sums: Evidence) -> Tensor:
        return sums["edits"] / sums["length"]


def greedy_ctc(blank: int = 0) -> Decoder:
    """A decoder of networks that were trained by connectionist temporal classification.

    Args:
        blank: the token that says nothing.

    Returns:
        For logits (N, T, tokens): the largest ones, repetitions taken together, without blanks.

    Example:
        >>> greedy_ctc()(torch.eye(3)[[1, 1, 0, 1, 2]][None])
        [[1, 1, 2]]

    Source: Graves et al. 2006, doi:10.1145/1143844.1143891.
    """

    def decode(output: Any) -> list[list[int]]:
        best = first_tensor(output).argmax(2).cpu()
        new = torch.ones_like(best, dtype=torch.bool)
        new[:, 1:] = best[:, 1:] != best[:, :-1]
        return [row[keep].tolist() for row, keep in zip(best, new & (best != blank))]

    return decode


def edit_distances(said: Sequence[Sequence[Hashable]], right: Sequence[Sequence[Hashable]]) -> Tensor:
    """The fewest insertions, deletions and substitutions between sequences, pair by pair.

    Args:
        said: sequences of any lengths.
        right: as many.

    Returns:
        int64, shape (N,).

    Example:
        >>> edit_distances(["kitten", ""], ["sitting", "ab"]).tolist()
        [3, 2]
    """
    numbers: dict[Hashable, int] = {}

    def padded(sequences: Sequence[Sequence[Hashable]], padding: int) -> Tensor:
        longest = max((len(one) for one in sequences), default=0)
        rows = [[numbers.setdefault(x, len(numbers)) for x in one] for one in sequences]
        return torch.tensor([row + [padding] * (longest - len(row)) for row in rows]).view(len(rows), longest)

    first, second = padded(said, -1), padded(right, -2)
    lengths = torch.tensor([len(one) for one in said])
    places = torch.arange(second.shape[1] + 1)
    row = places.repeat(len(first), 1)  # edits from no token to the first so many
    for i in range(first.shape[1]):
        changed = row[:, :-1] + (first[:, i : i + 1] != second)
        without = torch.cat([row[:, :1] + 1, torch.minimum(changed, row[:, 1:] + 1)], 1)
        # Insertions: the least over all places before, each token from there to here inserted.
        after = (without - places).cummin(1).values + places
        row = torch.where((i < lengths)[:, None], after, row)
    return row.gather(1, torch.tensor([[len(one)] for one in right]).view(-1, 1))[:, 0]
