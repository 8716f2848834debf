"""The family interaction part by part, of each complete grid of a study's cells, with Holm's adjustment over parts."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from studies.analysis.estimator import ContrastEstimator
from studies.analysis.interactions import Grid, Group
from studies.design.grid import Study
from studies.design.parts import decompose_study
from studies.inference.interaction import estimate_over_pairs
from studies.inference.statistics import Estimate, adjust_holm
from studies.numbers import between, estimated

DIFFERENCES, PAIRS = "difference in differences", "mixed model"
LEVEL_OF_PROOF = 0.05


def describe_parts(
    study: Study, estimator: ContrastEstimator, grids: Mapping[Group, Grid]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns a row for each effect of a part and each method, and a row for each refusal.

    Args:
        study: Which says what parts its models have.
        estimator: Of its cells.
        grids: Complete ones.
    """
    rows, refusals = list[dict[str, Any]](), list[dict[str, Any]]()
    for group, grid in grids.items():
        where = group._asdict()
        decomposed = decompose_study(study, grid.students, grid.teachers)
        refusals += [{**where, "parts": list(own.parts), "reason": own.reason} for own in decomposed.refusals]
        if not decomposed.effects:
            continue
        shape = decomposed.weights_GST.shape[1:]
        accuracy_ST = np.reshape([estimator.mean(key) for key in grid.keys.values()], shape)
        keys = [*grid.keys.values()]
        found = [
            (effect.parts, estimator.contrast(dict(zip(keys, effect.weights_ST.reshape(-1).tolist(), strict=True))))
            for effect in decomposed.effects
        ]
        facts = {
            "num_students": shape[0],
            "num_teachers": shape[1],
            "num_seeds": estimator.count_seeds(keys),
            "num_questions": estimator.questions[group.task],
        }
        rows += _list_rows(where | facts, found, DIFFERENCES, estimator.seed_source(keys), "")
        over_pairs = estimate_over_pairs(accuracy_ST, decomposed.weights_GST, decomposed.rank)
        if over_pairs is not None:
            estimates, df = over_pairs
            named = [(effect.parts, estimates[effect.place]) for effect in decomposed.effects]
            note = f"{df} degrees of freedom" + (": very few" if df < 4 else "")
            rows += _list_rows(where | facts, named, PAIRS, None, note)
    return rows, refusals


def _list_rows(
    facts: dict[str, Any], found: list[tuple[tuple[str, ...], Estimate]], method: str, source: str | None, note: str
) -> list[dict[str, Any]]:
    adjusted = adjust_holm([estimate.p for _, estimate in found])
    return [
        {
            **facts,
            "parts": list(parts),
            "method": method,
            **asdict(estimate),
            "p_holm": p,
            "seed_variance": source,
            "note": note,
        }
        for (parts, estimate), p in zip(found, adjusted, strict=True)
    ]


def group_parts(rows: Iterable[dict[str, Any]]) -> dict[Group, list[dict[str, Any]]]:
    """Returns rows of parts, or refusals, by the grid that they are of."""
    groups = defaultdict(list)
    for row in rows:
        groups[Group(*(row[name] for name in Group._fields))].append(row)
    return groups


def name_parts(row: dict[str, Any]) -> str:
    """Returns what a row's effect is called."""
    return " + ".join(row["parts"])


def explain_parts(rows: list[dict[str, Any]], refusals: list[dict[str, Any]]) -> str:
    """Returns what a grid says of which part of the family it was, and what it leaves open.

    Args:
        rows: Of one grid.
        refusals: Likewise.
    """
    own = [row for row in rows if row["method"] == DIFFERENCES]
    shown = [row for row in own if row["p_holm"] < LEVEL_OF_PROOF]
    others = [row for row in own if row["p_holm"] >= LEVEL_OF_PROOF]
    over_pairs = {name_parts(row): row for row in rows if row["method"] == PAIRS}
    said = []
    if shown:
        listed = " and ".join(_name_effect(row) for row in sorted(shown, key=lambda row: -abs(row["estimate"])))
        said.append(f"Which part of the family it was: {listed}.")
    elif own:
        said.append("Which part of the family it was does not show: no part's γ can be told from 0.")
    if others:
        listed = ", ".join(_name_effect(row) for row in others)
        said.append(f"Other seeds or questions could make nothing of {listed}; that is no proof that there is none.")
    for row in own:
        if len(row["parts"]) > 1:
            said.append(f"{_join(row['parts'])} always go together in this grid: it may be any of them.")
    for refusal in refusals:
        said.append(f"Of {_join(refusal['parts'])} it says nothing: {refusal['reason']}.")
    for row in shown:
        pair = over_pairs.get(name_parts(row))
        if pair is not None and pair["low"] <= 0 <= pair["high"]:
            interval = between(pair["low"], pair["high"])
            said.append(f"Over other pairs of models {name_parts(row)} has {interval}: beyond these it is not shown.")
    if len(own) > 1:
        said.append("The effects are taken to add up; what two parts do only together is divided among them.")
    return " ".join(said)


def _name_effect(row: dict[str, Any]) -> str:
    return f"{name_parts(row)} ({estimated(row)})"


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
