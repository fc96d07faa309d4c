"""The comparisons that a run is summed up in, each a ratio of two rows of that run, with its target."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from memory import RESET
from providers import BOTH, BY_NAME, FORWARD, ISA, MEDMAMBA_56
from run_results import Results, Row

FRAME = "busi_224"


class Absent(Exception):  # noqa: N818 - no error: what is compared does not exist on this machine
    """A comparison that this machine cannot make."""


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


class Line(NamedTuple):
    """One comparison: values in words, their ratio, and the target if there is one."""

    what: str
    ours: str
    other: str
    ratio: float
    shown: str  # the ratio in words
    target: float | None = None
    at_most: bool = False  # whether the target is an upper bound

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target

    def target_in_words(self) -> str:
        if self.target is None:
            return ""
        unit = next((u for u in ("%", " G/s", "x") if self.shown.endswith(u)), "")
        number = f"{100 * self.target:g}" if unit == "%" else f"{self.target:g}"
        return f"{'≤' if self.at_most else '≥'} {number}{unit} {'met' if self.met else 'missed'}"


def headline(results: Results) -> tuple[list[Line], int]:
    """The comparisons that this run has rows for, and how many it lacks although the machine could make them."""
    lines, missing = [], 0
    for make in comparisons(results):
        try:
            lines.append(make())
        except Absent:
            continue
        except KeyError:
            missing += 1
    return lines, missing


def comparisons(results: Results) -> Iterator[Callable[[], Line]]:
    """All of them in the order of the table; each raises KeyError where the run lacks a row."""

    def find(op: str, direction: str, provider: str = "mtlkit", shape: str = MEDMAMBA_56) -> Row:
        if BY_NAME[provider].why_absent():
            raise Absent(provider)
        return results.find(op, shape, direction, provider)

    def ss2d(what: str, direction: str, provider: str, target: float | None = None, shape: str = MEDMAMBA_56):
        label = BY_NAME[provider].label
        return lambda: times(
            what, find("ss2d", direction, shape=shape), find("ss2d", direction, provider, shape), label, target
        )

    def backends(what: str, op: str, direction: str, target: float | None = None, shape: str = MEDMAMBA_56):
        return lambda: times(
            what, *(find(op, direction, p, shape) for p in ("mtlkit", "torch")), "PyTorch backend", target
        )

    def eager(what: str, op: str, direction: str, target: float | None = None, shape: str = MEDMAMBA_56):
        return lambda: times(
            what, *(find(op, direction, p, shape) for p in ("mtlkit", "eager")), "eager PyTorch", target
        )

    def accelerated(what: str, op: str, direction: str, target: float | None = None):
        return lambda: times(
            what, *(results.find(op, FRAME, direction, p) for p in ("accelerated", "plain")), "before", target
        )

    def level(name: str, target: float | None = None):
        what = f"SS2D forward, {ISA[name]} code"
        return lambda: rates(
            what, find("ss2d", FORWARD, f"mtlkit-{name}"), find("ss2d", FORWARD), "plain mtlkit", target
        )

    def order(what: str, name: str, target: float):
        along, ours = (lambda p=p: results.find("directional_scan", MEDMAMBA_56, FORWARD, p) for p in (name, "ss2d"))
        return lambda: rates(f"Directional scan, {what}", along(), ours(), "SS2D", target)

    yield lambda: of_limit(find("ss2d", FORWARD))
    yield ss2d("SS2D forward", FORWARD, "reference", 150)
    yield ss2d("SS2D forward", FORWARD, "torch", 60)
    yield ss2d("SS2D forward", FORWARD, "torch-compile")
    yield ss2d("SS2D forward", FORWARD, "mambapy")
    yield lambda: plain_rate("SS2D forward + backward", find("ss2d", BOTH), 1.6)
    yield ss2d("SS2D forward + backward", BOTH, "reference")
    yield ss2d("SS2D forward + backward", BOTH, "torch")
    yield ss2d("SS2D forward + backward", BOTH, "mambapy")
    yield ss2d("SS2D forward, 1 state (VMamba)", FORWARD, "torch", shape="vmamba_t_stage1")
    yield lambda: rates("1-D scan, the same work", find("selective_scan", FORWARD), find("ss2d", FORWARD), "SS2D", 0.5)
    yield order("rows and columns", "cross", 0.95)
    yield order("four random orders", "random", 0.85)
    yield level("avx2", 0.35)
    yield level("baseline")
    yield lambda: layer_over_scan(find("ss2d_layer", FORWARD), find("ss2d", FORWARD))
    yield backends("SS2D layer forward", "ss2d_layer", FORWARD)
    yield backends("SS2D layer forward + backward", "ss2d_layer", BOTH)
    yield lambda: memory(find("ss2d_layer", BOTH), find("ss2d_layer", BOTH, "torch"))
    for op, label in (("dwconv_silu", "3 x 3 convolution and SiLU"), ("norm_gate", "LayerNorm and gate")):
        for direction, words in ((FORWARD, "forward"), (BOTH, "forward + backward")):
            yield eager(f"{label}, {words}", op, direction)
    for direction, words, target in ((FORWARD, "forward", 5), (BOTH, "forward + backward", 3)):
        what, shape = f"Causal convolution and SiLU, {words}", "vim_tiny_batch4-channels_last"
        yield eager(what, "causal_conv1d", direction, target, shape)
    for number in (3, 4, 2, 1):
        shape, large = f"busi_224_level{number}_batch8", number > 2
        side = 7 << number
        what = f"Task interaction, {side} x {side}"

        def level_times(what, direction, provider, target, shape=shape):
            label = BY_NAME[provider].label
            return lambda: times(
                what,
                find("task_interaction", direction, shape=shape),
                find("task_interaction", direction, provider, shape),
                label,
                target,
            )

        yield level_times(f"{what}, forward", FORWARD, "eager", 4 if large else None)
        yield level_times(f"{what}, forward", FORWARD, "torch-compile", 3 if large else 1.5)
        yield lambda what=what, shape=shape: over_parts(what, find("task_interaction", FORWARD, shape=shape))
        yield level_times(f"{what}, forward + backward", BOTH, "eager", 3 if large else None)
        yield level_times(f"{what}, forward + backward", BOTH, "torch-compile", 3 if large else 2)
    yield lambda: extra_memory(find("task_interaction", BOTH, shape="busi_224_level3_batch8"))
    yield backends("MedMamba-T, one image", "medmamba_t", "inference", 6, FRAME)
    yield lambda: scans_in(find("medmamba_t", "inference", shape=FRAME))
    yield backends("MedMamba-T, training step", "medmamba_t", "training_step", shape=FRAME)
    yield backends("VMamba-T, one image", "vmamba_t_s1l8", "inference", shape=FRAME)
    yield backends("VMamba-T, training step", "vmamba_t_s1l8", "training_step", shape=FRAME)
    yield accelerated("MedMamba-T in plain PyTorch, accelerated: one image", "plain_medmamba_t", "inference", 15)
    yield accelerated("the same, training step", "plain_medmamba_t", "training_step", 20)
    yield accelerated("VM-UNet's blocks, accelerated: one image", "plain_vmunet", "inference")
    yield accelerated("VMamba's layers, accelerated: one image", "plain_vmamba", "inference")
    for name, label in (("mbdi", "MBDI"), ("btinet", "BTI-Net"), ("csa_moe", "CSA-MoE-Net")):
        yield backends(f"{label}, one image", name, "inference", shape=FRAME)
        yield backends(f"{label}, training step, two images", name, "training_step", shape=FRAME)
    exam = "Hybrid CNN-VSSM, four views of"
    yield backends(f"{exam} 512 x 512", "hybrid_vssm", "inference", shape="mammo_4view_512")
    yield backends(f"{exam} 256 x 256, training step", "hybrid_vssm", "training_step", shape="mammo_4view_256")


def times(what: str, ours: Row, other: Row, label: str, target: float | None = None) -> Line:
    """How many times faster."""
    ratio = other["median_s"] / ours["median_s"]
    words = f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x"
    return Line(what, seconds(ours["median_s"]), f"{label} {seconds(other['median_s'])}", ratio, words, target)


def rates(what: str, ours: Row, other: Row, label: str, target: float | None = None) -> Line:
    """The rate as a share of another."""
    mine, theirs = ours["updates_per_s"], other["updates_per_s"]
    return Line(what, rate(mine), f"{label} {rate(theirs)}", mine / theirs, f"{mine / theirs:.0%}", target)


def plain_rate(what: str, row: Row, target: float) -> Line:
    """A rate by itself, in 10^9 updates a second."""
    value = row["updates_per_s"]
    return Line(what, rate(value), "", value / 1e9, rate(value), target)


def of_limit(row: Row) -> Line:
    limit = max(row["yardsticks_updates_per_s"])
    return rates("SS2D forward", row, {"updates_per_s": limit}, "machine's limit", 0.7)


def layer_over_scan(layer: Row, scan: Row) -> Line:
    ours, other = layer["median_s"], scan["median_s"]
    ratio = ours / other
    return Line("SS2D layer forward", seconds(ours), f"its scan {seconds(other)}", ratio, f"{ratio:.2f}", 2, True)


def memory(ours: Row, other: Row) -> Line:
    if not RESET.exists():
        raise Absent("the system does not tell a peak of memory")
    mine, theirs = ours["peak_bytes"], other["peak_bytes"]
    peer, ratio = f"PyTorch backend {megabytes(theirs)}", mine / theirs
    return Line("SS2D layer, training memory", megabytes(mine), peer, ratio, f"{ratio:.0%}", 0.4, True)


def over_parts(what: str, row: Row) -> Line:
    """A forward pass of a level beside the bare 1 x 1 convolution and two reading and writing passes."""
    ours, other = row["median_s"], row["conv_s"] + 2 * row["copy_s"]
    words = f"convolution and two passes {seconds(other)}"
    return Line(f"{what}, forward", seconds(ours), words, ours / other, f"{ours / other:.2f}", 2, True)


def extra_memory(row: Row) -> Line:
    """What a training pass of a level takes beside the final map and the gradient of the map."""
    if not RESET.exists():
        raise Absent("the system does not tell a peak of memory")
    extra, one = max(0, row["peak_bytes"] - 2 * row["map_bytes"]), row["map_bytes"]
    ratio = extra / one
    return Line(
        "Task interaction, memory beside results",
        megabytes(extra),
        f"a map {megabytes(one)}",
        ratio,
        f"{ratio:.0%}",
        1,
        True,
    )


def scans_in(network: Row) -> Line:
    if not network["profile"]:
        raise KeyError("profile")
    share, time = network["profile"]["scan"], network["median_s"]
    return Line("  its scans", seconds(share * time), f"the network {seconds(time)}", share, f"{share:.0%}", 0.25, True)
