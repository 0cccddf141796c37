"""Users and lists that are not what the position-based model says."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from opengcl.clicks.simulate import Events, Simulation, User


def cascade(attractiveness: np.ndarray, _: Simulation, rng: Generator) -> np.ndarray:
    """Reads from the top; goes on with probability .9 after passing over a result, and .3 after a click.

    A dynamic Bayesian network's user (Chapelle & Zhang 2009): whether a position is looked at depends on what stands
    above it.
    """
    clicked = np.zeros(attractiveness.shape, bool)
    looking = np.ones(len(attractiveness), bool)
    for position in range(attractiveness.shape[1]):
        clicked[:, position] = looking & (rng.random(len(looking)) < attractiveness[:, position])
        looking = looking & (rng.random(len(looking)) < np.where(clicked[:, position], 0.3, 0.9))
    return clicked


def trusting(attractiveness: np.ndarray, settings: Simulation, rng: Generator) -> np.ndarray:
    """Clicks on what is not attractive too, with probability .6 / k at position k: trust in the ranker.

    Agarwal et al. 2019: P(click | examined) = alpha + (1 - alpha) trust_k.
    """
    positions = np.arange(1, attractiveness.shape[1] + 1)
    wanted = attractiveness + (1 - attractiveness) * 0.6 / positions
    return rng.random(attractiveness.shape) < settings.examination(attractiveness.shape[1]) * wanted


def personal_lists(
    relevance: np.ndarray,
    sessions: int,
    settings: Simulation,
    rng: Generator,
    user: User,
    *,
    taste: float = 0.3,
    shuffled: bool = False,
) -> Events:
    """Each user has a taste, by which the ranker sorts and the user clicks; it replaces the ranker's noise by session.

    Then what stands high is better for this user than for others, and the model takes that for examination. With
    ``shuffled``, lists are in random order instead.
    """
    opinion = relevance + settings.ranker_noise * rng.standard_normal(len(relevance))
    tastes = taste * rng.standard_normal((sessions, len(relevance)))
    order = rng.random(tastes.shape) if shuffled else opinion + tastes
    shown = np.argsort(-order, axis=1)[:, : settings.depth]
    wanted = np.clip(relevance + tastes, 0, 1)[np.arange(sessions)[:, None], shown]
    clicked = user(settings.attractiveness(wanted), settings, rng)
    purchase = settings.purchase_ceiling * wanted**settings.purchase_gamma
    return shown, clicked, clicked & (rng.random(shown.shape) < purchase)
