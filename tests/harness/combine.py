"""Few cases out of a large product, chosen so that nothing goes untried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from .spec import Sample


def pairwise(**factors: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows that together hold every pair of values of any two factors (in-parameter-order generation, Lei 1998)."""
    names = sorted(factors, key=lambda name: -len(factors[name]))
    sizes = [len(factors[name]) for name in names]
    rows = [list(row) for row in product(*(range(n) for n in sizes[:2]))]
    for k in range(2, len(names)):
        missing = {(j, a, v) for j in range(k) for a in range(sizes[j]) for v in range(sizes[k])}
        used: Counter[int] = Counter()
        for row in rows:
            pairs = {v: {(j, row[j], v) for j in range(k)} & missing for v in range(sizes[k])}
            value = max(pairs, key=lambda v: (len(pairs[v]), -used[v]))
            used[value] += 1
            row.append(value)
            missing -= pairs[value]
        while missing:  # one more row: as many of the missing pairs of one value as fit side by side
            value = min(missing)[2]
            row = [*(len(rows) % n for n in sizes[:k]), value]
            for j, a, _ in sorted(p for p in missing if p[2] == value):
                if (j, row[j], value) not in missing:
                    row[j] = a
            rows.append(row)
            missing -= {(j, row[j], value) for j in range(k)}
    return [{name: factors[name][row[names.index(name)]] for name in factors} for row in rows]


def representatives(samples: Iterable[Sample]) -> list[Sample]:
    """A small subset that still shows every trait, and every input absent and in each of its ranks."""

    def traits(sample: Sample) -> set[tuple[str, str]]:
        ranks = {(k, "None" if v is None else f"rank {v.dim()}") for k, v in sample.inputs.items()}
        chosen = sample.options if sample.traits is None else sample.traits
        return ranks | {(k, repr(v)) for k, v in chosen.items()}

    remaining = {sample: traits(sample) for sample in samples}
    unseen = set().union(*remaining.values())
    chosen = []
    while unseen:
        best = max(remaining, key=lambda sample: len(remaining[sample] & unseen))
        unseen -= remaining.pop(best)
        chosen.append(best)
    return chosen or list(remaining)[:1]
