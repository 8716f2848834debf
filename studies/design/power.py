"""What a study can see before it runs, and grids with known effects on which its statistics are checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit
from scipy.stats import norm

from datamodules.files.atomic import require_file
from datamodules.files.command_line import CommandLine
from datamodules.files.seals import read_sealed
from lightning_modules.evaluation.proportions import LEVEL
from studies.design.grid import Study
from studies.design.parts import decompose_study, explain_missing_gamma, list_unidentified
from studies.inference.interaction import decompose
from studies.text_table import format_table

SEEDS = (2, 3, 5, 10)
QUESTIONS = (200, 500, 1000, 2000)


@dataclass(frozen=True)
class Components:
    """How the answers of a study's cells vary.

    The defaults suit a task that is neither easy nor hopeless; a pilot's own are in its `results.json`. On the
    microworld an arm's seeds differ by 0 to 3 points and correlate by 0.4 to 0.9, other arms' answers by 0 to 0.1.

    Attributes:
        accuracy: Mean over cells.
        seed_sd: Standard deviation of a cell's accuracy over training seeds, all questions answered.
        same_cell: Correlation of two seeds' answers to a question.
        other_cell: Correlation of two cells' answers to a question.
    """

    accuracy: float = 0.6
    seed_sd: float = 0.02
    same_cell: float = 0.6
    other_cell: float = 0.3


def measure_components(cells: Sequence[np.ndarray]) -> Components:
    """Returns the variance components of cells that answered the same questions.

    Args:
        cells: [S_c, Q] each; at least two, with two seeds or more.
    """
    seeds, same, total = [], [], []
    for cell_SQ in cells:
        num_seeds, num_questions = cell_SQ.shape
        rest_SQ = cell_SQ - cell_SQ.mean(1, keepdims=True) - cell_SQ.mean(0) + cell_SQ.mean()
        rest = (rest_SQ**2).sum() / (num_seeds - 1) / (num_questions - 1)
        seeds.append(cell_SQ.mean(1).var(ddof=1) - rest / num_questions)
        same.append(cell_SQ.mean(0).var(ddof=1) - rest / num_seeds)
        total.append(cell_SQ.mean() * (1 - cell_SQ.mean()))
    between_CC = np.cov([cell.mean(0) for cell in cells])
    other = (between_CC.sum() - np.trace(between_CC)) / len(cells) / (len(cells) - 1)
    variance = max(float(np.mean(total)), 1e-9)
    return Components(
        float(np.mean([cell.mean() for cell in cells])),
        float(np.sqrt(max(np.mean(seeds), 0))),
        float(np.mean(same)) / variance,
        float(other) / variance,
    )


def read_components(path: Path) -> Components:
    """Reads the variance components of a study's plain arms from its `results.json`.

    Raises:
        ValueError: It has none.
    """
    found = read_sealed(require_file(path, "--pilot")).get("components")
    if not found:
        raise ValueError(f"{path}: has no variance components; they take two cells with two training seeds each")
    return Components(**{name: found[0][name] for name in vars(Components())})


def simulate_answers(
    accuracy_C: np.ndarray, num_seeds: int, num_questions: int, components: Components, rng: np.random.Generator
) -> np.ndarray:
    """Draws the answers, 0 or 1, [C, S, Q], of cells with known accuracies; see `simulate_seeds`."""
    return simulate_seeds(accuracy_C, num_seeds, num_questions, components, rng)[0]


def simulate_seeds(
    accuracy_C: np.ndarray,
    num_seeds: int,
    num_questions: int,
    components: Components,
    rng: np.random.Generator,
    spread_C: np.ndarray | None = None,
    num_groups: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the answers of cells with known accuracies, and how able each seed is.

    A cell's seed answers a question right where a normal variable is positive, the sum of how hard the question is for
    all, how hard for this cell, how good this seed is, and chance. The correlations are these variables'. In groups of
    questions, the questions of a group are as hard as each other, for all and for each cell.

    Args:
        accuracy_C: Of each cell, over all seeds and questions.
        num_seeds: Of each cell.
        num_questions: The same for all cells.
        components: The accuracy is not used; seed_sd is that of a cell of this accuracy, and smaller near 0 and 1.
        rng: Draws.
        spread_C: What each cell's standard deviation over seeds is multiplied by, 0 for none; by default 1.
        num_groups: Of as many questions each; by default each question is its own.

    Returns:
        Answers, 0 or 1, [C, S, Q], and each seed's accuracy over all questions, [C, S].
    """
    scale = components.seed_sd / norm.pdf(norm.ppf(components.accuracy))
    seeds_C11 = (scale * np.reshape(np.ones_like(accuracy_C) if spread_C is None else spread_C, (-1, 1, 1))) ** 2
    shared, own = components.other_cell, components.same_cell - components.other_cell
    num_cells, num_groups = len(accuracy_C), num_groups or num_questions
    repeats = num_questions // num_groups
    latent_CSQ = np.sqrt(1 - shared - own - seeds_C11) * rng.standard_normal((num_cells, num_seeds, num_questions))
    latent_CSQ += np.sqrt(shared) * rng.standard_normal(num_groups).repeat(repeats)
    latent_CSQ += np.sqrt(own) * rng.standard_normal((num_cells, 1, num_groups)).repeat(repeats, -1)
    seeds_CS1 = np.sqrt(seeds_C11) * rng.standard_normal((num_cells, num_seeds, 1))
    ease_C11 = norm.ppf(accuracy_C)[:, None, None]
    accuracy_CS = norm.cdf((ease_C11 + seeds_CS1) / np.sqrt(1 - seeds_C11))[..., 0]
    return (latent_CSQ + seeds_CS1 > -ease_C11).astype(float), accuracy_CS


