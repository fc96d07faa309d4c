"""The comparisons that summarise a run: each takes one row or two rows of that run, and may refer to a limit."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import machine
from measuring import Key, Row, find
from providers import BOTH, BY_NAME, FORWARD, MEDMAMBA_14, MEDMAMBA_56
from workloads import shape_of

from mtlkit.operators import floors

FRAME = "busi_224"
LEVEL = "busi_224_level{}_batch8"
INFERENCE, TRAINING = "inference", "training_step"
OTHERS = {  # labels of providers that are not in providers.py
    "plain": "as it was",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch-compile": "torch.compile",
    "pytorch": "PyTorch",
}
Document = dict[str, Any]  # what a file in results/ holds for a run: machine, software, rates and rows


class Figure(NamedTuple):
    """Values in words, their ratio, and the unit of the ratio: "x", "%", "G/s", or "" for a plain number."""

    ours: str
    other: str
    ratio: float
    unit: str

    def words(self, ratio: float | None = None) -> str:
        return in_unit(self.ratio if ratio is None else ratio, self.unit)


class Comparison(NamedTuple):
    """What is compared, the rows that it needs, and how its figure follows from them and the run's document."""

    name: str  # unique: targets.py and the README's table refer to it
    what: str
    keys: tuple[Key, ...]
    figure: Callable[..., Figure]
    readme: bool = False

    def of(self, document: Document) -> Figure | None:
        """None if the run lacks a required row or value."""
        try:
            return self.figure(document, *(find(document["rows"], key) for key in self.keys))
        except KeyError:
            return None


# --- values in words --------------------------------------------------------------------------------------------------


def in_unit(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.0f} %"
    if unit == "x":
        return f"{value:.{0 if value >= 10 else 1 if value >= 2 else 2}f}x"
    return f"{value:.2f}{f' {unit}' if unit else ''}"


def seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.2f} s"
    if value < 1e-3:
        return f"{1e6 * value:.3g} µs"
    value *= 1e3
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def rate(value: float) -> str:
    value /= 1e9
    return f"{value:.1f} G/s" if value >= 1 else f"{value:.2g} G/s"


def megabytes(value: float) -> str:
    return f"{value / 2**20:.0f} MiB"


def label(provider: str) -> str:
    return BY_NAME[provider].label if provider in BY_NAME else OTHERS.get(provider, provider)


# --- figures ----------------------------------------------------------------------------------------------------------


def times(_: Document, ours: Row, other: Row) -> Figure:
    """How many times as fast as the other row."""
    mine, theirs = ours["median_s"], other["median_s"]
    return Figure(seconds(mine), f"{label(other['provider'])} {seconds(theirs)}", theirs / mine, "x")


def time_over(words: str, unit: str = "of the time") -> Callable[..., Figure]:
    """How many times as long as the other row."""

    def figure(_: Document, ours: Row, other: Row) -> Figure:
        mine, theirs = ours["median_s"], other["median_s"]
        return Figure(seconds(mine), f"{words} {seconds(theirs)}", mine / theirs, unit)

    return figure


def time_over_better(_: Document, ours: Row, *others: Row) -> Figure:
    """Like `time_over`, for the fastest of the other rows."""
    best = min(others, key=lambda row: row["median_s"])
    return time_over(label(best["provider"]))(_, ours, best)


def rate_of(words: str) -> Callable[..., Figure]:
    """The rate of updates as a share of another row's."""

    def figure(_: Document, ours: Row, other: Row) -> Figure:
        mine, theirs = ours["updates_per_s"], other["updates_per_s"]
        return Figure(rate(mine), f"{words} {rate(theirs)}", mine / theirs, "%")

    return figure


def of_yardstick(document: Document, row: Row) -> Figure:
    limit, mine = max(row["yardsticks_updates_per_s"]), row["updates_per_s"]
    if "limit_updates_per_s" not in document["yardstick"]:
        raise KeyError("the yardstick of the table")
    return Figure(rate(mine), f"updates alone, exp2 by a table {rate(limit)}", mine / limit, "%")


