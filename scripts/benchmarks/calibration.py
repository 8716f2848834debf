"""How often 95 % intervals hold the truth, beside a plain hierarchical bootstrap (seeds and questions, percentiles).

Simulated studies with known effects, 3 training seeds; `baseline` is the bootstrap's coverage on the first tenth of them,
`--simulations` their number (1000). The interval of papers that report a mean and its standard error over seeds,
1.96 times, is the lines `... over seeds only`.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np

from scripts.benchmarks.measure import Measurement
from studies.calibration import (
    SCENARIOS,
    bootstrap_interval,
    estimate_interval,
    measure_coverage,
    normal_interval,
    simulate_pairs,
)


def run(args: list[str]) -> Iterator[Measurement]:
    """Yields the coverage of each interval in each scenario."""
    parser = argparse.ArgumentParser(prog="benchmark.py calibration")
    parser.add_argument("--simulations", type=int, default=1000)
    number = parser.parse_args(args).simulations
    for scenario in SCENARIOS:
        own = measure_coverage(scenario, estimate_interval, number)
        bootstrap = partial(bootstrap_interval, rng=np.random.default_rng(1))
        plain = measure_coverage(scenario, bootstrap, max(number // 10, 1))
        normal = measure_coverage(scenario, normal_interval, number)
        for target, share in own.items():
            name = f"{scenario.name}: {target}"
            yield Measurement.against(name, share, plain[target], "coverage")
            yield Measurement(f"{name}, over seeds only", normal[target], "coverage")
    for method, share in count_pairs(number).items():
        yield Measurement(f"pairs differ: gamma over {method}", share, "coverage")


def count_pairs(number: int) -> dict[str, float]:
    """Returns the coverage of the methods that generalise over models."""
    held = Counter(method for method, holds in simulate_pairs(number) if holds)
    return {method: count / number for method, count in held.items()}
