"""Slow twins of cass_scale/losses: plain Python loops over lists of float64 numbers, no tensors."""

from __future__ import annotations

import math

Rows = list[list[float]]


def dot(a: list[float], b: list[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True))


def unit(a: list[float]) -> list[float]:
    length = math.sqrt(dot(a, a))
    return [v / length for v in a]


def cosine(x: Rows, y: Rows) -> float:
    return sum(2 - 2 * dot(unit(a), unit(b)) for a, b in zip(x, y, strict=True)) / len(x)


def infonce(x: Rows, y: Rows, temperature: float) -> float:
    def one_way(queries: Rows, keys: Rows) -> float:
        total = 0.0
        for i, query in enumerate(queries):
            scores = [dot(unit(query), unit(key)) / temperature for key in keys]
            total -= scores[i] - math.log(sum(math.exp(s) for s in scores))
        return total / len(queries)

    return 0.5 * (one_way(x, y) + one_way(y, x))


def column(x: Rows, k: int) -> list[float]:
    return [row[k] for row in x]


def covariance(a: list[float], b: list[float], less: int) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    return sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True)) / (len(a) - less)


def vicreg(x: Rows, y: Rows) -> float:
    b, k = len(x), len(x[0])
    invariance = sum((x[i][j] - y[i][j]) ** 2 for i in range(b) for j in range(k)) / (b * k)
    spread = redundancy = 0.0
    for z in (x, y):
        for i in range(k):
            spread += 0.5 * max(0.0, 1 - math.sqrt(covariance(column(z, i), column(z, i), 1) + 1e-4)) / k
            for j in range(k):
                if i != j:
                    redundancy += covariance(column(z, i), column(z, j), 1) ** 2 / k
    return 25 * invariance + 25 * spread + redundancy


def barlow(x: Rows, y: Rows, offdiagonal: float) -> float:
    k, total = len(x[0]), 0.0
    for i in range(k):
        for j in range(k):
            a, b = column(x, i), column(y, j)
            scale = math.sqrt((covariance(a, a, 0) + 1e-5) * (covariance(b, b, 0) + 1e-5))
            c = covariance(a, b, 0) / scale
            total += (1 - c) ** 2 if i == j else offdiagonal * c * c
    return total


def balanced(scores: Rows, epsilon: float, iterations: int) -> Rows:
    q = [[math.exp(s / epsilon) for s in row] for row in scores]
    for _ in range(iterations):
        sums = [sum(column(q, k)) for k in range(len(q[0]))]
        q = [[v / sums[k] for k, v in enumerate(row)] for row in q]
        q = [[v / sum(row) for v in row] for row in q]
    return q


def sinkhorn(x: Rows, y: Rows, temperature: float, epsilon: float, iterations: int) -> float:
    def scores(z: Rows) -> Rows:
        return [unit([v - sum(row) / len(row) for v in row]) for row in z]

    def one_way(targets: Rows, predicted: Rows) -> float:
        total = 0.0
        for target, row in zip(targets, predicted, strict=True):
            logits = [v / temperature for v in row]
            norm = math.log(sum(math.exp(v) for v in logits))
            total -= sum(t * (v - norm) for t, v in zip(target, logits, strict=True))
        return total / len(predicted)

    sx, sy = scores(x), scores(y)
    return 0.5 * (one_way(balanced(sx, epsilon, iterations), sy) + one_way(balanced(sy, epsilon, iterations), sx))


def focal(logits: Rows, targets: Rows, gamma: float, weight: list[float]) -> float:
    total = 0.0
    for row, wanted in zip(logits, targets, strict=True):
        for z, t, w in zip(row, wanted, weight, strict=True):
            p = 1 / (1 + math.exp(-z))
            right = p if t == 1 else 1 - p
            total -= w * (1 - right) ** gamma * math.log(right)
    return total / (len(logits) * len(weight))
