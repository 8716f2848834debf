"""A sweep's arms are the ones that its file says, each with an id of its own that nothing but its content changes."""

import itertools
import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from studies.jobs.sweep import Sweep

EXPERIMENT = {
    "annotate": {"output": "teacher.parquet"},
    "cache_logits": {"output": "logits"},
    "fit": {"model": {"student": "s"}, "run": {"project": "p"}},
    "evaluate": {"model": {"student": "s"}},
}


@pytest.fixture(autouse=True)
def experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return tmp_path / "experiment.yaml"


def make_sweep(**grid) -> Sweep:
    return Sweep(config="experiment.yaml", group="g", **grid)


NAMES = st.lists(st.sampled_from(["model.a", "model.b", "data.c", "data.d", "e"]), unique=True, max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the experiment's file stays as it is
@given(NAMES, st.lists(st.integers(1, 3), min_size=5, max_size=5), st.integers(1, 3), st.integers(1, 2), st.data())
def test_arms_are_the_crossing(names, sizes, length, seeds, data):
    split = data.draw(st.integers(0, len(names)))
    product = {name: list(range(size)) for name, size in zip(names[:split], sizes, strict=False)}
    zipped = {name: list(range(length)) for name in names[split:]}
    further = [{"further": number} for number in range(data.draw(st.integers(0 if names else 1, 2)))]
    arms = make_sweep(product=product, zip=zipped, list=further, seeds=seeds, fixed={"fixed": 1}).arms()
    rows = range(length) if zipped else [0]
    expected = [
        {"fixed": 1, **dict(zip(product, chosen, strict=True)), **dict.fromkeys(zipped, row)}
        for row in rows
        for chosen in itertools.product(*product.values())
        if names
    ] + [{"fixed": 1, **settings} for settings in further]
    if seeds > 1:
        expected = [
            arm | {"seed_everything": n, "data.batches.order_seed": n} for arm in expected for n in range(seeds)
        ]
    assert list(arms.values()) == expected


def test_an_arms_id_is_its_content(experiment):
    first = make_sweep(product={"a": [1, 2], "b": [3]}).arms()
    assert make_sweep(list=[{"b": 3, "a": 2}]).arms().keys() == {[*first][1]}
    changed = {**EXPERIMENT, "fit": {"model": {"student": "other"}}}
    experiment.write_text(yaml.safe_dump(changed))
    assert not make_sweep(product={"a": [1, 2], "b": [3]}).arms().keys() & first.keys()


def test_jobs_are_the_stages_and_need_each_other():
    sweep = make_sweep(product={"model.loss.kl_weight": [0.25, 0.5]}, seeds=2)
    jobs = {job.name: job for job in sweep.jobs("grid.yaml")}
    assert [job.stage for job in jobs.values()] == ["annotate", "cache_logits", *["fit", "evaluate"] * 4, "sweep"]
    for arm, chosen in sweep.arms().items():
        fit, evaluate = jobs[f"fit-{arm}"], jobs[f"evaluate-{arm}"]
        assert fit.needs == ["annotate", "cache_logits"] and fit.done == f"runs/g/{arm}/DONE"
        assert f"--run.id={arm}" in fit.args and "--run.group=g" in fit.args
        assert f"--model.loss.kl_weight={chosen['model.loss.kl_weight']}" in fit.args
        assert evaluate.needs == [fit.name] and f"--model.student=runs/g/{arm}/student" in evaluate.args
        assert (
            f"--model.seed={chosen['seed_everything']}" in evaluate.args
            and f"--output={evaluate.done}" in evaluate.args
        )
    assert jobs["table"].args == ["grid.yaml", "--table"] and len(jobs["table"].needs) == 4


def test_values_of_any_kind_reach_the_command_line():
    schedule = {"shape": "linear", "start": 0, "end": 1, "until": 0.5}
    values = {"a": [None], "b": [True], "c": [[1, "x"]], "d": [schedule], "e": ["text"]}
    [_, _, fit, *_] = make_sweep(product=values).jobs("grid.yaml")
    assert {"--a=null", "--b=true", '--c=[1, "x"]', f"--d={json.dumps(schedule)}", "--e=text"} <= set(fit.args)


def test_the_table_shows_what_differs():
    sweep = make_sweep(product={"model.loss.kl_weight": [0.25, 0.5]}, fixed={"trainer.max_epochs": 1}, seeds=2)
    header, _, *rows = [line.strip("| ").split(" | ") for line in sweep.format_arms().splitlines()]
    assert [name.strip() for name in header] == ["arm", "kl_weight", "seed_everything", "val/loss", "test accuracy"]
    assert [row[0].strip() for row in rows] == [*sweep.arms()]


def test_wandb_runs_the_same_arms():
    sweep = make_sweep(product={"a": [1, 2]})
    given = sweep.to_wandb("grid.yaml")
    assert given["parameters"]["arm"]["values"] == [*sweep.arms()] and given["project"] == "p"
    assert given["method"] == "grid" and given["command"][-3:] == ["scripts.sweep", "grid.yaml", "${args}"]


@pytest.mark.parametrize(
    "grid, line",
    [
        ({}, "there are no arms"),
        ({"product": {"a": []}}, "a has no values"),
        ({"zip": {"a": [1, 2], "b": [1]}}, "2 of a, 1 of b"),
        ({"product": {"a": [1]}, "zip": {"a": [1]}}, "a is set in two places"),
        ({"fixed": {"a": 1}, "list": [{"a": 2}]}, "a is set in two places"),
        ({"product": {"seed_everything": [1]}, "seeds": 2}, "seed_everything is set in two places"),
    ],
)
def test_a_grid_that_means_nothing_is_refused(grid, line):
    with pytest.raises(ValueError, match=line):
        make_sweep(**grid)


def test_equal_arms_are_refused():
    with pytest.raises(ValueError, match="two arms are the same"):
        make_sweep(product={"a": [1, 1]}).arms()


def test_an_experiment_without_the_sections_is_refused(experiment):
    experiment.write_text("fit: {}\n")
    with pytest.raises(ValueError, match="sections fit and evaluate"):
        make_sweep(product={"a": [1]}).arms()
