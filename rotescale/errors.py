"""The errors that a user of rotescale can meet, each with the exit code of the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rotescale.credentials import hidden


class RotescaleError(Exception):
    """Base of every error that names what is wrong, with which value, and what to do about it."""

    exit_code = 1


class SpecError(RotescaleError):
    """An experiment or launch spec, or a command-line option, that cannot be run as it stands."""

    exit_code = 2


class DataError(RotescaleError):
    """Facts, prompts, tokenizers or model files that cannot be used."""

    exit_code = 2


class CheckpointError(RotescaleError):
    """A checkpoint that is incomplete, damaged, or of another format."""

    exit_code = 2


class StorageError(RotescaleError):
    """A run folder that cannot be used: no space, no permission, no such place."""

    exit_code = 2


class StorageUnavailableError(StorageError):
    """An object store that cannot be reached for now: it ends no run, which goes on later."""

    exit_code = 4


class HubUnavailableError(RotescaleError):
    """A model hub that does not answer for now: it ends no run, which is started again later."""

    exit_code = 4


class NodeError(RotescaleError):
    """Nodes that are not fit to train on: it ends no run, which goes on later, or on others."""

    exit_code = 4


class TrainingError(RotescaleError):
    """Training that cannot go on, such as a loss that is not finite."""

    exit_code = 3

    def __init__(self, message: str = "", *, is_agreed: bool = False) -> None:
        """``is_agreed``: all ranks raise it at the same point, so none waits for another."""
        super().__init__(message)
        self.is_agreed = is_agreed


_BY_NAME = {
    error.__name__: error
    for error in (
        RotescaleError,
        SpecError,
        DataError,
        CheckpointError,
        StorageError,
        StorageUnavailableError,
        HubUnavailableError,
        NodeError,
        TrainingError,
    )
}


def error_class(name: str) -> type[RotescaleError]:
    """The error class of that name; ``RotescaleError`` for a name that is not one of ours."""
    return _BY_NAME.get(name, RotescaleError)


@contextmanager
def exit_with_error() -> Iterator[None]:
    """Ends the process with one line and the error's exit code where the block raises ours."""
    try:
        yield
    except RotescaleError as error:
        print(hidden(f"error: {error}"), file=sys.stderr)
        sys.exit(error.exit_code)