def of_old_yardstick(document: Document, row: Row) -> Figure:
    limit, mine = document["yardstick"]["polynomial_updates_per_s"], row["updates_per_s"]
    return Figure(rate(mine), f"updates alone, exp2 by a polynomial {rate(limit)}", mine / limit, "%")


def of_floor(document: Document, row: Row) -> Figure:
    """The least time of the arithmetic, softplus and the time step's projection included, as a share of the time."""
    shape = shape_of(row["op"], row["shape"])
    rank = shape.R if row["op"] == "ss2d" else 0
    operations = floors.scan_operations(document["machine"]["isa"], shape.N, rank, row["direction"] == BOTH)
    floor = shape.updates * operations / document["yardstick"]["multiply_adds_per_s"]
    return Figure(seconds(row["median_s"]), f"counted floor {seconds(floor)}", floor / row["median_s"], "%")


def memory(_: Document, ours: Row, other: Row) -> Figure:
    mine, theirs = ours["peak_bytes"], other["peak_bytes"]
    return Figure(megabytes(mine), f"{label(other['provider'])} {megabytes(theirs)}", mine / theirs, "%")


def extra_memory(_: Document, row: Row) -> Figure:
    """The memory that a training pass of a level needs besides the final map and the gradient of the map."""
    extra, one = max(0, row["peak_bytes"] - 2 * row["map_bytes"]), row["map_bytes"]
    return Figure(megabytes(extra), f"a map {megabytes(one)}", extra / one, "%")


def of_parts(_: Document, row: Row) -> Figure:
    """The time of the bare 1 x 1 convolution and two read-write passes as a share of a level's forward pass."""
    ours, other = row["median_s"], row["conv_s"] + 2 * row["copy_s"]
    return Figure(seconds(ours), f"convolution, two passes {seconds(other)}", other / ours, "%")


def of_copy(_: Document, row: Row) -> Figure:
    return Figure(seconds(row["median_s"]), f"copies {seconds(row['floor_s'])}", row["floor_s"] / row["median_s"], "%")


def scans_in(_: Document, network: Row) -> Figure:
    if not network["profile"]:
        raise KeyError("profile")
    share, time = network["profile"]["scan"], network["median_s"]
    return Figure(seconds(share * time), f"the network {seconds(time)}", share, "%")


def than_before(before: float) -> Callable[..., Figure]:
    """Compared with a time of the code of November 2026, on a Zen 5 whose polynomial yardstick reached 25.3 G/s."""

    def figure(document: Document, row: Row) -> Figure:
        if machine.kind(document["machine"]) != "Zen 5":
            raise KeyError("no time of earlier code on this kind of machine")
        scaled = before * 25.3e9 / document["yardstick"]["polynomial_updates_per_s"]
        return Figure(seconds(row["median_s"]), f"before {seconds(scaled)}", row["median_s"] / scaled, "of the time")

    return figure


# --- all of them, in the order of the table ---------------------------------------------------------------------------