class Power:
    """The power of a contrast's test in a study that has not run.

    Draws what the study will estimate: the contrast, and its variance over questions and over seeds.

    Args:
        weights_C: The contrast's, which sum to 0.
        num_seeds: Of each cell, at least 2.
        num_questions: The same for all cells.
        components: How answers vary.
        is_matched: Seeds of one number learn from the same draw of questions, so that contrasts are taken seed by seed.
        num_draws: Studies to draw.
        seed: Of the draws.
    """

    def __init__(
        self,
        weights_C: np.ndarray,
        num_seeds: int,
        num_questions: int,
        components: Components,
        is_matched: bool = False,
        num_draws: int = 20_000,
        seed: int = 0,
    ):
        rng = np.random.default_rng(seed)
        squares_C = weights_C[weights_C != 0] ** 2
        answer = components.accuracy * (1 - components.accuracy)
        rest_C = squares_C * answer * max(1 - components.same_cell, 0) / num_seeds / num_questions
        own = squares_C.sum() * answer * max(components.same_cell - components.other_cell, 0) / num_questions
        questions, seeds_C = own + rest_C.sum(), squares_C * components.seed_sd**2 / num_seeds
        df, varying_C = num_seeds - 1, seeds_C + rest_C
        questions_N = questions * rng.chisquare(num_questions - 1, num_draws) / (num_questions - 1)
        if is_matched:
            varying_C = varying_C.sum(keepdims=True)
        found_NC = varying_C * rng.chisquare(df, (num_draws, len(varying_C))) / df
        found_N, rest = found_NC.sum(1), rest_C.sum()
        df_N = found_N**2 / (found_NC**2 / df).sum(1)
        tail = (1 + LEVEL) / 2
        t_N = stdtrit(df_N, tail)
        # As `studies.inference.statistics.Uncertainty` has it.
        seeds_N = t_N**2 * found_N - (stdtrit(1.5 * df_N, tail) if is_matched else t_N) ** 2 * rest
        self.half_N = np.sqrt(stdtrit(num_questions - 1, tail) ** 2 * questions_N + np.maximum(seeds_N, 0))
        self.error_N = float(np.sqrt(questions + seeds_C.sum())) * rng.standard_normal(num_draws)

    def find(self, effect: float) -> float:
        """Returns the probability that an effect of this size is found."""
        return float((np.abs(effect + self.error_N) > self.half_N).mean())

    def find_smallest(self, power: float = 0.8) -> float:
        """Returns the smallest effect that is found with this probability."""
        high = 20 * float(self.half_N.mean())
        return float(brentq(lambda effect: self.find(effect) - power, 0, high, xtol=1e-6))


