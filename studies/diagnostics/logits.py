"""Diagnostics that need the teacher's cached distributions, and so a tokenizer that teacher and student share."""

from studies.diagnostics.metrics import Diagnostic, Fit, Mean, Values


def kl(fit: Fit) -> Values:
    """Mean KL(p || q) from the student to the teacher, nats, over the cached tokens and one bucket for the rest."""
    return fit.collect(lambda reading: reading.kl.mean())


def covered_mass(fit: Fit) -> Values:
    """The student's mean probability of the tokens that the teacher's cache keeps."""
    return fit.collect(lambda reading: reading.mass.mean())


def agreement(fit: Fit) -> Values:
    """Share of tokens at which teacher and student find the same token the most probable."""
    return fit.collect(lambda reading: reading.agreement.mean())


METRICS: list[Diagnostic] = [
    Mean(kl, "lower", "Hinton et al. 2015, arXiv 1503.02531"),
    Mean(covered_mass, "higher", "this project"),
    Mean(agreement, "higher", "Stanton et al. 2021, arXiv 2106.05945"),
]
