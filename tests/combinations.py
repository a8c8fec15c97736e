"""Tables of options in which every few values meet, without their product."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Item = tuple[str, Any]  # an option and one of its values


def cover(
    options: Mapping[str, Sequence[Any]], forbidden: Iterable[frozenset[Item]] = (), strength: int = 2
) -> list[dict[str, Any]]:
    """Rows in which every `strength` values of as many options stand together once at least, but for forbidden pairs.

    Greedy, as in Cohen et al., "The AETG system" (1997): each row begins with values that have not met, and goes on
    with those that meet most others for the first time. The first value of each option must be allowed with all others.
    """
    pairs = set(forbidden)
    draw = random.Random(0)

    def allowed(items: Iterable[Item]) -> bool:
        return not any(frozenset(pair) in pairs for pair in itertools.combinations(items, 2))

    missing = dict.fromkeys(
        frozenset(items)
        for names in itertools.combinations(options, strength)
        for items in itertools.product(*([(name, value) for value in options[name]] for name in names))
        if allowed(items)
    )
    rows = []
    while missing:
        row = dict(next(iter(missing)))
        names = [name for name in options if name not in row]
        draw.shuffle(names)
        for name in names:
            others = list(itertools.combinations(row.items(), strength - 1))

            def gain(value: Any, name: str = name, others: list[Any] = others) -> int:
                return sum(frozenset((*some, (name, value))) in missing for some in others)

            possible = [value for value in options[name] if allowed([*row.items(), (name, value)])]
            row[name] = max(possible, key=lambda value: (gain(value), draw.random()))
        for items in itertools.combinations(row.items(), strength):
            missing.pop(frozenset(items), None)
        rows.append({name: row[name] for name in options})
    return rows