def comparisons() -> Iterator[Comparison]:
    def pair(op: str, shape: str, direction: str, *providers: str) -> tuple[Key, ...]:
        return tuple(Key(op, shape, direction, provider) for provider in providers)

    def scan(direction: str, *providers: str, op: str = "ss2d", shape: str = MEDMAMBA_56) -> tuple[Key, ...]:
        return pair(op, shape, direction, "mtlkit", *providers)

    ss2d = scan(FORWARD)
    yield Comparison("ss2d.yardstick", "SS2D forward", ss2d, of_yardstick)
    yield Comparison("ss2d.old_yardstick", "SS2D forward", ss2d, of_old_yardstick)
    yield Comparison("ss2d.floor", "SS2D forward", ss2d, of_floor, True)
    for peer in ("reference", "torch", "mambapy"):
        yield Comparison(f"ss2d/{peer}", "SS2D forward", scan(FORWARD, peer), times, True)
    what = "SS2D forward + backward"
    yield Comparison("ss2d+b.old_yardstick", what, scan(BOTH), of_old_yardstick)
    yield Comparison("ss2d+b.floor", what, scan(BOTH), of_floor, True)
    for peer in ("reference", "torch", "mambapy"):
        yield Comparison(f"ss2d+b/{peer}", what, scan(BOTH, peer), times, True)
    one = scan(FORWARD, "torch", shape="vmamba_t_stage1")
    yield Comparison("ss2d_n1/torch", "SS2D forward, 1 state (VMamba)", one, times, True)
    what, small = "SS2D forward, 14 x 14, 384 channels", scan(FORWARD, "torch-compile", shape=MEDMAMBA_14)
    yield Comparison("ss2d_14.old_yardstick", what, small[:1], of_old_yardstick)
    yield Comparison("ss2d_14/torch-compile", what, small, times)
    what, along = "1-D scan, the same work", scan(FORWARD, op="selective_scan")
    yield Comparison("selective_scan/ss2d", what, along + ss2d, rate_of("SS2D"))
    for order, what in (("cross", "rows and columns"), ("random", "four random orders")):
        keys = pair("directional_scan", MEDMAMBA_56, FORWARD, order, "ss2d")
        yield Comparison(f"directional/{order}", f"Directional scan, {what}", keys, rate_of("SS2D"))
    for level in ("avx2", "baseline"):
        keys = pair("ss2d", MEDMAMBA_56, FORWARD, f"mtlkit-{level}", "mtlkit")
        what = f"SS2D forward, {machine.ISA[level]} code"
        yield Comparison(f"ss2d.{level}", what, keys, rate_of("best code"))
    layer = scan(FORWARD, op="ss2d_layer")
    yield Comparison("layer/scan", "SS2D layer forward", layer + ss2d, time_over("its scan", "x"))
    for direction, words in ((FORWARD, "forward"), (BOTH, "forward + backward")):
        keys = scan(direction, "torch", op="ss2d_layer")
        yield Comparison(f"layer-{direction}/torch", f"SS2D layer {words}", keys, times, True)
    yield Comparison("layer.memory", "SS2D layer, training memory", scan(BOTH, "torch", op="ss2d_layer"), memory, True)
    for op, words in (("dwconv_silu", "3 x 3 convolution and SiLU"), ("norm_gate", "LayerNorm and gate")):
        for direction, way in ((FORWARD, "forward"), (BOTH, "forward + backward")):
            yield Comparison(f"{op}-{direction}", f"{words}, {way}", scan(direction, "eager", op=op), times)
    for direction, way in ((FORWARD, "forward"), (BOTH, "forward + backward")):
        keys = scan(direction, "eager", op="causal_conv1d", shape="vim_tiny_batch4-channels_last")
        yield Comparison(f"causal_conv1d-{direction}", f"Causal convolution and SiLU, {way}", keys, times)
    for level in (3, 4, 2, 1):
        shape, side = LEVEL.format(level), 7 << level
        for direction, way in ((FORWARD, "forward"), (BOTH, "forward + backward")):
            what = f"Task interaction, {side} x {side}, {way}"
            for peer in ("eager", "torch-compile"):
                keys = scan(direction, peer, op="task_interaction", shape=shape)
                yield Comparison(
                    f"interaction_{side}-{direction}/{peer}", what, keys, times, level == 3 and peer == "torch-compile"
                )
            if direction == FORWARD:
                keys = scan(direction, op="task_interaction", shape=shape)
                yield Comparison(f"interaction_{side}.parts", what, keys, of_parts)
    keys = scan(BOTH, op="task_interaction", shape=LEVEL.format(3))
    yield Comparison("interaction.memory", "Task interaction, memory besides results", keys, extra_memory)
    yield from networks(pair)


