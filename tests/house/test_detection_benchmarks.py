"""The parts of the benchmarks of detectors: drawn faces, rows that are kept, tables."""

from argparse import Namespace
from typing import Any

import torch

from benchmarks.detection import composed, landmarks, oracle
from benchmarks.detection._cases import evidence_of, random_case
from benchmarks.detection._faces import LANDMARKS, SIDE, distances, faces


def test_drawn_faces_are_the_same_for_a_seed_and_dark_at_the_eyes() -> None:
    images, points = faces(200, seed=3)
    again, _ = faces(200, seed=3)
    assert torch.equal(images, again) and not torch.equal(images, faces(200, seed=4)[0])
    assert images.shape == (200, 1, SIDE, SIDE) and points.shape == (200, len(LANDMARKS), 2)
    assert float(points.min()) > 0 and float(points.max()) < SIDE
    assert bool((points[:, 0, 0] < points[:, 1, 0]).all())  # turned by less than a right angle
    at = points.long().clamp(0, SIDE - 1)
    rows = torch.arange(200)
    eyes = torch.stack([images[rows, 0, at[:, i, 1], at[:, i, 0]].float() for i in (0, 1)]).mean()
    middle = (points[:, 0] + points[:, 1]).div(2).long()
    between = images[rows, 0, middle[:, 1] - 2, middle[:, 0]].float().mean()
    assert eyes < between - 20


def test_the_distance_to_a_stroke() -> None:
    grid = torch.tensor([[[0.0, 3.0], [5.0, 4.0]]])
    found = distances(grid, torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[[3.0, 5.0]]]))
    torch.testing.assert_close(distances(grid, grid[0, :1], grid[0, :1])[0, 0, 0], torch.tensor(0.0))


def test_rows_of_networks_that_were_trained_alike_are_kept() -> None:
    rows = [{"network": "csp_pan_n"}, {"network": "ion_csp_n"}]
    document = {"data": "d", "epochs": 4, "trained": rows, "compressed": rows[:1], "measured": [{"command": "c"}]}
    options = Namespace(data="d", epochs=4, networks=["ion_csp_n"])
    assert composed.kept_rows(document, options) == {"trained": rows[:1], "compressed": rows[:1]}
    other = composed.kept_rows(document, Namespace(data="d", epochs=2, networks=["ion_csp_n"]))
    assert other == {"trained": [], "compressed": [], "measured": []}


def test_the_table_of_landmarks() -> None:
    def row(error: float, **more: Any) -> dict[str, Any]:
        return {"error": error, "failures": 2.0, "params": 1000, "macs": 5000, **more}

    against = {"error": -0.5, "low": -0.7, "high": -0.3, "n": 10}
    seeds = {
        str(i): {"student, plain": row(6.0 + i), "student, distill.neurons": row(5.5 + i, more_than_plain=against)}
        | {"processor_seconds": 1.0}
        for i in range(2)
    }
    run = {"threads": 1, "command": "c"}
    lines = landmarks.table({"measured": [run], "epochs": 3, "rates": {"plain": 0.1}, "seeds": seeds}).splitlines()
    assert lines[-2] == "| student, plain | 6.50 ± 0.71 | 6.00, 7.00 | 2.0 | - | 1,000 | 5 |"
    assert "| -0.50 (-0.70 to -0.30), -0.50 (-0.70 to -0.30) |" in lines[-1]


def test_the_table_of_the_oracle_has_who_was_asked() -> None:
    document = {
        "measured": [{"threads": 1, "command": "c"}],
        "cases": 10,
        "largest": 1e-16,
        "apart": [],
        "seconds": {"gossamer": 1.0, "pycocotools": 2.0, "faster-coco-eval": 3.0},
        "larger": {"largest": 2e-16, "seconds": {"gossamer": 0.5}},
    }
    text = oracle.table(document)
    assert "| faster-coco-eval, processor seconds | 3.0 |" in text
    assert "500 images of up to 100 detections: gossamer | 0.50 |" in text


def test_a_case_has_its_rows_in_the_order_of_scores() -> None:
    annotations, results = random_case(1)
    evidence = evidence_of(annotations, results)
    per_image = [sum(row["image_id"] == image for row in results) for image in range(6)]
    assert (evidence["labels"] >= 0).sum(1).tolist() == per_image
    scores = evidence["scores"].where(evidence["labels"] >= 0, -1.0)
    assert bool((scores.diff(dim=1) <= 0).all())
