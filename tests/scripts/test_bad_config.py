"""A wrong setting, or a wrong study: one clear line on stderr, exit code 2, and nothing written."""

import json

import pytest

from scripts import study
from tests.scripts.conftest import COMMANDS
from tests.scripts.pipeline import MAINS

STAGES = ("annotate", "cache_logits", "fit", "evaluate")


# Unknown keys, wrong types, wrong numbers.


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--data.promt=plain", "promt"),
        ("--modle.dtype=float32", "modle"),
        ("--trainer.max_epoch=3", "max_epoch"),
        ("--data.limit=many", "limit"),
        ("--data.limit=0", "limit"),
        ("--data.encoding.max_length=-5", "max_length"),
        ("--model.dtype=float8", "dtype"),
        ("--data.prompt=socratic", "'socratic'"),
        ("--seed_everything=later", "seed_everything"),
    ],
)
def test_option_is_wrong(bench, stage, option, named):
    assert named in bench.refuse(stage, option)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"data": {"promt": "plain"}}, "promt"),
        ({"modle": {"dtype": "float32"}}, "modle"),
        ({"model": {"keep_layers": "all"}}, "keep_layers"),
        ({"data": {"skip_too_long": "perhaps"}}, "skip_too_long"),
        ({"trainer": {"max_epochs": "three"}}, "max_epochs"),
    ],
)
@pytest.mark.parametrize("in_section", [True, False])
def test_key_of_a_file_is_wrong(bench, stage, section, named, in_section):
    (bench.folder / "x.yaml").write_text(json.dumps({stage: section} if in_section else section))
    assert named in bench.refuse(stage, "--config=x.yaml")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"data": {"prompt": None}}, "data.prompt: must be str, not null"),
        ({"data": {"encoding": {"max_length": None}}}, "data.encoding.max_length: must be PositiveInt, not null"),
        ({"trainer": {"num_nodes": None}}, "trainer.num_nodes: must be int, not null"),
    ],
)
def test_key_of_a_file_is_null(bench, stage, section, named):
    (bench.folder / "x.yaml").write_text(json.dumps({stage: section}))
    line = bench.refuse(stage, "--config=x.yaml")
    assert named in line and "x.yaml:1" in line


def test_run_group_of_a_file_is_null(bench):
    (bench.folder / "x.yaml").write_text("fit:\n  run:\n    group: ~\n    project: ~\n")
    assert "x.yaml:3: run.group: must be str, not null" in bench.refuse("fit", "--config=x.yaml")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        *((f"--model.loss.kl_weight={value}", "kl_weight") for value in ("1.5", "-0.1", "nan", ".nan", "inf", "half")),
        *(
            (f"--model.loss.{segment}_weight={value}", f"{segment}_weight")
            for segment in ("rationale", "answer")
            for value in ("-1", ".nan", "nan", ".inf", "inf")
        ),
        *((f"--model.loss.temperature={value}", "temperature") for value in ("0", "-1", ".nan", ".inf")),
        *((f"--model.learning_rate={value}", "learning_rate") for value in ("0", "-1e-3", ".nan", ".inf")),
        *((f"--model.weight_decay={value}", "weight_decay") for value in ("-1", ".nan", ".inf")),
        ("--model.warmup_ratio=1.1", "warmup_ratio"),
        ("--model.schedule=step", "schedule"),
        ("--data.validation.fraction=-0.5", "fraction"),
        ("--data.validation.fraction=.nan", "fraction"),
        ("--data.supervision=answers", "supervision"),
        ("--data.batches.num_workers=-1", "num_workers"),
        ("--trainer.logger=true", "trainer.logger"),
        ("--model.keep_layers=[1,0]", "keep_layers"),
        ("--model.keep_layers=[0,2]", "keep_layers"),
        ("--model.revision=abc", "revision"),
    ],
)
def test_setting_of_fit_is_wrong(bench, option, named):
    assert named in bench.refuse("fit", option)


