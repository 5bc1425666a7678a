"""Reads relations and their prompts from YAML, the shipped ones included."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rotescale.errors import DataError
from rotescale.facts.text import normalise, text_fault
from rotescale.facts.types import SUBJECT_FIELD, PromptSet, Relation
from rotescale.spec import BASE_LANGUAGE, LANGUAGE_PATTERN

SHIPPED_DIR = Path(__file__).parent / "shipped"

_TEXT_FIELDS = ("wikidata_id", "subject_type", "object_type")
_PROMPT_FIELDS = ("train_prompts", "test_prompts", "unrelated_prompts")
_REQUIRED = ("train_prompts", "test_prompts")
_FIELDS = (*_TEXT_FIELDS, *_PROMPT_FIELDS, "translations")
# The name becomes part of a key token and of file names.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_LANGUAGE = re.compile(LANGUAGE_PATTERN)


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a repeated key, of which YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice; keep one", node.start_mark
                )
        return super().construct_mapping(node, deep)


def load_relations(path: Path) -> dict[str, Relation]:
    """The relations of a YAML file, by name.

    The file maps each relation's name to ``train_prompts`` and ``test_prompts``, and, where
    wanted, ``unrelated_prompts``, ``wikidata_id``, ``subject_type`` and ``object_type``, and
    ``translations``: a language's code to as many prompts of each kind.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except OSError as error:
        raise DataError(
            f"relations file {path} cannot be read ({error.strerror}); check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"relations file {path} is not UTF-8; save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise DataError(f"relations file {path} is not sound YAML: {error}; mend it") from error
    if not isinstance(document, dict) or not document:
        raise DataError(
            f"relations file {path} holds no relations; map each relation's name to its prompts"
        )
    return {name: _relation(name, entry, path=path) for name, entry in document.items()}


@cache
def _shipped() -> tuple[Relation, ...]:
    return tuple(load_relations(SHIPPED_DIR / "relations.yaml").values())


def shipped_relations() -> dict[str, Relation]:
    """The relations whose prompts come with rotescale, by name."""
    return {relation.name: relation for relation in _shipped()}


def shipped_relation(name: str) -> Relation:
    """The shipped relation of that name."""
    known = shipped_relations()
    if name not in known:
        raise DataError(
            f"relation {name!r} is not shipped; name one of: {', '.join(known)}, "
            "or load your facts from files together with a relations file"
        )
    return known[name]


def _relation(name: object, entry: object, *, path: Path) -> Relation:
    """One checked entry of a relations file."""
    where = f"{path}, relation {name!r}"
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise DataError(
            f"{where}: a relation's name starts with a letter and holds letters, digits, "
            "'_' and '-' only; rename it"
        )
    entry = _mapping(entry, known=_FIELDS, where=where)
    texts = {field: entry.get(field, "") for field in _TEXT_FIELDS}
    for field, value in texts.items():
        fault = None if value == "" else text_fault(value)
        if fault is not None:
            raise DataError(f"{where}, {field} {fault}")
    prompts = _prompt_set(BASE_LANGUAGE, entry, where=where)
    return Relation(
        name=name,
        wikidata_id=texts["wikidata_id"],
        subject_type=texts["subject_type"],
        object_type=texts["object_type"],
        train_prompts=prompts.train_prompts,
        test_prompts=prompts.test_prompts,
        unrelated_prompts=prompts.unrelated_prompts,
        translations=_translations(entry.get("translations"), of=prompts, where=where),
    )


def _mapping(entry: object, *, known: tuple[str, ...], where: str) -> Mapping[str, Any]:
    """The entry, if it is a mapping of known fields."""
    if not isinstance(entry, Mapping):
        raise DataError(f"{where} is {entry!r}; map it to train_prompts and test_prompts")
    for field in entry:
        if field not in known:
            raise DataError(
                f"{where} has the unknown field {field!r}; known are: {', '.join(known)}"
            )
    return entry


def _prompt_set(language: str, entry: Mapping[str, Any], *, where: str) -> PromptSet:
    """The checked prompts of one language."""
    prompts = {field: _prompts(entry.get(field), field, where=where) for field in _PROMPT_FIELDS}
    _check_distinct(prompts, where=where)
    return PromptSet(language, **prompts)


def _translations(value: object, *, of: PromptSet, where: str) -> tuple[PromptSet, ...]:
    """The checked translations of a relation's prompts, in the order of their codes."""
    if value is None:
        return ()
    if not isinstance(value, Mapping) or not value:
        raise DataError(
            f"{where}, translations is {value!r}; map language codes to prompts, or leave it out"
        )
    found = [_translation(code, entry, of=of, where=where) for code, entry in value.items()]
    return tuple(sorted(found, key=lambda translation: translation.language))


def _translation(code: object, entry: object, *, of: PromptSet, where: str) -> PromptSet:
    """One checked language; prompt i translates prompt i, so each kind has as many."""
    if not isinstance(code, str) or _LANGUAGE.fullmatch(code) is None:
        raise DataError(
            f"{where}, translations: {code!r} is no language code; write one such as 'de' or "
            "'pt-BR', in quotes where YAML takes it for something else"
        )
    if code == of.language:
        raise DataError(
            f"{where}, translations: {code!r} is the language of the relation's own prompts; "
            "remove it"
        )
    where = f"{where}, translations, {code}"
    found = _prompt_set(code, _mapping(entry, known=_PROMPT_FIELDS, where=where), where=where)
    for field in _PROMPT_FIELDS:
        given, wanted = len(getattr(found, field)), len(getattr(of, field))
        if given != wanted:
            raise DataError(
                f"{where}, {field} has {given} prompts, but {wanted} in {of.language!r}; "
                "translate each of them, in their order"
            )
    return found


def _prompts(value: object, field: str, *, where: str) -> tuple[str, ...]:
    """The checked prompts of one field."""
    if value is None and field not in _REQUIRED:
        return ()
    if not isinstance(value, list) or (not value and field in _REQUIRED):
        raise DataError(f"{where}, {field} is {value!r}; give a list of at least one prompt")
    for number, prompt in enumerate(value, start=1):
        fault = text_fault(prompt)
        if fault is not None:
            raise DataError(f"{where}, {field}, prompt {number} {fault}")
        if prompt.count(SUBJECT_FIELD) != 1:
            raise DataError(
                f"{where}, {field}, prompt {number} {prompt!r} holds {SUBJECT_FIELD} "
                f"{prompt.count(SUBJECT_FIELD)} times; write it exactly once"
            )
    return tuple(value)


def _check_distinct(prompts: Mapping[str, tuple[str, ...]], *, where: str) -> None:
    """Refuse a prompt given twice: a test prompt that is trained on would test nothing."""
    seen: dict[str, str] = {}
    for field, values in prompts.items():
        for number, prompt in enumerate(values, start=1):
            place = f"{field}, prompt {number}"
            earlier = seen.setdefault(normalise(prompt), place)
            if earlier != place:
                raise DataError(
                    f"{where}, {place} {prompt!r} is the same as {earlier}; word it differently"
                )
