"""The list of faults matches the current sources; the suite runs this. `make mutants` plants the faults."""

import re
from collections import Counter

import pytest
from mutants.__main__ import ORDER
from mutants.faults import Fault, load
from mutants.sandbox import runs_of

LEAST = {"Python": 45, "C++": 35, "CUDA": 20, "Triton": 20}


@pytest.fixture(scope="module")
def faults() -> list[Fault]:
    return load()


def test_each_fault_changes_one_place(root, faults):
    for fault in faults:
        text = (root / fault.file).read_text(encoding="utf-8")
        assert fault.planted(text) != text, fault.title


def test_there_are_enough_of_every_kind(faults):
    assert set(LEAST) == set(ORDER)
    counts = Counter(fault.kind for fault in faults)
    assert {kind: counts[kind] for kind, least in LEAST.items() if counts[kind] < least} == {}
    assert Counter(fault.title for fault in faults).most_common(1)[0][1] == 1


def test_the_tests_that_must_notice_a_fault_exist(root, faults):
    for test in {test.split(" ")[0] for fault in faults for test in fault.tests}:
        file, *names = test.split("::")
        text = (root / file).read_text(encoding="utf-8")
        assert all(re.search(rf"\b(def|class) {name}\b", text) for name in names), test


def test_the_documented_table_is_that_of_the_list(root, faults):
    text = (root / "docs/reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (Python|Triton|C\+\+|CUDA)[^|]*\| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    planted = Counter(fault.kind for fault in faults)
    survivors = Counter(fault.kind for fault in faults if fault.survives)
    assert rows == [(kind, str(planted[kind]), str(planted[kind] - survivors[kind])) for kind, *_ in rows]
    assert len(rows) == len(ORDER)


def test_a_text_that_occurs_twice_is_refused(faults):
    fault = faults[0]
    for text in ("", 2 * fault.old):
        with pytest.raises(ValueError, match=re.escape(f"{fault.title}: expected its old text once")):
            fault.planted(text)


def test_runs_are_as_few_as_options_allow():
    tests = ["tests/a.py", "tests/b.py -k one", "tests/kernels/interpreted/c.py", "tests/d.py::test_it"]
    assert runs_of(tests) == [
        ["tests/a.py", "tests/d.py::test_it"],
        ["tests/kernels/interpreted/c.py"],
        ["tests/b.py", "-k", "one"],
    ]
