"""The Power-of-Ten checker: planted breaches are found at their lines, sound code has none, tricks do not count."""

import sysconfig
from pathlib import Path

import pytest

from phases.compliance.check import Report, check
from phases.compliance.rules import RULES
from phases.errors import ArtifactError

ROOT = Path(__file__).resolve().parents[3]


def report(folder: Path, source: str) -> Report:
    (folder / "planted.py").write_text(source)
    return check(folder)


def breaches(folder: Path, source: str) -> list[tuple[str, int]]:
    return [(finding.rule.split()[0], finding.line) for finding in report(folder, source).findings]


SOUND = '''
from itertools import repeat
LIMITS = {"most": 3}

def mean(values: list[float], most: int) -> float:
    """Return the mean."""
    if not values:
        raise ValueError("empty")
    if len(values) > most:
        raise ValueError("too many")
    total = 0.0
    for value in values:
        total += value
    left = most
    while left > 0:
        left -= 1
    return total / len(values)

def pop_all(waiting: list[int]) -> None:
    while waiting:
        waiting.pop()

class Shape:
    def area(self) -> float:
        return self.width() * 2.0
    def width(self) -> float:
        return 1.0
'''

PLANTED = {
    "recursion": ("def f(n: int) -> int:\n    return f(n - 1)\n", ("1", 1)),
    "recursion through another": (
        "def f(n: int) -> int:\n    return g(n)\ndef g(n: int) -> int:\n    return f(n)\n",
        ("1", 1),
    ),
    "recursion of a method": ("class A:\n    def f(self) -> int:\n        return self.f()\n", ("1", 2)),
    "eval": ("def f(text: str) -> object:\n    return eval(text)\n", ("1", 2)),
    "setattr by name": ("def f(o: object, n: str) -> None:\n    setattr(o, n, 1)\n", ("1", 2)),
    "while true": ("def f() -> None:\n    while True:\n        print()\n", ("2", 2)),
    "while that nothing ends": ("def f(go: list[int]) -> None:\n    while go:\n        print()\n", ("2", 2)),
    "endless iterator": (
        "import itertools\ndef f() -> None:\n    for i in itertools.count():\n        print(i)\n",
        ("2", 3),
    ),
    "allocation": (
        "import torch\ndef f(n: int) -> None:\n    while n > 0:\n        n -= int(torch.zeros(3).sum())\n",
        ("3", 4),
    ),
    "length": ("def f() -> None:\n" + "    print()\n" * 60, ("4", 1)),
    "no checks": ("def f(a: int) -> None:\n" + "    print(a)\n" * 10, ("5", 1)),
    "global": ("N = 0\ndef f() -> None:\n    global N\n    N = 1\n", ("6", 3)),
    "shared list": ("SEEN = []\ndef f(x: int) -> None:\n    SEEN.append(x)\n", ("6", 3)),
    "shared dictionary": ("SEEN: dict[int, int] = {}\ndef f(x: int) -> None:\n    SEEN[x] = 1\n", ("6", 3)),
    "dropped result": ("def g() -> int:\n    return 1\ndef f() -> None:\n    g()\n", ("7", 4)),
    "patch": ("import json\ndef f() -> None:\n    json.dumps = print\n", ("8", 3)),
    "import by name": (
        "import importlib\ndef f(n: str) -> object:\n    return importlib.import_module(n)\n",
        ("8", 3),
    ),
    "deep reach": ("def f(a: object) -> object:\n    return a.b.c.d.e\n", ("9", 2)),
    "untyped": ("def f(a):\n    return a\n", ("10", 1)),
    "silenced": ("def f(a: int) -> int:\n    return a  # type: ignore[no-any-return]\n", ("10", 2)),
}


def test_sound_code_has_no_findings(tmp_path: Path) -> None:
    found = report(tmp_path, SOUND)
    assert found.findings == ()
    assert (found.files, found.functions, found.score) == (1, 4, 1.0)


@pytest.mark.parametrize("name", PLANTED)
def test_planted_breach_is_found_at_its_line(tmp_path: Path, name: str) -> None:
    source, expected = PLANTED[name]
    assert expected in breaches(tmp_path, source)


@pytest.mark.parametrize(
    "trick",
    [
        "True",
        "1 < 2",
        "a == a",
        "a or True",
        "len(a) >= 0",
        "isinstance(a, object)",
    ],
)
def test_checks_that_cannot_fail_do_not_count(tmp_path: Path, trick: str) -> None:
    body = "    print(a)\n" * 10
    fake = f"def f(a: list[int]) -> None:\n    assert {trick}\n    assert {trick}\n{body}"
    real = f"def f(a: list[int]) -> None:\n    assert a\n    b = len(a)\n    assert b < 9\n{body}"
    assert ("5", 1) in breaches(tmp_path, fake)
    assert breaches(tmp_path, real) == []


def test_score_is_the_share_of_pairs_and_counts_a_pair_once(tmp_path: Path) -> None:
    loop = "    while True:\n        print(a)\n"
    source = f"def f(a):\n{loop}{loop}def g() -> None:\n    print()\n"
    found = report(tmp_path, source)
    assert len(found.findings) == 3
    assert found.score == pytest.approx(1 - 2 / (2 * len(RULES)))
    assert found.table["2 bounded loops"] == 0.5
    assert str(found.findings[0]).startswith(f"{tmp_path / 'planted.py'}:2: rule 2 ")


def test_refuses_what_is_not_python(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no Python file"):
        check(tmp_path)
    (tmp_path / "broken.py").write_text("def f(:")
    with pytest.raises(ArtifactError, match=r"broken\.py"):
        check(tmp_path)


def test_our_code_keeps_the_rules_and_a_known_package_does_not() -> None:
    assert check(ROOT / "phases" / "compliance").score >= 0.95
    assert check(Path(sysconfig.get_paths()["stdlib"]) / "json").score < 0.85
