"""`rookery eval` as people type it."""

import json

import pytest

from rookery.cli.main import main


def test_settings_may_stand_behind_options(capsys):
    assert main(["eval", "--limit", "4", "multihop", "--json", "hops=0", "multihop.distances=0", "--seed", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    settings = found["manifest"]["tasks"]["multihop"]["settings"]
    assert (settings["hops"], settings["distances"], settings["seed"]) == ([0], [0], 3)
    assert found["results"]["multihop"]["n"] == 4


def test_one_setting_is_for_every_task_that_has_it(capsys):
    assert main(["eval", "needle", "multihop", "repeats=1", "lengths=256", "--limit", "2", "--json"]) == 0
    tasks = json.loads(capsys.readouterr().out)["manifest"]["tasks"]
    assert [tasks[name]["settings"]["repeats"] for name in ("needle", "multihop")] == [1, 1]


def test_the_list_names_every_task_and_setting(capsys):
    from rookery.evaluate import TASKS
    from rookery.evaluate.tasks import module

    assert main(["eval", "--list"]) == 0
    said = capsys.readouterr().out
    for task in TASKS:
        assert f"\n{task} " in f"\n{said}"
        assert all(f" {name}=" in said for name in module(task).Settings.__dataclass_fields__)
    assert max(map(len, said.splitlines())) <= 100


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "no task: name at least one of perplexity, lambada"),
        (["lambda"], "no task 'lambda'; did you mean lambada"),
        (["lambada"], "lambada needs its data: give --data FILE"),
        (["needle", "lengthes=3"], "needle has no setting 'lengthes'; did you mean lengths"),
        (["needle", "mmlu.x=3"], "'mmlu' is not among the tasks (needle)"),
        (["needle", "--limit", "0"], "--limit: '0' is no whole number of 1 or more"),
        (["needle", "--prefix", "x"], "--prefix"),
        (["needle", "needle"], "given twice"),
        (["piqa", "mmlu", "--data", "a", "--data", "b"], "say which is for which task, --data TASK=FILE"),
        (["multihop", "--prefix", "4096", "--limit", "1"], "token 4096 is outside the model's vocabulary"),
    ],
)
def test_mistakes_are_one_line(capsys, given, said):
    assert main(["eval", *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
