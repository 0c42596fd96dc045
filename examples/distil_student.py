"""Train a small network from a large one, and see what the teacher is worth."""

import torch

import gossamer

torch.manual_seed(0)
task = gossamer.load_task("digits", augment=False)
teacher = gossamer.models.build_for("lenet300", task)
teacher = gossamer.fit(teacher, task, gossamer.Training(epochs=15), gossamer.Context()).model

# Any network may be the student. This one is the same network with a tenth of the units.
student = gossamer.prune_channels(gossamer.models.build_for("lenet300", task), task.example_inputs, 0.9).model
method = gossamer.methods.distill.KD(temperature=4.0, alpha=0.3, epochs=15, lr=0.1)
result = gossamer.distill(teacher, student, task, method, out="out/student")

# "alone" is the same student, trained as long without a teacher.
for record in result.records:
    if record.what == "score" and record.conditions["split"] == "test":
        low, high = record.low, record.high
        print(f"{record.subject:10} {record.value:.2f} % (95 % interval {low:.2f} to {high:.2f})")
