"""The application of a low-rank scheme to a network: which layers, the swap, and what the log says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import Layer
from gossamer.calibration.moments import moments
from gossamer.constraints.apply import refuse_constrained
from gossamer.constraints.weights import weights_of
from gossamer.core.context import Context
from gossamer.core.edit_details import SwapRecord
from gossamer.core.layer_names import layer_name, reasons
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.edits.swap import swap
from gossamer.errors import BadInput, NoEffect
from gossamer.methods.lowrank._chain import calls_of, chain_macs, dense_factor, grouped_weight, kernel_of
from gossamer.methods.lowrank._choice import Site, choose_ranks
from gossamer.methods.lowrank._grams import Grams
from gossamer.methods.lowrank._matrices import EXACT_SIZE, corrected
from gossamer.methods.lowrank._norms import set_norms, with_norms
from gossamer.methods.lowrank._notes import describe_chain, spectrum_rows, swap_record
from gossamer.methods.lowrank._scheme import Rank, Scheme
from gossamer.methods.lowrank._timed import slower


@dataclass(frozen=True, kw_only=True)
class LowRank(Scheme):
    """Replace layers by chains of cheaper layers; the base of all factorizations."""

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Return a copy of the model in which every layer is factored for which that pays."""
        refuse_constrained(model, "swap")
        found, left = _suitable(self, model)
        calls = calls_of(model, list(found), task.example_inputs) if found else {}
        left |= {name: "it is not called as a layer in a run" for name in found if name not in calls}
        found = {name: found[name] for name in calls}
        grams = Grams(model, found, None if self.data == "none" else task.calibration, self.batches)
        site = Site(model=model, layers=found, calls=calls, grams=grams, task=task, context=context)
        chosen, why, lost = choose_ranks(self, site)
        left |= why
        for name, reason in left.items():
            text = describe_chain(model.get_submodule(name))
            self.note(context, EditKind.SWAP, name, before=text, after=text, note=reason)
        if not chosen:
            raise NoEffect(f"{self.name()}: no layer was factored: {'; '.join(reasons(left)[:5])}")
        chosen = {name: chosen[name] for name in calls if name in chosen}
        return _factored(self, site, chosen, lost)


def _suitable(method: LowRank, model: nn.Module) -> tuple[dict[str, Layer], dict[str, str]]:
    """Return the layers that can be factored, and why others cannot. Raises BadInput for one that is named in full."""
    keys = weights_of(model, method.layers, method.ignore)
    places: dict[int, int] = {}
    for module in model.modules():
        for p in module._parameters.values():
            places[id(p)] = places.get(id(p), 0) + 1
    paths: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        paths[id(module)] = paths.get(id(module), 0) + 1
    found: dict[str, Layer] = {}
    left: dict[str, str] = {}
    for key, raw in keys.items():
        name, reason = layer_name(key), ""
        layer: Any = model.get_submodule(name)
        if type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            reason = f"{type(layer).__name__} is none of Linear, Conv1d, Conv2d, Conv3d"
        elif not name:
            reason = "the network is this one layer; put it in a Sequential"
        elif places[id(raw)] > 1 or paths[id(layer)] > 1:
            reason = "its weight is used in several places"
        else:
            reason = method.refusal(layer)
        if reason and name in (*method.layers, *(method.ranks or {})):
            raise BadInput(f"{method.name()}: layer {name!r} cannot be factored: {reason}")
        if reason:
            left[name] = reason
        else:
            found[name] = layer
    return found, left


@torch.no_grad()
def _factored(
    method: LowRank, site: Site, chosen: Mapping[str, Rank], lost: Mapping[str, Sequence[Tensor]]
) -> nn.Module:
    """Swap the layers, in the order of the run."""
    model, task, context = site.model, site.task, site.context
    changed, chains, rows = model, dict[str, nn.Sequential](), dict[str, dict[str, Any]]()
    for name in context.progress.bar(chosen, label=method.name()):
        layer: Any = model.get_submodule(name)
        weight, gram = grouped_weight(layer), None
        matrix = weight.flatten(2)
        if method.data == "inputs":
            gram = site.grams(name, weight)
        elif method.data == "accumulated":
            [(gram, cross)] = moments(changed, model, [name], task.calibration, method.batches).values()
            gram = gram.to(weight.dtype)
            weight = corrected(matrix, gram, cross.to(weight.dtype)).reshape(weight.shape)
        made = method.build(layer, weight, chosen[name], gram)
        chains[name] = with_norms(made) if method.norm else made
        if method.data == "accumulated":
            changed = swap(changed, {name: chains[name]})
        shown: SwapRecord | None = None
        if context.original is not None:  # a job: it has a report
            tails = lost.get(name) or _tails(method, weight, gram)
            spectra = spectrum_rows(tails, chosen[name], method.modes, singular=method.singular)
            shown = swap_record(layer, chains[name], made, weight, gram, spectra)
        factors = [dense_factor(layer)], method.chain(layer, chosen[name])
        macs = [int(chain_macs(chain, kernel_of(layer), site.calls[name])) for chain in factors]
        rows[name] = {
            "before": f"{describe_chain(layer)}, {macs[0]:,} MACs",
            "after": f"{' + '.join(map(describe_chain, made))}, {macs[1]:,} MACs",
            "note": f"rank {', '.join(map(str, chosen[name]))}",
            "swapped": shown,
        }
    for name, times in (slower(model, chains, task, context) if method.rule == "time" else {}).items():
        text = describe_chain(model.get_submodule(name))
        note = f"{rows[name]['note']}, {times:.2f} times the layer's time in the end; put back"
        rows[name] = {"before": text, "after": text, "note": note}
        chains.pop(name)
    for name, row in rows.items():
        method.note(context, EditKind.SWAP, name, **row)
    if not chains:
        raise NoEffect(f"{method.name()}: the runtime gains by no layer")
    changed = swap(model, chains)
    if method.norm:
        set_norms(changed, chains, task.calibration, method.batches)
    return changed


def _tails(method: LowRank, weight: Tensor, gram: Tensor | None) -> Sequence[Tensor]:
    """Return what every rank loses, for a rank that no rule chose; nothing where it would take long to compute."""
    if not method.singular or max(method.largest(weight)) > EXACT_SIZE:
        return ()
    return method.spectrum(weight, gram, "lost").lost
