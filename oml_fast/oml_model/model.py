"""OMLModel, the class of the OML papers, for offline use: a model in this process that answers for permissions alone.

Order of what `OMLModel.inference` does; the first that fails ends it:
1. the input is one that the model can take (InvalidArgumentError otherwise, and no permission is touched);
2. the permission holds for the digest of the model, this input and this length, and what it may use is taken
   (`Checker.admit`; PermissionDenied otherwise);
3. a retry of a single-use permission gets the first answer again, and nothing is generated;
4. the answer is generated greedily, with the licensee's output mark where there is one;
5. what was taken and not used is free again. After an error in 4 all of it is, but a nonce stays spent.

Whoever can change this process, or has the weights, can go around it: docs/permissions.md says what holds hosts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..errors import InvalidArgumentError, PermissionUnavailableError, ReplayedNonce
from ..permission import Admission, Checker, Earlier, KeyFile, Request, SqliteStore, Store
from ..signing import VerificationKey, canonical_json, read_verification_key

if TYPE_CHECKING:
    from ..models import LanguageModel
    from .output_mark import OutputMark

MAX_OUTPUT_TOKENS = 128
STORE = "permissions.sqlite"


class OMLModel:
    """A model that answers for permission tokens of its owner alone.

    Safe for threads: permissions are checked side by side, answers generated one after the other. Nobody else may use
    the model or the engine at the same time.
    """

    def __init__(
        self,
        base_model: str | Path | LanguageModel | Any,
        fingerprint_key: VerificationKey | str | Path,
        *,
        keys: str | Path | None = None,
        store: Store | str | Path | None = None,
        model_digest: str | None = None,
        output_mark: OutputMark | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """base_model: a model's folder, loaded here with transformers; a `LanguageModel`; or an `LLM` of vLLM.

        fingerprint_key: the owner's verification key, or its file; it signs the list of keys. keys: the file with that
        list. store: where nonces and quotas are kept, a path for SQLite; None: permissions.sqlite beside the list.
        model_digest: of the model in an `LLM`; None: computed from the folder that it names. output_mark: for a
        model of transformers; an `LLM` is started with its own (`request_processor`). clock: seconds since 1970.

        A `LanguageModel` has the digest of the weights as loaded: save and load again what was trained since.

        Raises InvalidArgumentError, SignatureError, and PermissionUnavailableError where the list or the store cannot
        be used. The model is loaded last.
        """
        from .engines import engine_of

        owner = _owner(fingerprint_key)
        keys = _key_file(keys)
        self._clock = clock
        self._lock = threading.Lock()
        self._own_store: Store | None = None
        if store is None or isinstance(store, str | Path):
            store = self._own_store = SqliteStore(keys.parent / STORE if store is None else store, now=clock())
        try:
            source = KeyFile(keys, owner, store)
            source.current(clock())
            self._engine = engine_of(base_model, model_digest, output_mark)
            self._checker = Checker(source, self._engine.digest, store, now=clock())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the store, where it was opened here."""
        if self._own_store is not None:
            self._own_store.close()
            self._own_store = None

    @property
    def digest(self) -> str:
        """Of the model: what a permission for it names."""
        return self._engine.digest

    @staticmethod
    def body(input_data: Any, *, max_output_tokens: int = MAX_OUTPUT_TOKENS) -> bytes:
        """What `body_sha256` of a token is the SHA-256 of: both arguments of `inference` as one canonical JSON object.

        {"input": ..., "max_output_tokens": ...} in UTF-8 with sorted names and no spaces. Needs no model and no torch.
        Raises InvalidArgumentError for what `inference` does not take.
        """
        _require_input(input_data)
        if not _is_count(max_output_tokens):
            raise InvalidArgumentError(f"max_output_tokens {max_output_tokens!r}: give a whole number, 1 or more.")
        return canonical_json({"input": input_data, "max_output_tokens": max_output_tokens})

    def inference(
        self,
        input_data: str | Sequence[str] | Sequence[Mapping[str, str]],
        permission_token: str,
        *,
        max_output_tokens: int = MAX_OUTPUT_TOKENS,
        path: str | None = None,
    ) -> str | list[str]:
        """What the model answers, greedily, without special tokens: one text, or one for each of a list of prompts.

        input_data: a prompt, to be continued; a list of prompts; or the messages of a chat, each a dict of `role` and
        `content`, for the model's chat template. permission_token: for this model. max_output_tokens: of each answer;
        prompts times this is taken of the quota, and what was not generated is given back. path: which of the paths
        of the permission this is, where it has some.

        Raises PermissionDenied (its sub-classes say why) and PermissionUnavailableError before anything is generated;
        InvalidArgumentError for an input that the model cannot take; CompleterError where vLLM fails.
        """
        body = self.body(input_data, max_output_tokens=max_output_tokens)
        prompts = self._encode(input_data, max_output_tokens)
        request = Request(
            model=self.digest,
            path=path,
            body_sha256=hashlib.sha256(body).hexdigest(),
            requests=len(prompts),
            output_tokens=len(prompts) * max_output_tokens,
        )
        admission = self._checker.admit(permission_token, request=request, now=self._clock())
        if admission.earlier is not None:
            answers = _first_answer(admission.earlier)
        else:
            answers = self._answer(admission, prompts, max_output_tokens)
        return answers if _is_list_of(input_data, str) else answers[0]

    def _encode(self, input_data: Any, length: int) -> list[list[int]]:
        if isinstance(input_data, str):
            prompts = self._engine.encode([input_data])
        elif _is_list_of(input_data, str):
            prompts = self._engine.encode(input_data)
        else:
            prompts = [self._engine.encode_chat(input_data)]
        self._engine.require_room(prompts, length)
        return prompts

    def _answer(self, admission: Admission, prompts: list[list[int]], length: int) -> list[str]:
        try:
            with self._lock:
                made = self._engine.generate(prompts, length, admission.permission.licensee)
            answers = [self._engine.decode(each.ids) for each in made]
        except BaseException:
            self._settle(lambda now: self._checker.abort(admission, now=now))
            raise
        used, kept = sum(each.used for each in made), canonical_json(answers)
        self._settle(lambda now: self._checker.finish(admission, used, kept, now=now))
        return answers

    def _settle(self, end: Callable[[float], None]) -> None:
        """End a request, and lease nothing until the next. Where the store is gone by now, what was taken stays so."""
        now = self._clock()
        with contextlib.suppress(PermissionUnavailableError):
            end(now)
            self._checker.close(now=now)
            self._checker.tend(now=now)