def networks(pair: Callable[..., tuple[Key, ...]]) -> Iterator[Comparison]:
    views = "mammo_4view_512"
    for name, words, before, images, shape, step in (
        ("medmamba_t", "MedMamba-T", 0.0304, "one image", FRAME, "training step"),
        ("vmamba_t_s1l8", "VMamba-T", 0.0449, "one image", FRAME, "training step"),
        ("mbdi", "MBDI", None, "one image", FRAME, "training step, two images"),
        ("btinet", "BTI-Net", None, "one image", FRAME, "training step, two images"),
        ("csa_moe", "CSA-MoE-Net", None, "one image", FRAME, "training step, two images"),
        ("hybrid_vssm", "Hybrid CNN-VSSM", 0.203, "four views of 512 x 512", views, "training step, four of 256 x 256"),
    ):
        training = "mammo_4view_256" if shape == views else shape
        shown = name in ("medmamba_t", "vmamba_t_s1l8", "hybrid_vssm")
        keys = pair(name, shape, INFERENCE, "mtlkit", "torch")
        yield Comparison(f"{name}/torch", f"{words}, {images}", keys, times, shown)
        if before:
            yield Comparison(f"{name}.before", f"{words}, {images}", keys[:1], than_before(before))
        keys = pair(name, training, TRAINING, "mtlkit", "torch")
        yield Comparison(f"{name}-training/torch", f"{words}, {step}", keys, times, name == "medmamba_t")
        if name == "medmamba_t":
            yield Comparison("medmamba_t.scans", "  its scans", pair(name, shape, INFERENCE, "mtlkit"), scans_in)
    for name, words in (
        ("plain_medmamba_t", "A MedMamba-T in plain PyTorch, accelerated"),
        ("plain_vmunet", "VM-UNet's blocks, accelerated"),
        ("plain_vmamba", "VMamba's layers, accelerated"),
    ):
        shown = name == "plain_medmamba_t"
        keys = pair(name, FRAME, INFERENCE, "accelerated", "plain")
        yield Comparison(f"{name}/plain", f"{words}: one image", keys, times, shown)
        keys = pair(name, FRAME, TRAINING, "accelerated", "plain")
        yield Comparison(f"{name}-training/plain", f"{words}: training step", keys, times, shown)
    for name, words in (("mbdi", "MBDI"), ("btinet", "BTI-Net")):
        keys = pair(name, FRAME, INFERENCE, "mtlkit-onnx", "onnxruntime", "openvino")
        yield Comparison(f"{name}.onnx", f"{words} exported, one image", keys, time_over_better, name == "mbdi")
    keys = pair("mbdi", FRAME, INFERENCE, "mtlkit-onnx-int8", "mtlkit-onnx")
    yield Comparison("mbdi.int8", "MBDI exported, int8", keys, time_over("float32"), True)
    for peer in ("onnxruntime", "openvino"):
        keys = pair("medmamba_t", "busi_64", INFERENCE, "mtlkit-onnx", peer)
        yield Comparison(f"medmamba_t.onnx/{peer}", "MedMamba-T exported, one image of 64 x 64", keys, times)
    for name, words, shape in (
        ("medmamba_t", "MedMamba-T", FRAME),
        ("vmamba_t_s1l8", "VMamba-T", FRAME),
        ("hybrid_vssm", "Hybrid VSSM", "mammo_4view_512"),
    ):
        keys = pair(name, shape, INFERENCE, "mtlkit-onnx", "mtlkit")
        yield Comparison(f"{name}.onnx", f"{words} exported", keys, time_over("PyTorch"), name == "medmamba_t")
    keys = pair("mbdi", FRAME, INFERENCE, "mtlkit-optimized", "torch-compile-frozen")
    yield Comparison("mbdi.optimized", "MBDI in PyTorch, optimized", keys, time_over("torch.compile, frozen"))
    keys = pair("cold_start", FRAME, INFERENCE, "mtlkit-onnx", "pytorch")
    yield Comparison("cold_start", "Import, load, first image, exported", keys, time_over("PyTorch"), True)


COMPARISONS = {comparison.name: comparison for comparison in comparisons()}


def readme_keys() -> set[Key]:
    """The rows that the README's table needs."""
    return {key for comparison in COMPARISONS.values() if comparison.readme for key in comparison.keys}
