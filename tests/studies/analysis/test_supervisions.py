"""What each supervision teaches, mean over students and teachers: by hand, and over the seeds of the mean."""

from studies.analysis.comparison import analyze, format_results
from studies.design.grid import expand
from studies.report.supervisions import name_gains, show_supervisions
from tests.studies.analysis.small_study import find, make_study, write_arm

KINDS = ["label", "rationale", "rationale+logits"]
PLACE = {"untuned": 20, "label": 22, "rationale": 50, "rationale+logits": 56}


def fill(study, by_seed: int, by_teacher: int = 0) -> None:
    """Of 100 questions, so many more are right of each kind, with each seed, and from teacher B."""
    for arm in expand(study):
        number = PLACE[arm.supervision] + by_teacher * (arm.teacher == "B")
        number += by_seed * arm.seed * (arm.teacher is not None)
        write_arm(study, arm, [question < number for question in range(100)])


def test_differences_by_hand(tmp_path):
    study = make_study(tmp_path, supervisions=KINDS)
    fill(study, by_seed=2, by_teacher=10)
    results = analyze(study)
    rows = {(row["supervision"], row["against"]): row for row in results["supervisions"]}
    assert {pair: (round(row["estimate"], 6), row["num_cells"]) for pair, row in rows.items()} == {
        ("label", "untuned"): (0.02, 2),
        ("rationale", "untuned"): (0.36, 4),
        ("rationale", "label"): (0.34, 4),
        # Only a family's own teacher has distributions: the same teachers' text is what they are held against.
        ("rationale+logits", "untuned"): (0.42, 2),
        ("rationale+logits", "rationale"): (0.06, 2),
    }
    assert all(row["low"] < row["estimate"] < row["high"] and row["num_seeds"] == 2 for row in rows.values())
    table = format_results(results)
    assert "- rationale over label: +34.0 points [" in table and "(mean over 4 arms)" in table
    [fact] = name_gains(results["supervisions"], [])
    assert fact.value == "+34.0 points" and "distributions over text +6.0 [" in fact.note
    assert len(show_supervisions(results)[0].rows) == 5


def test_a_seed_whose_questions_are_good_for_all_arms_counts_once(tmp_path):
    # Were the four arms of a seed independent, the interval would be half as wide.
    study = make_study(tmp_path, supervisions=KINDS, seeds=3, sizes=[16])
    fill(study, by_seed=10)
    rows = analyze(study)["supervisions"]
    over_label = find(rows, supervision="rationale", against="label")
    # Seeds are at 28, 38 and 48 points: Student's t of 2 degrees of freedom, 4.303, times 10 / sqrt(3), and questions.
    assert (over_label["high"] - over_label["low"]) / 2 > 0.2484
    # What a seed's questions do to text with and without distributions cancels.
    added = find(rows, supervision="rationale+logits", against="rationale")
    assert added["high"] - added["low"] < 0.12


def test_sizes_have_their_mean_first_and_one_seed_says_so(tmp_path):
    study = make_study(tmp_path, supervisions=["rationale"], sizes=[8, 32], seeds=1)
    fill(study, by_seed=0)
    results = analyze(study)
    assert [row["size"] for row in results["supervisions"]] == [None, 8, 32]
    assert all(row["seed_variance"] == "left out" for row in results["supervisions"])
    assert "- rationale over untuned: +30.0 points" in format_results(results)
    assert "(mean over 4 arms; 8 questions; over questions alone" in format_results(results)
    [fact] = name_gains(results["supervisions"], [8, 32])
    assert "over untuned, mean over 4 arms, mean over sizes 8, 32" in fact.note
