"""Non-dominated sorting and crowding distance (NSGA-II, Deb et al. 2002). Objectives are minimised.

Shapes: N points of M objectives.
"""

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]


def fronts(points: Points) -> list[list[int]]:
    """Return the indices of `points` (N, M) front by front, the non-dominated ones first; each front ascending."""
    no_worse = (points[:, None] <= points[None]).all(2)
    dominates = no_worse & (points[:, None] < points[None]).any(2)
    left, found = np.ones(len(points), bool), list[list[int]]()
    while left.any():
        front = left & ~(dominates & left[:, None]).any(0)
        found.append(np.flatnonzero(front).tolist())
        left &= ~front
    return found


def crowding(points: Points) -> npt.NDArray[np.float64]:
    """Return the crowding distance of each point of one front (N, M); infinite at the ends of any objective."""
    count, objectives = points.shape
    distance = np.zeros(count)
    for column in range(objectives):
        order = np.argsort(points[:, column], kind="stable")
        values = points[order, column]
        distance[order[[0, -1]]] = np.inf
        if values[-1] > values[0] and count > 2:
            distance[order[1:-1]] += (values[2:] - values[:-2]) / (values[-1] - values[0])
    return distance


def ranking(points: Points) -> list[int]:
    """Return all indices, best first: by front, then the less crowded (stable, so ties keep their order)."""
    order = list[int]()
    for front in fronts(points):
        apart = crowding(points[front])
        order += [front[i] for i in np.argsort(-apart, kind="stable")]
    return order