def _owner(key: VerificationKey | str | Path) -> VerificationKey:
    if isinstance(key, VerificationKey):
        return key
    if isinstance(key, str | Path):
        return read_verification_key(key)
    raise InvalidArgumentError(
        f"fingerprint_key is a {type(key).__name__}: give the owner's verification key, or its file, which "
        "oml-fast keygen writes beside the signing key."
    )


def _key_file(keys: str | Path | None) -> Path:
    """The path of the list, if there is a file."""
    if keys is None:
        raise InvalidArgumentError(
            "keys is missing: name the file with the owner's list of keys, which oml-fast permission keygen begins."
        )
    path = Path(keys)
    if not path.is_file():
        raise InvalidArgumentError(f"there is no list of keys at {path}: oml-fast permission keygen begins one.")
    return path


def _first_answer(earlier: Earlier) -> list[str]:
    """What the first try with a single-use permission was answered. ReplayedNonce where that is not known."""
    if earlier.state != "finished":
        raise ReplayedNonce("its nonce is spent, and the first request is not done: repeat it a little later.")
    if earlier.answer is None:
        raise ReplayedNonce("its nonce is spent, and the first answer was not kept: ask for a new one.")
    answers: list[str] = json.loads(earlier.answer)
    return answers


def _require_input(value: Any) -> None:
    if isinstance(value, str) or _is_list_of(value, str):
        return
    if not _is_list_of(value, dict) or not all(_is_message(each) for each in value):
        raise InvalidArgumentError(
            "the input is neither a text, nor a list of texts, nor a list of messages with a role and a content, each "
            "a text: give one of them, not empty."
        )


def _is_list_of(value: Any, kind: type) -> bool:
    """Whether it is a list of one or more of them."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(each, kind) for each in value)


def _is_message(value: dict[Any, Any]) -> bool:
    return set(value) == {"role", "content"} and all(isinstance(text, str) for text in value.values())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
