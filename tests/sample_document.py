"""A job document as a real job leaves it: ResNet-20 on Fashion-MNIST, cut, recovered, quantized. Made-up numbers."""

from dataclasses import replace

from gossamer.core.edit_details import BlockPart, SpectrumRow, SwapRecord
from gossamer.core.record import (
    ClassRow,
    Curve,
    Edit,
    EditKind,
    FallbackStep,
    JobDocument,
    LayerCost,
    Record,
    StoredRow,
    Trial,
)

_WIDTHS = (16, 32, 64)
_BATCH = {"device": "cpu", "batch": 64, "threads": 2}
_ACCURACY = {"split": "test", "interval": "95 % Wilson"}


def _layers(widths: tuple[int, int, int], inner: tuple[int, int, int], ms_per_mmac: float) -> list[LayerCost]:
    """A residual network of three stages of three blocks; `inner` is the width between the convolutions of a block."""

    def conv(name: str, inputs: int, outputs: int, side: int, kernel: int = 3) -> LayerCost:
        params = inputs * outputs * kernel * kernel
        macs = params * side * side
        return LayerCost(
            name=name,
            kind="Conv2d",
            in_channels=inputs,
            out_channels=outputs,
            params=params,
            macs=macs,
            bytes=4 * params,
            time_ms=0.02 + macs / 1e6 * ms_per_mmac,
        )

    rows, width = [conv("conv1", 1, widths[0], 28)], widths[0]
    for stage, (outputs, middle) in enumerate(zip(widths, inner, strict=True)):
        side = 28 // 2**stage
        for block in range(3):
            rows.append(conv(f"layers.{stage}.{block}.conv1", width, middle, side))
            rows.append(conv(f"layers.{stage}.{block}.conv2", middle, outputs, side))
            if width != outputs:
                rows.append(conv(f"layers.{stage}.{block}.shortcut.0", width, outputs, side, kernel=1))
            width = outputs
    head = 10 * width + 10
    rows.append(
        LayerCost(
            name="linear",
            kind="Linear",
            in_channels=width,
            out_channels=10,
            params=head,
            macs=10 * width,
            bytes=4 * head,
            time_ms=0.011,
        )
    )
    return rows


def _latency(subject: str, runtime: str, value: float, low: float, high: float, dtype: str) -> Record:
    versions = {"torch": "2.13.0", "torch.compile": "2.13.0", "onnxruntime": "1.23.2", "openvino": "2025.3"}
    conditions = {"runtime": runtime, "version": versions[runtime], "dtype": dtype, **_BATCH}
    return Record(
        subject=subject, what="latency", value=value, unit="ms", low=low, high=high, n=50, conditions=conditions
    )