def list_contrasts(study: Study) -> dict[str, np.ndarray]:
    """Returns the weights of what a study estimates, by name: family interaction, parts, and a difference of two arms.

    Raises:
        ValueError: The grid identifies neither the family interaction nor a part's.
    """
    families = [[spec.family for spec in specs.values()] for specs in (study.students, study.teachers)]
    effects, reason = decompose_study(study).effects, explain_missing_gamma(study)
    if reason and not effects:
        raise ValueError(f"the family interaction is not identified: {reason}")
    found = {} if reason else {"family interaction": decompose(*families).gamma_ST.reshape(-1)}
    found |= {f"γ of {' + '.join(effect.parts)}": effect.weights_ST.reshape(-1) for effect in effects}
    return found | {"difference between two arms": np.array([1.0, -1.0])}


def format_power(study: Study, components: Components, effect: float) -> str:
    """Returns as Markdown what a study can see, for some numbers of seeds and questions.

    Raises:
        ValueError: The grid identifies neither the family interaction nor a part's.
    """
    contrasts = list_contrasts(study)
    parts = []
    for name, weights_C in contrasts.items():
        rows = []
        for num_seeds in SEEDS:
            powers = [Power(weights_C, num_seeds, number, components, bool(study.sizes)) for number in QUESTIONS]
            found = [f"{power.find(effect):.0%} ({100 * power.find_smallest():.1f})" for power in powers]
            rows.append([f"{num_seeds}", *found])
        columns = ["training seeds", *(f"{number} questions" for number in QUESTIONS)]
        parts += [
            f"Power to find a {name} of {100 * effect:g} points (the smallest that is found with 80 %):",
            format_table(columns, rows, right=range(1, len(columns))),
        ]
    parts += [f"Mind: {line}." for line in list_unidentified(study)]
    if study.sizes:
        parts.append(
            "Mind: each seed draws its questions, for all arms. Contrasts are taken seed by seed, and vary more where "
            "an effect differs between draws, which the standard deviation over seeds is to include."
        )
    c = components
    parts.append(
        f"Accuracies near {c.accuracy:.0%}, standard deviation over seeds {100 * c.seed_sd:.1f} points, correlation of "
        f"answers to a question {c.same_cell:.2f} between seeds of an arm and {c.other_cell:.2f} between arms."
    )
    return "\n\n".join(parts)


def parse_power(args: list[str]) -> tuple[Callable[[Study], str], list[str]]:
    """Returns what prints a study's power as a command line asks for it, and the other arguments, which name the study.

    Raises:
        ValueError: The pilot's file is missing or holds no components.
    """
    parser = CommandLine(prog="python -m scripts.study power", allow_abbrev=False)
    parser.add_argument("--effect", type=float, default=0.03, help="as a share: 0.03 is 3 points")
    parser.add_argument("--pilot", type=Path, metavar="RESULTS", help="a results.json, whose variances are expected")
    for name, value in vars(Components()).items():
        parser.add_argument(f"--{name}", type=float, default=value, help="without a pilot; default %(default)s")
    own, rest = parser.parse_known_args(args)
    given = Components(**{name: getattr(own, name) for name in vars(Components())})
    components = read_components(own.pilot) if own.pilot else given

    def ask(study: Study) -> str:
        return format_power(study, components, own.effect)

    return ask, rest
