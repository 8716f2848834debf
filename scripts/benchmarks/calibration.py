"""How often 95 % intervals hold the truth, beside a plain hierarchical bootstrap (seeds and questions, percentiles).

Studies with known effects and mostly 3 training seeds are simulated, `--simulations` of each kind (1000); `baseline` is
the bootstrap's coverage of the same ones, which knows nothing of groups of questions. Where each cell has one seed, the
interval is of these trained models, over other questions. Lines `over seeds only` are of 1.96 standard errors over
seeds, as papers print them; lines `pairs differ` are of the methods that generalise to other models; lines `parts` are
of the parts of a family, on grids of 4 and 8 families with unequal effects, of which the last part's is 0.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from scripts.benchmarks.inputs import make_parser
from scripts.benchmarks.measure import Measurement
from studies.design.calibration import (
    PART_EFFECTS,
    SCENARIOS,
    bootstrap_interval,
    estimate_interval,
    measure_coverage,
    measure_pair_coverage,
    measure_part_coverage,
    measure_size_coverage,
    normal_interval,
)


def run(args: list[str]) -> Iterator[Measurement]:
    """Yields the coverage of each interval in each scenario."""
    parser = make_parser("calibration", __doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    given = parser.parse_args(args)
    number = 2 if given.smoke else given.simulations
    for scenario in SCENARIOS:
        own = measure_coverage(scenario, estimate_interval, number)
        bootstrap = partial(bootstrap_interval, rng=np.random.default_rng(1))
        plain = measure_coverage(scenario, bootstrap, number)
        normal = measure_coverage(scenario, normal_interval, number)
        for target, share in own.items():
            name = f"{scenario.name}: {target}"
            yield Measurement.against(name, share, plain[target], "coverage")
            yield Measurement(f"{name}, over seeds only", normal[target], "coverage")
    for method, share in measure_pair_coverage(number).items():
        yield Measurement(f"pairs differ: gamma, {method}", share, "coverage")
    for num_families in PART_EFFECTS:
        for name, share in measure_part_coverage(num_families, number).items():
            yield Measurement(f"parts of {num_families} families: {name}", share, "coverage")
    yield Measurement("the size that an accuracy takes", measure_size_coverage(number), "coverage")
