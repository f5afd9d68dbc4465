"""Each task's answer is right by another way of finding it, and test instances are never in train."""

import json

import pytest

from phases.corpus.tasks import TASKS, split_of, task_instances
from phases.corpus.tasks.instance import TaskInstance


def solve(task: str, prompt: str) -> str:
    words = prompt.removesuffix(" =").split()
    if task == "arithmetic":
        return str(int(words[0]) + int(words[2]) if words[1] == "+" else int(words[0]) - int(words[2]))
    if task == "permutation":
        tables = [dict(zip("abcd", factor, strict=True)) for factor in words[1:]]
        state = list("abcd")
        for table in tables:
            state = [table[letter] for letter in state]
        return "".join(state)
    if task == "pointer":
        arrows = dict(word.split(">") for word in words if ">" in word)
        node = words[-1]
        while arrows[node] != node:
            node = arrows[node]
        return node
    pairs = dict(word.split(":") for word in words if ":" in word)
    return pairs[words[-1]]


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"tool_call"}))
def test_answers_are_right(task: str) -> None:
    for instance in task_instances(task, "train", 200, seed=1):
        assert instance.answer == solve(task, instance.prompt)


def test_tool_calls_are_json_with_the_arguments_asked_for() -> None:
    for instance in task_instances("tool_call", "train", 100, seed=1):
        call = json.loads(instance.answer)
        assert set(call) == {"name", "arguments"}
        for value in call["arguments"].values():
            wanted = str(value).removeprefix("print(").removesuffix(")")
            assert wanted in instance.prompt


@pytest.mark.parametrize("task", TASKS)
def test_splits_are_disjoint_whatever_the_seed(task: str) -> None:
    train = {i.prompt for seed in range(5) for i in task_instances(task, "train", 200, seed)}
    test = {i.prompt for seed in range(5, 10) for i in task_instances(task, "test", 50, seed)}
    assert not train & test


@pytest.mark.parametrize("task", TASKS)
def test_seeds_give_other_instances(task: str) -> None:
    first, second = (task_instances(task, "train", 50, seed) for seed in (1, 2))
    assert first == task_instances(task, "train", 50, 1)
    assert first != second


def test_depths_vary() -> None:
    depths = {instance.depth for instance in task_instances("pointer", "train", 300, 0)}
    assert depths == set(range(1, 7))


def test_split_shares() -> None:
    counts = [split_of(str(number).encode()) for number in range(20_000)]
    assert abs(counts.count("train") / 20_000 - 0.90) < 0.01
    assert abs(counts.count("test") / 20_000 - 0.05) < 0.01


def test_checking_ignores_white_space_only() -> None:
    instance = TaskInstance("p", "12", 1)
    assert instance.check(" 12\n")
    assert not instance.check("12.")