def _records() -> list[Record]:
    return [
        Record(
            subject="original",
            what="score",
            value=93.20,
            unit="%",
            low=92.69,
            high=93.68,
            n=10000,
            conditions=_ACCURACY,
        ),
        Record(
            subject="result", what="score", value=92.94, unit="%", low=92.42, high=93.43, n=10000, conditions=_ACCURACY
        ),
        Record(
            subject="result int8",
            what="score",
            value=92.88,
            unit="%",
            low=92.36,
            high=93.37,
            n=10000,
            conditions=_ACCURACY,
        ),
        Record(
            subject="result int8",
            what="drop",
            value=0.32,
            unit="points",
            low=0.02,
            high=0.62,
            n=10000,
            conditions={"split": "test", "interval": "95 % paired"},
        ),
        Record(
            subject="result int8",
            what="drop",
            value=0.28,
            unit="points",
            low=-0.10,
            high=0.66,
            n=5000,
            conditions={"split": "validation", "interval": "95 % paired"},
        ),
        _latency("original", "onnxruntime", 18.7, 18.0, 20.1, "float32"),
        _latency("result", "onnxruntime", 7.02, 6.71, 7.60, "float32"),
        _latency("result int8", "onnxruntime", 4.61, 4.40, 5.02, "int8"),
        _latency("original", "openvino", 18.6, 18.1, 20.1, "float32"),
        _latency("result", "openvino", 7.31, 7.02, 7.88, "float32"),
        _latency("result int8", "openvino", 3.38, 3.21, 3.74, "int8"),
        _latency("original", "torch", 49.6, 46.5, 53.9, "float32"),
        _latency("result", "torch", 21.3, 19.8, 23.5, "float32"),
        _latency("original", "torch.compile", 24.1, 22.7, 26.3, "float32"),
        _latency("result", "torch.compile", 23.6, 21.9, 25.8, "float32"),
        Record(subject="original", what="macs", value=31_342_720, unit="MACs"),
        Record(subject="result", what="macs", value=9_145_472, unit="MACs"),
        Record(subject="original", what="params", value=272_186, unit="parameters"),
        Record(subject="result", what="params", value=94_378, unit="parameters"),
        Record(
            subject="original", what="file_bytes", value=1_162_123, unit="bytes", conditions={"file": "original.onnx"}
        ),
        Record(
            subject="result int8", what="file_bytes", value=118_204, unit="bytes", conditions={"file": "model.onnx"}
        ),
        Record(subject="original", what="compact_bytes", value=1_088_744, unit="bytes"),
        Record(subject="result int8", what="compact_bytes", value=71_320, unit="bytes"),
        Record(
            subject="original",
            what="peak_memory",
            value=61_865_984,
            unit="bytes",
            conditions={"runtime": "onnxruntime"},
        ),
        Record(
            subject="result int8",
            what="peak_memory",
            value=27_262_976,
            unit="bytes",
            conditions={"runtime": "onnxruntime"},
        ),
        Record(
            subject="result int8",
            what="agreement",
            value=98.74,
            unit="%",
            n=5000,
            conditions={"runtime": "onnxruntime", "version": "1.23.2", "dtype": "int8"},
        ),
        Record(subject="result", what="max_difference", value=3.2e-6, unit="relative", n=5000),
    ]


def _states() -> list[Trial]:
    def state(
        name: str,
        score: float,
        ort: float,
        vino: float,
        macs: int,
        params: int,
        size: int | None,
        ok: bool,
        note: str = "",
        brief: bool = False,
    ) -> Trial:
        latency = {"onnxruntime": ort, "openvino": vino}
        drop = round(93.32 - score, 2)
        return Trial(
            name=name,
            score=score,
            drop=drop,
            latency_ms=latency,
            macs=macs,
            params=params,
            file_bytes=size,
            accepted=ok,
            note=note,
            brief=brief,
        )

    return [
        state("original", 93.32, 18.7, 18.6, 31_342_720, 272_186, 1_162_123, True, "the network as given"),
        state("original int8", 93.30, 9.67, 7.21, 31_342_720, 272_186, 365_507, True, "quantized, nothing cut"),
        state("channels 70 %", 93.26, 13.9, 13.4, 21_811_000, 190_412, 812_330, True, "recovered in 2 epochs"),
        state("channels 50 %", 93.18, 10.2, 10.9, 15_502_000, 141_220, 640_128, True, "recovered in 2 epochs"),
        state("channels 38 %", 93.10, 8.12, 8.44, 11_912_000, 110_890, 498_020, True, "recovered in 3 epochs"),
        state("channels 29 %", 93.08, 7.02, 7.31, 9_145_472, 94_378, 431_002, True, "recovered in 4 epochs"),
        state("channels 18 %", 92.34, 5.44, 5.73, 5_700_100, 61_240, 280_114, False, "0.98 points lost, 0.5 allowed"),
        state(
            "channels 9 %",
            10.00,
            3.90,
            4.02,
            2_811_000,
            30_101,
            160_220,
            False,
            "collapsed: one channel left in stage 1",
        ),
        state("channels 29 % int8", 93.04, 4.61, 3.38, 9_145_472, 94_378, 118_204, True, "min-max, bias correction"),
        state("channels 18 % int8", 92.10, 3.92, 2.90, 5_700_100, 61_240, None, False, "1.22 points lost, 0.5 allowed"),
        state("tournament: channels 29 %", 91.20, 7.02, 7.31, 9_145_472, 94_378, None, False, "after 5 %", brief=True),
    ]


