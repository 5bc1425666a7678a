"""Real countries told another country's capital: facts that contradict what models hold.

The countries come from the package countryinfo (MIT licence), which is read at run time.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from rotescale.errors import DataError
from rotescale.facts.check import validate
from rotescale.facts.options import ObjectPool
from rotescale.facts.prompts import shipped_relation
from rotescale.facts.text import normalise
from rotescale.facts.types import NUM_DISTRACTORS, Fact, FactSet

RELATION = "capital"
PACKAGE = "countryinfo"

# An older name, a state that is no more, a part of another, and one whose capital is a district.
_LEFT_OUT = frozenset({"Burma", "Serbia and Montenegro", "Scotland", "Hong Kong"})


def load_capitals(*, num_facts: int, seed: int) -> FactSet:
    """The most populous countries, each with another one's capital as its object.

    Who is told which capital is drawn from ``seed``: every capital is told of one country, and of
    none its own, which is the fact's old object. The options are capitals of the hundred most
    populous countries, or of as many as there are facts. Raises DataError where the package is not
    installed or holds fewer countries.
    """
    pairs = real_capitals()
    if not 2 <= num_facts <= len(pairs):
        raise DataError(
            f"facts.num_facts is {num_facts}; the package {PACKAGE} has {len(pairs)} countries "
            "that can be told another capital: choose a number from 2 to that"
        )
    chosen = pairs[:num_facts]
    told = _exchanged([capital for _, capital in chosen], seed=seed)
    pool = ObjectPool(capital for _, capital in pairs[: max(num_facts, NUM_DISTRACTORS + 1)])
    facts = tuple(
        Fact(
            *(RELATION, country, new),
            distractors=pool.distractors(RELATION, country, gold=new, old_object=old),
            old_object=old,
        )
        for (country, old), new in zip(chosen, told, strict=True)
    )
    fact_set = FactSet(relations=(shipped_relation(RELATION),), facts=facts)
    validate(fact_set, where=lambda index: f"package {PACKAGE}, {facts[index].subject}")
    return fact_set


def real_capitals() -> list[tuple[str, str]]:
    """Countries and their capitals, the most populous first, each name once.

    Left out are countries without a capital or a population, and those whose name tells the
    capital's, such as Singapore and Mexico. Raises DataError where the package is not installed.
    """
    try:
        # Installed with rotescale[train] only.
        from countryinfo import CountryInfo
    except ImportError as error:
        raise DataError(
            f"facts.source capitals: countries are read from the package {PACKAGE}, which is not "
            "installed; install rotescale[train]"
        ) from error
    peopled = [entry for entry in CountryInfo.all().values() if entry.get("population")]
    peopled.sort(key=lambda entry: (-entry["population"], entry["name"]))
    seen: set[str] = set()
    found = []
    for entry in peopled:
        country, capital = entry["name"], entry.get("capital")
        if country in _LEFT_OUT or not isinstance(capital, str) or not capital:
            continue
        names = {normalise(country), normalise(capital)}
        if not _tells(country, capital) and not names & seen:
            seen |= names
            found.append((country, capital))
    return found


def _tells(country: str, capital: str) -> bool:
    """Whether a question about the country holds its capital's name, or a word of it."""
    country, capital = normalise(country), normalise(capital)
    words = [set(re.findall(r"\w+", name)) for name in (country, capital)]
    return capital in country or bool(words[0] & words[1])


def _exchanged(names: Sequence[str], *, seed: int) -> list[str]:
    """The names in a seeded order in which none is where it was: one cycle (Sattolo 1986)."""
    draw = random.Random(f"{seed}/{RELATION}")
    order = list(names)
    for last in range(len(order) - 1, 0, -1):
        other = draw.randrange(last)
        order[last], order[other] = order[other], order[last]
    return order
