"""Choose the methods yourself: a recipe of three steps, as Python values and as YAML."""

import torch

import gossamer
from gossamer.methods import distill, prune, quantize

torch.manual_seed(0)
task = gossamer.load_task("digits")
model = gossamer.models.build_for("lenet5", task)
model = gossamer.fit(model, task, gossamer.Training(epochs=2), gossamer.Context()).model

recipe = gossamer.Recipe(
    name="by hand",
    steps=(
        prune.ChannelPruning(sparsity=0.4, criterion="taylor"),
        distill.RecoveryDistillation(epochs=2),
        quantize.UniformQuantization(bits=6),
    ),
)
print(recipe.to_yaml())

result = gossamer.compress(model, task, recipe=recipe, out="out/by-hand")
for edit in result.document.edits:
    print(f"{edit.method:22} {edit.kind:10} {edit.target:20} {edit.before} -> {edit.after}")
print(gossamer.report.markdown(gossamer.report.summary_rows(result.document)))