@pytest.mark.parametrize("value", ["1.5", "-0.1", ".nan"])
def test_lambda_in_a_file_is_outside_0_1(bench, value):
    (bench.folder / "x.yaml").write_text(f"fit: {{model: {{loss: {{kl_weight: {value}}}}}}}")
    # A command line's own would go before it.
    left = [arg for arg in COMMANDS["fit"] if not arg.startswith("--model.loss.kl_weight")]
    assert "kl_weight" in bench.refuse_main(MAINS["fit"], [*left, "--config=x.yaml"])


def test_several_samples_need_a_temperature(bench):
    line = bench.refuse("annotate", "--model.num_samples=3")
    assert "num_samples=3" in line and "temperature" in line


@pytest.mark.parametrize("value", ["-1", ".nan", ".inf", "hot"])
def test_sampling_temperature_is_wrong(bench, value):
    assert "temperature" in bench.refuse("annotate", "--model.num_samples=3", f"--model.temperature={value}")


@pytest.mark.parametrize("value", ["[0]", "[-1.0]", "[.nan]", "[.inf]", "[1.0,warm]"])
def test_cached_temperature_is_wrong(bench, value):
    assert "temperatures" in bench.refuse("cache_logits", f"--model.temperatures={value}")


# Studies.

STUDY = {
    "name": "tiny",
    "tasks": {"colours": {"train": "colours_train.jsonl", "test": ["colours_train.jsonl"]}},
    "students": {"s": {"model": "models/student", "family": "tiny"}},
    "teachers": {"t": {"model": "models/teacher", "family": "tiny"}},
    "supervisions": ["label"],
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"supervision": ["label"]}, "supervision"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": "two"}, "seeds"),
        ({"workers": -1}, "workers"),
        ({"supervisions": ["labels"]}, "supervisions"),
        ({"tasks": {"colours": {"train": "x.jsonl"}}}, "test"),
        ({"tasks": {"colours": {"train": "x.jsonl", "tests": ["x.jsonl"]}}}, "tests"),
        ({"students": {}}, "student"),
        ({"students": {"s": {"model": "models/student"}}}, "family"),
        ({"students": {"s": {"modle": "models/student", "family": "tiny"}}}, "modle"),
        ({"teachers": {"t": {"family": "tiny"}}}, "model"),
        ({"teachers": {"t": {"family": "tiny", "model": "m", "rationales": "r.jsonl", "name": "x"}}}, "rationales"),
        ({"teachers": {"t": {"family": "tiny", "rationales": "r.jsonl"}}}, "name"),
    ],
)
def test_study_is_wrong(bench, change, named):
    (bench.folder / "x.yaml").write_text(json.dumps({"study": {**STUDY, **change}}))
    assert named in bench.refuse_main(study.main, ["run", "--config=x.yaml"])


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"fit": {"model": {"learning_rte": 1}}, "evaluate": {}}, "learning_rte"),
        ({"fit": {"model": {"loss": {"answer_weight": -1}}}, "evaluate": {}}, "answer_weight"),
        ({"fit": {}, "evaluate": {"data": {"limit": "all"}}}, "limit"),
        ({"fit": {}}, "no section evaluate"),
        ({"fit": {}, "evaluate": {}, "training": {}}, "training"),
    ],
)
def test_section_is_refused_before_any_stage_runs(bench, sections, named):
    (bench.folder / "x.yaml").write_text(json.dumps({"study": STUDY, "annotate": {}, **sections}))
    assert named in bench.refuse_main(study.main, ["run", "--config=x.yaml"])


def test_study_needs_one_config(bench):
    (bench.folder / "x.yaml").write_text(json.dumps({"study": STUDY}))
    assert "--config" in bench.refuse_main(study.main, ["run"])
    assert "--config" in bench.refuse_main(study.main, ["run", "--config=x.yaml", "--config=x.yaml"])
    assert "'demo'" in bench.refuse_main(study.main, ["demo"])
    assert "nowhere.yaml" in bench.refuse_main(study.main, ["run", "--config=nowhere.yaml"])
