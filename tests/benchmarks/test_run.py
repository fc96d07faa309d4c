"""A run of the benchmarks: when a row stops, the machine, which results are kept, and the README's table."""

import functools
import importlib.util
import json
import random
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("pytest_benchmark")
import comparisons
import machine
import measuring
import readme
import report
from measuring import Key, Results
from targets import TARGETS


class Clock:
    """Rounds of given seconds; the last one repeats."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.now, self.calls = list(seconds), 0.0, 0

    def call(self) -> None:
        self.now += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1

    def sample(self, **options) -> list[float]:
        return measuring.sample(self.call, clock=lambda: self.now, **options)


# --- when to stop -----------------------------------------------------------------------------------------------------


def test_a_row_stops_when_its_median_is_known():
    assert len(Clock(0.01).sample()) == measuring.LEAST_ROUNDS
    short = Clock(0.001).sample()
    assert sum(short) == pytest.approx(measuring.LEAST_SECONDS)
    assert Clock(5e-5).sample(iterations=10) == pytest.approx([5e-5] * 80)


def test_a_row_whose_rounds_scatter_goes_on():
    """One slow first round is outside the median's interval from nine rounds on; noise uses up the row's seconds."""
    assert 5 < len(Clock(0.02, 0.01).sample()) <= 10
    scattered = Clock(*[0.008, 0.012] * 100).sample()
    assert sum(scattered) == pytest.approx(measuring.MOST_SECONDS, abs=0.012)


def test_slow_calls_get_few_rounds_and_slow_peers_one():
    assert len(Clock(2).sample()) == measuring.FEW
    assert len(Clock(2).sample(once=True)) == 1
    assert len(Clock(0.4).sample(once=True)) == measuring.FEW
    assert Clock(0.4).sample(once=True, first=0.45) == pytest.approx([0.45, 0.4, 0.4])
    assert Clock(2).sample(once=True, first=3) == [3]


def test_calls_are_timed_in_turns():
    order: list[str] = []
    times = measuring.in_turns({name: functools.partial(order.append, name) for name in "ab"}, rounds=2)
    assert "".join(order) == "aabbaabb"  # the first of each two is not timed
    assert [len(times[name]) for name in "ab"] == [2, 2]


def test_the_interval_of_the_median_has_its_share():
    """Of a thousand medians of five to forty draws, the binomial law bounds how many lie outside the 95 % interval."""
    dice = random.Random(0)
    for count, least in ((6, 0.96), (20, 0.93), (40, 0.93)):
        hits = 0
        for _ in range(1000):
            low, high = measuring.interval([dice.expovariate(1) for _ in range(count)])
            hits += low <= 0.6931 <= high
        assert hits / 1000 >= least


# --- which machine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "name", "bits"),
    [
        (("AuthenticAMD", 0x19, 0x11), "Zen 4", 256),
        (("AuthenticAMD", 0x1A, 0x02), "Zen 5", 512),
        (("AuthenticAMD", 0x1A, 0x24), "Zen 5 mobile", 256),
        (("AuthenticAMD", 0x17, 0x71), "Zen 2", 0),
        (("GenuineIntel", 6, 0x8F), "Sapphire Rapids", 512),
        (("AuthenticAMD", 0x1A, 0xF0), "unknown (AuthenticAMD, family 26, model 240)", None),
        (("Other", 6, 0x8F), "unknown (Other, family 6, model 143)", None),
    ],
)
def test_microarchitectures(identity, name, bits):
    assert machine.microarchitecture(identity) == (name, bits)


def test_no_model_is_in_two_microarchitectures():
    for rows in machine.MICROARCHITECTURES.values():
        models = [(family, model) for family, of, *_ in rows for model in of]
        assert len(set(models)) == len(models)


def test_kinds_of_machine_have_files(monkeypatch, tmp_path):
    levels = ["baseline", "avx2", "avx512"]
    zen5 = {"microarchitecture": "Zen 5", "isa": "avx512", "isa_levels": levels}
    assert (machine.kind(zen5), machine.stem(zen5)) == ("Zen 5", "zen5")
    held = zen5 | {"isa": "avx2"}
    assert (machine.kind(held), machine.stem(held)) == ("Zen 5, AVX2 code", "zen5-avx2")
    other = zen5 | {"microarchitecture": "unknown (AuthenticAMD, family 26, model 240)"}
    assert machine.stem(other) == "unknown-authenticamd-family-26-model-240"
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert machine.cpuid() is None
    text = "vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n"
    (tmp_path / "cpuinfo").write_text(text)
    assert machine.cpuid() == ("AuthenticAMD", 26, 2)


def test_load_is_that_of_other_programs(monkeypatch, tmp_path):
    """In hundredths of a second over all cores: here 60 user and 10 stolen, 40 of them by one program."""
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 100)

    def state(user: int, steal: int, program: int) -> None:
        (tmp_path / "stat").write_text(f"cpu  {user} 0 0 1000 0 0 0 {steal} 0 0\ncpu0 0\n")
        (tmp_path / "12").mkdir(exist_ok=True)
        (tmp_path / "12/stat").write_text(f"12 (a (b) c) S {'0 ' * 10}{program} 0 0 0\n")

    state(0, 0, 0)
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: state(60, 10, 40))
    found = machine.load()
    assert found.cores == pytest.approx(0.7)
    assert found.busy
    assert found.in_words().startswith("0.70 cores (a (b) c 0.40)")
    assert not machine.Load(0.4, "", None).busy
    monkeypatch.setattr(machine, "PROC", tmp_path / "none")
    assert not machine.load().busy


# --- what is kept -----------------------------------------------------------------------------------------------------


def document(isa: str = "avx512", factor: float = 1.0) -> dict:
    """A run with every row of the README."""
    levels = ["baseline", "avx2", "avx512"]
    described = {"cpu": "AMD EPYC", "microarchitecture": "Zen 5", "avx512_bits": 512, "threads": 2, "governor": "x"}
    rows = [
        {
            **key._asdict(),
            "dtype": "float32",
            "median_s": 1e-3 * (1 if key.provider == "mtlkit" else 20 * factor),
            "updates_per_s": 8e9 * factor,
            "yardsticks_updates_per_s": [1e10],
            "peak_bytes": 1 << 20,
            "relative_error": 1e-7,
        }
        for key in sorted(comparisons.readme_keys())
    ]
    return {
        "date": "2026-11-29T00:00:00",
        "commit": "0",
        "machine": described | {"isa": isa, "isa_levels": levels},
        "versions": {"torch": "2.14.1"},
        "load": {"before": "0.1 cores", "after": "0.2 cores"},
        "yardstick": {
            "start_updates_per_s": 1e10,
            "end_updates_per_s": 1e10,
            "limit_updates_per_s": 1e10,
            "polynomial_updates_per_s": 9e9 if isa == "avx512" else 4e9,
            "multiply_adds_per_s": 8e10,
        },
        "disturbed_rows": 0,
        "rows": rows,
    }


@pytest.fixture
def written(monkeypatch, tmp_path):
    """A README and a folder of results for this test."""
    parts = "".join(f"{begin}\nold\n{end}\nbetween\n" for begin, end in (readme.CHART, readme.TABLE))
    (tmp_path / "README.md").write_text(f"above\n{parts}below\n")
    monkeypatch.setattr(readme, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    return tmp_path


def test_results_are_a_file_a_machine_and_ranges_in_the_readme(written):
    results = Results(document()["rows"], [1e10, 1e10])
    for isa, factor in (("avx512", 1), ("avx2", 2)):
        said = report.finish(results, document(isa, factor), None, colour=False, width=120)
        assert "written:" in said
    assert sorted(path.name for path in (written / "results").iterdir()) == [
        "zen5-avx2.json",
        "zen5-avx2.png",
        "zen5.json",
        "zen5.png",
    ]
    assert json.loads((written / "results/zen5-avx2.json").read_text()) == document("avx2", 2)
    text = (written / "README.md").read_text()
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    assert text.count("\nbetween\n") == 2
    assert "old" not in text
    assert "the scan is 20x to 40x as fast as the PyTorch loop" in text
    assert text.index("results/zen5.png") < text.index("results/zen5.json")
    assert "| what | compared with | ratio | Zen 5 | Zen 5, AVX2 code |" in text
    assert "| SS2D forward | PyTorch loop | 20x to 40x | 1 ms | 1 ms |" in text
    assert "| SS2D forward + backward | counted floor |" in text


def test_a_busy_machine_keeps_its_results(written):
    results, why = Results(document()["rows"], [1e10, 1e10]), "other programs used 0.9 cores"
    said = report.finish(results, document(), why, colour=False, width=120)
    assert "stays as it is: other programs used 0.9 cores" in said
    assert "SS2D forward" in said
    assert not (written / "results").exists()


@pytest.fixture
def why_kept(root):
    """Calls the function of benchmarks/conftest.py for a run with these arguments, on a machine with this load."""
    spec = importlib.util.spec_from_file_location("conftest_of_benchmarks", root / "benchmarks/conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(cores=0.0, force=False, failed=0, arguments=("benchmarks",)):
        config = SimpleNamespace(
            stash={module.LOAD: machine.Load(cores, "", None), module.DESELECTED: 0},
            option=SimpleNamespace(force=force),
            invocation_params=SimpleNamespace(dir=root),
            args=list(arguments),
        )
        return module.why_kept(config, failed)

    return call


@pytest.mark.parametrize(("cores", "force", "kept"), [(0.9, False, True), (0.9, True, False), (0.2, False, False)])
def test_force_overrides_a_busy_machine(why_kept, cores, force, kept):
    assert (why_kept(cores, force) is not None) == kept


@pytest.mark.parametrize("part", [{"failed": 1}, {"arguments": ["benchmarks/test_bench_ss2d.py"]}])
def test_a_part_of_the_benchmarks_keeps_the_results(why_kept, part):
    assert why_kept(force=True, **part) == "not every benchmark ran and passed"


# --- the README and the targets ---------------------------------------------------------------------------------------


def test_the_readme_says_what_the_results_say():
    text = readme.README.read_text()
    for (begin, end), content in ((readme.CHART, readme.chart), (readme.TABLE, readme.section)):
        found = text.partition(begin)[2].partition(end)[0].strip()
        assert found == content(readme.documents()), "python benchmarks/report.py writes the table"


def test_every_target_is_a_comparison():
    assert set(TARGETS) <= set(comparisons.COMPARISONS)
    assert report.targets(document()).row_count == len(TARGETS)
    assert TARGETS["layer/scan"].met(1.8)
    assert not TARGETS["ss2d/torch"].met(49)


def test_fast_selects_every_row_of_the_readme(root, run_python):
    """Those whose provider is installed here."""
    from providers import BY_NAME

    options = ("--fast", "--collect-only", "-q", "-p", "no:cacheprovider", "-c", root / "pyproject.toml")
    listed = run_python("-m", "pytest", root / "benchmarks", *options).stdout
    found = {line for line in listed.splitlines() if "::test_" in line}
    absent = {name for name, provider in BY_NAME.items() if provider.why_absent()}
    assert len(found) == len([key for key in comparisons.readme_keys() if key.provider not in absent])


def test_a_row_is_named_by_its_test():
    """The case names the row, or a mark does, as a function of the parameters."""
    mark = SimpleNamespace(kwargs={"key": lambda name: Key("op", name, "forward", "mtlkit")})
    item = SimpleNamespace(callspec=SimpleNamespace(params={"name": "a"}), get_closest_marker=lambda name: mark)
    assert measuring.key_of(item) == Key("op", "a", "forward", "mtlkit")
    case = SimpleNamespace(key=Key("op", "b", "forward", "torch"))
    item = SimpleNamespace(callspec=SimpleNamespace(params={"case": case}), get_closest_marker=lambda name: None)
    assert measuring.key_of(item) == case.key


@pytest.mark.parametrize(
    ("provider", "compiles", "calls"),
    [("torch", False, 1), ("torch-compile", True, 2), ("mtlkit", False, 1 + measuring.FEW)],
)
def test_a_slow_peer_is_called_once(monkeypatch, provider, compiles, calls):
    """The call that is checked is also the one that is timed, unless it has compiled."""
    monkeypatch.setattr(measuring, "SLOW", 0.001)
    monkeypatch.setattr(measuring, "MOST_SECONDS", 0.002)
    monkeypatch.setattr(machine, "yardstick", lambda *arguments: 1e10)
    mark = SimpleNamespace(kwargs={"key": lambda: Key("op", "shape", "forward", provider)})
    node = SimpleNamespace(get_closest_marker=lambda name: mark)
    benchmark = SimpleNamespace(disabled=False, extra_info={}, pedantic=lambda call, rounds: call())
    results, said, made = Results(), [], []

    def call() -> int:
        time.sleep(0.002)
        made.append(1)
        return 7

    measure = measuring.Measure(benchmark, results, SimpleNamespace(node=node), said.append)
    row = measure(call, lambda got: (float(got), None), unit=("updates", 1e6), compiles=compiles, extra=1)
    assert len(made) == calls
    assert results.rows == said == [row]
    assert row["rounds"] == max(1, calls - 1)
    assert (row["group"], row["relative_error"], row["extra"]) == ("op-shape-float32-forward", 7, 1)
    assert row["low_s"] <= row["median_s"] <= row["high_s"]
    assert row["updates_per_s"] == 1e6 / row["median_s"]
    assert benchmark.extra_info == row
    with pytest.raises(ZeroDivisionError):
        measure(call, lambda got: 1 / 0, unit=("updates", 1e6))
    assert len(results.rows) == 1


@pytest.mark.parametrize(("disturbed", "attempts"), [(7, measuring.ATTEMPTS), (8, 1)])
def test_rows_are_timed_once_where_the_machine_stays_disturbed(disturbed, attempts):
    slow, fast = {"yardsticks_updates_per_s": [8e9, 10e9]}, {"yardsticks_updates_per_s": [10e9, 10e9]}
    results = Results(rows=[fast, *[slow] * disturbed, {"op": "cold_start"}], yardsticks=[10e9])
    assert results.attempts == attempts
    assert len(results.disturbed()) == disturbed
    results.rows.append(fast)
    assert results.attempts == measuring.ATTEMPTS


@pytest.mark.parametrize(
    ("speeds", "times"),
    [([9, 10], 1), ([8, 10, 10, 10], 2), ([10, 8, 10, 9], 2), ([10, *[8] * 9], measuring.ATTEMPTS)],
)
def test_a_disturbed_row_is_timed_again(monkeypatch, speeds, times):
    monkeypatch.setattr(measuring, "PAUSE", 0)
    left, made = [1e9 * speed for speed in speeds], []
    monkeypatch.setattr(machine, "yardstick", lambda *arguments: left.pop(0))
    benchmark = SimpleNamespace(disabled=False, extra_info={}, pedantic=lambda call, rounds: call())
    results = Results(yardsticks=[10e9])
    mark = SimpleNamespace(kwargs={"key": lambda: Key("op", "shape", "forward", "mtlkit")})
    node = SimpleNamespace(get_closest_marker=lambda name: mark)
    measure = measuring.Measure(benchmark, results, SimpleNamespace(node=node), lambda row: None)
    row = measure(lambda: 0, lambda got: (0.0, None), unit=("images", 1), timed=lambda: made.append(0) or [len(made)])
    assert len(made) == row["median_s"] == times
    assert row["rounds"] == 1
    assert row["yardsticks_updates_per_s"] == [1e9 * speed for speed in speeds[2 * times - 2 : 2 * times]]
    assert len(results.disturbed()) == (times == measuring.ATTEMPTS)