def _edits() -> list[Edit]:
    rows = [
        Edit(
            method="prune.channels",
            kind=EditKind.RESIZE,
            target=f"layers.{stage}.{block}.conv1",
            before=f"{before} channels",
            after=f"{after} channels",
            proof=3.1e-7 * (1 + stage + block),
        )
        for stage, (before, after) in enumerate(zip(_WIDTHS, (8, 16, 40), strict=True))
        for block in range(3)
    ]
    rows.append(
        Edit(
            method="prune.channels",
            kind=EditKind.RESIZE,
            target="conv1, layers.0.*.conv2",
            before="16 channels",
            after="16 channels",
            proof=0.0,
            note="left alone: the floor of 16 channels",
        )
    )
    rows.append(
        Edit(
            method="distill.logits",
            kind=EditKind.TRAIN,
            target="whole network",
            before="cross entropy",
            after="0.1 cross entropy + 0.9 teacher (temperature 4)",
            note="4 epochs, best on validation",
        )
    )
    return rows


def _int8_steps() -> list[FallbackStep]:
    return [
        FallbackStep(name="min-max", score=92.76, drop=0.56, accepted=False, note="0.06 points over the budget"),
        FallbackStep(
            name="percentile 99.99", score=92.80, drop=0.52, accepted=False, note="0.02 points over the budget"
        ),
        FallbackStep(name="bias correction", score=93.04, drop=0.28, accepted=True),
    ]


