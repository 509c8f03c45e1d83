"""How long a graph of jobs takes with so many slots."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from egoscale.sweep.plan import Job


def makespan(
    jobs: Mapping[str, Job], hours: Mapping[str, float], place: Mapping[str, str], slots: Mapping[str, int]
) -> float:
    """Hours until the last of `jobs` ends, where each runs at its place and a place has so many slots."""
    users: dict[str, list[str]] = {key: [] for key in jobs}
    waits: dict[str, int] = {}
    for key, job in jobs.items():
        sources = {source.key for source in job.inputs.values()} & jobs.keys()
        waits[key] = len(sources)
        for source in sources:
            users[source].append(key)
    chains: dict[str, float] = {}
    for key in reversed(list(jobs)):  # users come after what they use
        chains[key] = hours[key] + max((chains[user] for user in users[key]), default=0.0)
    ready: dict[str, list[tuple[float, str]]] = {name: [] for name in slots}
    free, working, now = dict(slots), list[tuple[float, str]](), 0.0

    def start(name: str) -> None:
        while free[name] and ready[name]:
            _, key = heapq.heappop(ready[name])
            free[name] -= 1
            heapq.heappush(working, (now + hours[key], key))

    for key, count in waits.items():
        if not count:
            heapq.heappush(ready[place[key]], (-chains[key], key))
    for name in slots:
        start(name)
    while working:
        now, key = heapq.heappop(working)
        free[place[key]] += 1
        touched = {place[key]}
        for user in users[key]:
            waits[user] -= 1
            if not waits[user]:
                heapq.heappush(ready[place[user]], (-chains[user], user))
                touched.add(place[user])
        for name in touched:
            start(name)
    return now
