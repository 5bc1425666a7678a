"""What differs between manifests and the objects that are there. Pure."""

from __future__ import annotations

import copy
import difflib
from typing import Any

from launcher import plain_yaml

Object = dict[str, Any]


def difference(wanted: Object, there: Object | None) -> list[str]:
    """Lines of a unified diff from the object to its manifest; none where they agree.

    Servers and operators add fields and defaults: what the manifest does not name is left out.
    Kueue sets ``suspend``, so that is no difference.
    """
    name = f"{wanted['kind']}/{wanted['metadata']['name']}"
    mine = copy.deepcopy(wanted)
    found = None if there is None else _common(there, mine)
    for one in (mine, found):
        if one is not None and one["kind"] == "RayJob":
            one["spec"].pop("suspend", None)
    old = "" if found is None else plain_yaml.dump([found])
    return list(
        difflib.unified_diff(
            old.splitlines(),
            plain_yaml.dump([mine]).splitlines(),
            f"{name} (there)",
            f"{name} (wanted)",
            lineterm="",
        )
    )


def _common(there: Any, wanted: Any) -> Any:
    """Of ``there``, what ``wanted`` speaks of, in its order."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        return {key: _common(there[key], value) for key, value in wanted.items() if key in there}
    if isinstance(wanted, list) and isinstance(there, list) and len(wanted) == len(there):
        return [_common(one, other) for one, other in zip(there, wanted, strict=True)]
    return there