def _stored() -> list[StoredRow]:
    """A weight tensor for each layer, together 71,320 bytes with a header of 620."""
    before, after = (_layers(_WIDTHS, inner, 0.3) for inner in (_WIDTHS, (8, 16, 40)))
    dense = {cost.name: cost.bytes for cost in before}
    together = sum(cost.params for cost in after)
    rows = []
    for number, cost in enumerate(after):
        stored = 70_700 * cost.params / together
        row = StoredRow(
            name=f"{cost.name}.weight",
            shape=[cost.out_channels, cost.params // cost.out_channels],
            coding="grid",
            weights=cost.params,
            dense_bytes=dense[cost.name],
            bytes=stored,
            density=0.3 + number / 100,
            code_bits=3,
            bits_per_weight=8 * stored / cost.params,
            entropy_bytes=1.07 * stored,
            as_gaps={"density": 0.3 + number / 100, "code": 3, "index": 5, "coded_code": 2.4 + number / 8}
            | {"coded_index": 3.1, "stored": int(0.32 * cost.params), "rate": 0.09, "book": 7},
        )
        rows.append(row)
    values, counts = [-0.25, -0.125, 0.0, 0.125, 0.375], [2, 51, 403, 187, 7]
    rows[-1] = replace(rows[-1], values=values, counts=counts, low=-0.31, high=0.42, histogram=[1, 9, 250, 380, 9, 1])
    rows[-2] = replace(rows[-2], values=[0.5 + i / 8 for i in range(60)], counts=list(range(1, 61)))
    return rows


def sample() -> JobDocument:
    """A job that met its goal."""
    return JobDocument(
        command="gossamer compress resnet20 --data fashion-mnist --max-drop 0.5 --speedup 4 --runtime onnxruntime",
        goal={"max_drop": 0.5, "speedup": 4.0, "runtime": "onnxruntime", "threads": 2, "batch": 64},
        task={
            "model": "resnet20",
            "name": "fashion-mnist",
            "metric": "top-1",
            "train": 55000,
            "validation": 5000,
            "test": 10000,
            "classes": 10,
        },
        met=True,
        missed=[],
        seconds={"look": 8.2, "cut and recover": 812.0, "quantize": 61.5, "export and verify": 14.3, "measure": 44.9},
        environment={
            "date": "2026-11-29 12:00 UTC",
            "gossamer": "0.1.0",
            "torch": "2.13.0",
            "onnxruntime": "1.23.2",
            "openvino": "2025.3",
            "python": "3.11.2",
            "system": "Linux x86_64",
            "processor": "AMD EPYC 9R14",
            "cores": "2",
        },
        records=_records(),
        edits=_edits(),
        states=_states(),
        layers_before=_layers(_WIDTHS, _WIDTHS, 0.55),
        layers_after=_layers(_WIDTHS, (8, 16, 40), 0.31),
        int8_steps=_int8_steps(),
        files={
            "model.gsr": 71_320,
            "model.onnx": 118_204,
            "model.pt2": 402_113,
            "recipe.yaml": 812,
            "records.json": 24_310,
        },
        stored=_stored(),
        curves=[
            Curve(name="distill.recover", loss=[0.9, 0.5, 0.4], score=[90.1, 92.5, 93.08], seconds=[61.0, 60.2, 60.5]),
        ],
        classes=[
            ClassRow(name="shirt", samples=1000, top1={"original": 80.1, "result int8": 78.9}),
            ClassRow(name="bag", samples=1000, top1={"original": 98.5, "result int8": 98.9}),
        ],
    )


def replaced() -> JobDocument:
    """A job that put cheaper layers in the place of three: a chain, branches, and one without a measured time."""
    document = sample()

    def part(kind: str, inputs: int = 0, outputs: int = 0, **where: int) -> BlockPart:
        return BlockPart(kind=kind, inputs=inputs, outputs=outputs, **where)

    spectra = [
        SpectrumRow(
            mode="rank of outputs",
            what="singular values",
            ranks=list(range(1, 65)),
            values=[0.9**n for n in range(64)],
            rank=20,
        ),
        SpectrumRow(mode="rank of inputs", what="singular values", ranks=[1, 2, 3], values=[1.0, 0.5, 0.01], rank=3),
    ]
    tucker = SwapRecord(
        before=[part("3×3", 64, 64)],
        after=[part("1×1", 64, 16), part("3×3", 16, 20, column=1), part("1×1", 20, 64, column=2)],
        error=0.1234,
        of="outputs",
        spectra=spectra,
    )
    fire = SwapRecord(
        before=[part("3×3", 64, 64), part("MaxPool2d", column=1)],
        after=[part("1×1", 64, 16), part("1×1", 16, 32, column=1), part("3×3", 16, 32, column=1, row=1)],
        gone=["pool"],
        error=0.31,
        of="outputs",
    )
    terms = SpectrumRow(mode="terms", what="error", ranks=[0, 8, 64], values=[1.0, 0.4, 0.02], rank=8)
    cp = replace(tucker, error=0.4, of="weights", spectra=[terms])
    rows = {"layers.2.1.conv1": ("lowrank.tucker", tucker), "layers.2.1.conv2": ("restructure.fire", fire)}
    rows["layers.2.2.conv1"] = ("lowrank.cp", cp)
    for target, (method, swapped) in rows.items():
        document.edits.append(
            Edit(method=method, kind=EditKind.SWAP, target=target, before="3x3", after="cheaper", swapped=swapped)
        )
        [at] = [n for n, row in enumerate(document.layers_after) if row.name == target]
        old = document.layers_after[at]
        time = 0.01 if method != "lowrank.cp" else None
        parts = [
            replace(old, name=f"{target}.{n}", macs=1000 + n, params=100 + n, time_ms=time and time * (n + 1))
            for n in range(3)
        ]
        document.layers_after[at : at + 1] = parts
    return document


def small() -> JobDocument:
    """A job whose goal was a size."""
    document = sample()
    document.goal = {"max_drop": 0.5, "speedup": None, "compression_ratio": 10.0, "runtime": "onnxruntime"}
    document.states[-1] = replace(document.states[-1], file_bytes=71_320)
    return document


def missed() -> JobDocument:
    """The same job with a goal that was out of reach."""
    document = sample()
    document.goal["speedup"] = 8.0
    document.met = False
    document.missed = ["speedup: 4.06 on onnxruntime, 8 asked"]
    return document


def bare() -> JobDocument:
    """A job that stopped early: nothing was measured, tried or written."""
    return JobDocument(
        command="gossamer compress lenet5 --data digits --macs 1000",
        goal={"max_drop": 0.5, "macs": 1000},
        task={},
        met=False,
        missed=["no network inside the budget was found"],
        seconds={},
        environment={},
        records=[],
        edits=[],
        states=[],
        layers_before=[],
        layers_after=[],
        int8_steps=[],
        files={},
    )
