"""Features on a plane, and how well they keep classes apart."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

from cass_scale.errors import MissingExtra
from cass_scale.evaluation.indicators import NEIGHBOURS, directions, nearest
from cass_scale.evaluation.metrics import Array
from cass_scale.insight.unsuited import Unsuited

LEAST = 6  # images: fewer have no neighbourhoods


def plane(how: str, features: Array, seed: int) -> Array:
    """Features [N, D] on a plane [N, 2] by `tsne` or `umap`, by cosine; the same for the same seed.

    Raises Unsuited for fewer than 6 images or features that are all the same, MissingExtra without umap-learn.
    """
    if len(features) < LEAST:
        raise Unsuited(f"{len(features)} images are too few for a map; {LEAST} are needed")
    rows = directions(features)
    if np.ptp(rows, axis=0).max() < 1e-6:
        raise Unsuited("all images have the same features")
    return _tsne(rows, seed) if how == "tsne" else _umap(rows, seed)


def _tsne(rows: Array, seed: int) -> Array:
    """van der Maaten and Hinton 2008; begun from the principal axes, so that a seed changes little."""
    perplexity = min(30.0, (len(rows) - 1) / 3)
    made = TSNE(2, perplexity=perplexity, metric="cosine", init="pca", random_state=seed, n_jobs=1).fit_transform(rows)
    return np.asarray(made)


def _umap(rows: Array, seed: int) -> Array:
    """McInnes et al. 2018, arXiv 1802.03426."""
    try:
        import umap
    except ImportError as why:
        raise MissingExtra("umap-learn", "umap", "maps=[umap]") from why
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a seed costs its threads
        neighbours = min(15, len(rows) - 1)
        return np.asarray(umap.UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed).fit_transform(rows))


def separation(features: Array, labels: Array, *, k: int = NEIGHBOURS) -> dict[str, float]:
    """How far classes (int [N]) are apart in features [N, D], by cosine around the mean.

    silhouette: -1 to 1, 0 = classes overlap (Rousseeuw 1987). purity: share of the k nearest other images that have
    an image's class; chance: what it would be if classes were dealt out. Raises Unsuited where there are fewer than
    two classes, or as many as images.
    """
    n, sizes = len(labels), np.unique(labels, return_counts=True)[1]
    if not 2 <= len(sizes) < n:
        raise Unsuited(f"{len(sizes)} class(es) among {n} images: nothing to keep apart")
    rows = directions(features)
    near = nearest(rows, min(k, n - 1))
    return {
        "silhouette": float(silhouette_score(rows, labels, metric="cosine")),
        "purity": float((labels[near] == labels[:, None]).mean()),
        "chance": float((sizes * (sizes - 1)).sum() / (n * (n - 1))),
    }
