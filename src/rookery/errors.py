"""Everything that can go wrong by a user's or a file's doing.

RookeryError                    one line: what, where, what was wanted, the remedy
├── FileError                   carries .path
│   ├── MissingFile             no such path
│   ├── NotAFile                a directory (or socket, ...) where a file was wanted
│   ├── NoPermission            the system refuses to open it
│   ├── EmptyFile               zero bytes
│   ├── UnknownFormat           the first bytes belong to no format we read
│   ├── CannotWrite             the target cannot be written (exists, disk full, read-only)
│   ├── NewerFile               written by a later Rookery, in a way this one does not know
│   └── DamagedFile             the format is known, the content breaks its rules
│       ├── TruncatedFile       the file ends before what its header promises
│       ├── MissingShard        a folder or an index names a file that is not there
│       ├── BadHeader           a header, index or count that cannot be true
│       ├── BadOffset           data said to lie outside the file
│       ├── OverlappingTensors  two tensors claim the same bytes
│       ├── TooLarge            a size beyond the limits (a zip bomb, a 2^63 header)
│       ├── UnsafePickle        a pickle that asks for anything but plain tensors
│       └── UnsupportedType     a tensor type we cannot read or write
├── ModelError                  the tensors are readable but are no model we run
│   ├── UnknownArchitecture     not RWKV v4..v7; says what it looks like
│   ├── MissingTensor           a tensor of that version is absent
│   ├── WrongShape              a tensor has a shape that the others forbid
│   └── AdapterError            an adapter of another base, of another shape, or of a kind we do not know
├── StateError                  the state of another model, or of another shape
├── TokenError                  a token id outside the vocabulary
├── TokenizerError              no tokenizer known, or a damaged vocabulary
├── TemplateError               a chat template that is damaged, asks for too much or reaches for what it may not
├── StoreError                  a store of talks that cannot be reached or stays locked
│   └── NoSuchTalk              a talk, branch or turn that is not in it
├── InputError                  an argument, prompt or setting that makes no sense
├── TrainingError               a run that cannot go on: the loss or a gradient is not finite
├── BackendError                a back end that cannot do what was asked
└── MissingExtra                an optional dependency is absent; carries the install line

The terminal prints `rookery: MESSAGE` and exits with code 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import os


class RookeryError(Exception):
    """Base of all errors meant for the user."""


class FileError(RookeryError):
    """Something is wrong with the file at `path`; the message starts with the path."""

    def __init__(self, path: str | os.PathLike[str], message: str) -> None:
        self.path = os.fspath(path)
        super().__init__(f"{self.path}: {message}")


class MissingFile(FileError):
    """No such path."""


class NotAFile(FileError):
    """A directory or device where a file was wanted."""


class NoPermission(FileError):
    """The system refuses to open the file."""


class EmptyFile(FileError):
    """The file has no bytes."""


class UnknownFormat(FileError):
    """The first bytes belong to no format that Rookery reads."""


class CannotWrite(FileError):
    """The target cannot be written."""


class NewerFile(FileError):
    """Written by a later Rookery in a form that this one does not know; a newer one reads it."""


class DamagedFile(FileError):
    """The format is known and the content breaks its rules."""


class TruncatedFile(DamagedFile):
    """The file ends before what its header promises."""


class MissingShard(DamagedFile):
    """A folder or an index names a file that is not there."""


class BadHeader(DamagedFile):
    """A header, index or count that cannot be true."""


class BadOffset(DamagedFile):
    """Data is said to lie outside the file."""


class OverlappingTensors(DamagedFile):
    """Two tensors claim the same bytes."""


class TooLarge(DamagedFile):
    """A size beyond the limits of the format or of reason."""


class UnsafePickle(DamagedFile):
    """The pickle asks for something other than plain tensors; nothing of it was run."""


class UnsupportedType(DamagedFile):
    """A tensor type that cannot be read or written."""


class ModelError(RookeryError):
    """The tensors are readable but are no model that Rookery runs."""


class UnknownArchitecture(ModelError):
    """The tensor names are not those of RWKV v4 to v7."""


class MissingTensor(ModelError):
    """A tensor that this version needs is absent."""


class WrongShape(ModelError):
    """A tensor has a shape that the other tensors forbid."""


class AdapterError(ModelError):
    """An adapter that does not fit its base, or says too little of itself."""


class StateError(RookeryError):
    """The state belongs to another model or has another shape."""


class TokenError(RookeryError):
    """A token id outside the vocabulary."""


class TokenizerError(RookeryError):
    """No tokenizer is known for the model, or its vocabulary is damaged."""


class TemplateError(RookeryError):
    """A chat template is damaged, asks for too much time or memory, or reaches for what it may not."""


class StoreError(RookeryError):
    """A store of talks cannot be reached or stays locked."""


class NoSuchTalk(StoreError):
    """A talk, a branch of it or a turn that the store does not have."""


class InputError(RookeryError):
    """An argument, prompt or setting that makes no sense."""


class TrainingError(RookeryError):
    """A training run that cannot go on; its last good checkpoint is kept."""


class BackendError(RookeryError):
    """A back end cannot do what was asked."""


class MissingExtra(RookeryError):
    """An optional dependency is absent."""

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs an optional part: pip install 'rookery[{extra}]'")
