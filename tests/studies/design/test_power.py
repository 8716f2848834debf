import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from scripts.study import main
from studies.design.calibration import SCENARIOS
from studies.design.grid import TeacherSpec
from studies.design.power import (
    Components,
    Power,
    format_power,
    measure_components,
    read_components,
    simulate_answers,
    simulate_seeds,
)
from studies.inference.statistics import estimate_contrast
from tests.studies.analysis.small_study import make_factorial, make_study

CONFIG = Path(__file__).parents[3] / "configs" / "experiments" / "microworld.yaml"
TWO_BY_TWO = np.array([0.5, -0.5, -0.5, 0.5])


def test_simulated_cells_have_their_accuracy_and_components():
    components = Components(0.6, 0.03, 0.75, 0.5)
    answers = simulate_answers(np.full(6, 0.6), 40, 5000, components, np.random.default_rng(0))
    found = measure_components(list(answers))
    assert found.accuracy == pytest.approx(0.6, abs=0.015)
    assert found.seed_sd == pytest.approx(0.03, rel=0.12)

    def correlate(latent: float) -> float:
        """Of two answers, each right where one of two correlated normal variables is above its threshold."""
        threshold = stats.norm.ppf(0.6)
        both = stats.multivariate_normal([0, 0], [[1, latent], [latent, 1]]).cdf([threshold, threshold])
        return (both - 0.36) / 0.24

    assert found.same_cell == pytest.approx(correlate(0.75), abs=0.02)
    assert found.other_cell == pytest.approx(correlate(0.5), abs=0.02)


def test_an_untrained_cell_does_not_vary_over_seeds():
    components, spread = Components(0.6, 0.1, 0.75, 0.5), np.array([1.0, 0.0])
    answers, able = simulate_seeds(np.array([0.6, 0.6]), 50, 4000, components, np.random.default_rng(0), spread)
    assert answers[0].mean(1).std() > 0.05 and answers[1].mean(1).std() < 0.01
    assert able[1] == pytest.approx(0.6)
    # A seed's accuracy is what it answers right, but for the questions that were drawn, which all seeds share.
    assert np.corrcoef(able[0], answers[0].mean(1))[0, 1] > 0.99


def test_questions_of_a_group_are_alike():
    components = Components(0.6, 0.0, 0.99, 0.5)
    answers, _ = simulate_seeds(np.array([0.6]), 1, 4000, components, np.random.default_rng(0), num_groups=400)
    groups = answers.reshape(400, 10).mean(1)
    assert groups.var() > 0.15 > 0.24 / 10


@pytest.mark.parametrize(("num_seeds", "num_questions"), [(2, 300), (3, 300), (5, 500)])
def test_predicted_power_is_the_simulated_one(num_seeds, num_questions):
    latent = SCENARIOS[-1].components
    rng = np.random.default_rng(0)
    components = measure_components(list(simulate_answers(np.full(4, 0.6), 200, 2000, latent, rng)))
    accuracies = np.array([0.63, 0.57, 0.57, 0.63])
    found = [
        estimate_contrast(list(simulate_answers(accuracies, num_seeds, num_questions, latent, rng)), TWO_BY_TWO).p
        for _ in range(400)
    ]
    power = Power(TWO_BY_TWO, num_seeds, num_questions, components).find(0.06)
    assert np.mean(np.array(found) < 0.05) == pytest.approx(power, abs=0.08)


def test_matched_seeds_have_the_power_of_their_differences():
    latent, rng = Components(0.6, 0.03, 0.75, 0.5), np.random.default_rng(0)
    components = measure_components(list(simulate_answers(np.full(4, 0.6), 200, 2000, latent, rng)))
    accuracies = np.array([0.64, 0.56, 0.56, 0.64])
    found = []
    for _ in range(400):
        answers_CSQ = simulate_answers(accuracies, 3, 300, latent, rng)
        value_SQ = np.einsum("c,csq->sq", TWO_BY_TWO, answers_CSQ)
        found.append(estimate_contrast([value_SQ], [1.0], is_matched=True).p < 0.05)
    power = Power(TWO_BY_TWO, 3, 300, components, is_matched=True).find(0.08)
    assert np.mean(found) == pytest.approx(power, abs=0.08)
    # Nine degrees of freedom become two.
    assert power < Power(TWO_BY_TWO, 3, 300, components).find(0.08) - 0.15


def test_power_of_stable_seeds_is_the_t_tests():
    # Answers of two seeds (nearly) alike, and of two arms independent: a paired t-test over questions.
    components = Components(0.5, 0.0, 0.999, 0.0)
    power = Power(np.array([1.0, -1.0]), 2, 200, components, num_draws=200_000)
    deviation = np.sqrt(0.5 / 200)
    quantile = stats.t.ppf(0.975, 199)
    expected = stats.nct.sf(quantile, 199, 0.12 / deviation) + stats.nct.cdf(-quantile, 199, 0.12 / deviation)
    assert power.find(0.12) == pytest.approx(expected, abs=0.005)
    assert power.find(0) == pytest.approx(0.05, abs=0.005)
    assert power.find(power.find_smallest(0.8)) == pytest.approx(0.8, abs=0.001)


def test_power_grows_with_seeds_questions_and_effect():
    def find(num_seeds: int, num_questions: int, effect: float) -> float:
        return Power(TWO_BY_TWO, num_seeds, num_questions, Components()).find(effect)

    assert find(3, 500, 0.03) < find(5, 500, 0.03) < find(10, 500, 0.03)
    assert find(5, 200, 0.03) < find(5, 1000, 0.03) and find(5, 500, 0.02) < find(5, 500, 0.05)


def test_a_grid_without_gamma_has_no_power(tmp_path):
    with pytest.raises(ValueError, match="all teachers are of the family l"):
        format_power(make_study(tmp_path, teachers={"l": TeacherSpec("l", model="m")}), Components(), 0.03)


def test_each_part_of_the_families_has_its_power(tmp_path):
    study = make_factorial(tmp_path)
    said = format_power(study, Components(), 0.03)
    assert "find a γ of tokenizer + architecture of 3 points" in said and "find a γ of style of 3 points" in said
    assert "Mind: lineage: all students are of the lineage one; it takes two lineages" in said


def test_a_pilot_gives_its_components(tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"components": [{"task": "t", **vars(Components(0.7, 0.01, 0.5, 0.2))}]}))
    assert read_components(path) == Components(0.7, 0.01, 0.5, 0.2)
    main(["power", f"--config={CONFIG}", "--effect=0.05", f"--pilot={path}"])
    out = capsys.readouterr().out
    assert "family interaction of 5 points" in out and "Accuracies near 70%" in out
    path.write_text('{"components": []}')
    with pytest.raises(ValueError, match="two training seeds"):
        read_components(path)
