"""Curves of several trainings of one network."""

from dataclasses import replace

from sample_document import sample

from gossamer.core.record import Curve
from gossamer.report.curves import job_curves_section


def test_trainings_of_one_name_are_told_apart() -> None:
    name = "attempt 1, distill.recover"
    curves = [
        Curve(name=name, loss=[0.9], score=[61.0], seconds=[60.0]),
        Curve(name=name, loss=[0.5, 0.4], score=[72.0, 73.0], seconds=[50.0, 50.0]),
        Curve(name="other", loss=[0.5], score=[84.0], seconds=[40.0]),
    ]
    page = job_curves_section(replace(sample(), curves=curves))
    for shown in (f"{name}, 1 of 2", f"{name}, 2 of 2", "61.00", "73.00", "84.00"):
        assert shown in page, shown
    assert "other, 1 of" not in page
