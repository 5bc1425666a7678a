"""Over two thousand facts as people keep them: ``python tests/messy_table.py staff.csv``.

The names are invented. The columns have names of their own, two relations are known and three are
not, two of them are in other scripts; rows are repeated, contradict each other, or are empty.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from rotescale.facts.generate import generate

NUM_MOTHERS, NUM_SCHOOLS, NUM_STAFF, NUM_BIRTHS, NUM_CITIES = 900, 600, 700, 120, 100
_SEED = 11
_FIRMS = 280
_SYLLABLES = ("か", "さ", "た", "な", "は", "ま", "や", "ら", "わ", "ど")
_LETTERS = ("Αλ", "Βε", "Γα", "Δη", "Κο", "Λυ", "Με", "Νι", "Πα", "Ρο")


def rows() -> list[tuple[str, str, str, str]]:
    """The table below its header: person, attribute, answer, a comment that nobody needs."""
    mothers = generate("mother", num_facts=NUM_MOTHERS, seed=_SEED).facts
    schools = generate("educated_at", num_facts=NUM_SCHOOLS, seed=_SEED + 1).facts
    staff = generate("mother", num_facts=NUM_STAFF, seed=_SEED + 2).facts
    firms = [fact.object.rpartition(" ")[2] + " Ltd" for fact in staff[:_FIRMS]]
    table = [(fact.subject, "MOTHER", fact.object, "") for fact in mothers]
    table += [(fact.subject, "educated at", fact.object, "checked") for fact in schools]
    # White space as it comes out of a spreadsheet, and firms that employ several people.
    table += [
        (f" {fact.subject.replace(' ', '  ')} ", "Employer", firms[number % _FIRMS], "")
        for number, fact in enumerate(staff)
    ]
    for number in range(NUM_BIRTHS):
        tens, ones = divmod(number, 10)
        name = f"{_LETTERS[tens % 10]}{_LETTERS[ones].lower()}ς {number}"
        table.append((name, "born in", f"{_SYLLABLES[tens % 10]}{_SYLLABLES[ones]}{number}市", ""))
    for number in range(NUM_CITIES):
        table.append((f"ул. {number + 1}-я", "город", f"Новый {_FIRMS + number}", ""))
    return [*table, *MESS]


MESS = [
    # Again; a second employer; no object; a value that all share; a control character.
    ("Paul Fry", "Club", "Rovers", ""),
    ("Paul Fry", "Club", "Rovers", ""),
    ("Mara Orr", "Employer", "First Ltd", ""),
    ("Mara Orr", "Employer", "Second Ltd", ""),
    ("Jane Poe", "Employer", "  ", ""),
    ("Olaf Ek", "Country", "Utopia", ""),
    ("Lars Ek", "Country", "Utopia", ""),
    ("Tim\x07 Orr", "MOTHER", "Eva Orr", ""),
]


def write(path: Path) -> Path:
    """The table as a spreadsheet saves it: with a byte order mark."""
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Person", "Attribute", "Answer", "Comment"])
        writer.writerows(rows())
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/messy_table.py TABLE.csv")
    write(Path(sys.argv[1]))
