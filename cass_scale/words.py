"""Overrides as text: Python values written as hydra reads them, paths that need no quotes, URLs without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

PATH_KEYS = re.compile(
    r"(\+{0,2}(?:data\.path|data\.name|source|images|against|licence|run\.dir|runs|out|A|B|bench\.(?:[ab]|runs)"
    r"|arms\.\w+\.weights))"
    r"=(.*)",
    re.DOTALL,
)
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/]*@)?([^\s?]*)(?:\?\S*)?")
PLAIN = re.compile(r"[\w./:+@%*?|-]+( +[\w./:+@%*?|-]+)*", re.ASCII)  # hydra takes these characters without quotes


SHORT = {  # verb -> key as a person writes it -> key in full
    "shard": {"source": "data.path"},
    "bench": {"name": "bench", "a": "bench.a", "b": "bench.b"}
    | {key: f"bench.{key}" for key in ("arms", "method", "target")},
    "study": {"name": "study"},
}
BARE = {  # verb, or a choice -> what words without a key mean there, one after the other
    "bench": ("bench",),
    "bench=compare": ("bench.a", "bench.b"),
    "study": ("study",),
    "compare": ("A", "B"),
}


def written_out(verb: str, words: Iterable[str]) -> list[str]:
    """Words with their keys in full: `name=loaders` of bench is `bench=loaders`, and so is `loaders` alone."""
    short = SHORT.get(verb, {})
    keyed = [(word, *word.partition("=")) for word in words]
    whole = [f"{short[key]}={value}" if key in short else word for word, key, _, value in keyed]
    whole = _with_keys(whole, BARE.get(verb, ()))
    return _with_keys(whole, [key for word in whole for key in BARE.get(word, ())])


def _with_keys(words: list[str], keys: Iterable[str]) -> list[str]:
    """Words that lack a key, with the next of `keys` that nobody gives; further ones stay as they are."""
    given = {word.partition("=")[0] for word in words}
    free = iter([key for key in keys if key not in given])
    bare = (not ("=" in word or word.startswith("~")) for word in words)
    return [
        f"{key}={word}" if lacks and (key := next(free, "")) else word for word, lacks in zip(words, bare, strict=True)
    ]


def with_arms(words: list[str], groups: Iterable[str]) -> list[str]:
    """`words`, in which `hardware=rtx8000` means the paper's arms where the verb takes arms and nobody names others."""
    named = {word.lstrip("+").partition("=")[0] for word in words}
    implied = {"arms": "arms=paper"} if "arms" in groups else {}
    implied |= {"bench.arms": "bench.arms=paper_random"} if {"bench=step", "bench=savings"} & set(words) else {}
    wanted = [word for key, word in implied.items() if key not in named]
    return [*wanted, *words] if "hardware=rtx8000" in (word.lstrip("+") for word in words) else words


def own_words(words: Iterable[str], root: Iterable[str]) -> tuple[list[str], list[str]]:
    """Words whose first part is a key of `root`, and all others."""
    own, sorted_out = set(root), (list[str](), list[str]())
    for word in words:
        first = word.lstrip("+~").partition("=")[0].partition(".")[0]
        sorted_out[first not in own].append(word)
    return sorted_out


def flatten(keys: Mapping[str, Any], prefix: str = "") -> list[str]:
    """{"train": {"epochs": 2}} -> ["train.epochs=2"]."""
    words: list[str] = []
    for key, value in keys.items():
        if isinstance(value, Mapping):
            words += flatten(value, f"{prefix}{key}.")
        else:
            words.append(f"{prefix}{key}={_text(value)}")
    return words


def _text(value: Any) -> str:
    """A value as hydra's grammar has it; numbers and arrays of numpy and torch count as Python's own."""
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        return text if PLAIN.fullmatch(text) else quoted(text)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    if hasattr(value, "tolist"):
        return _text(value.tolist())
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def quoted(text: str) -> str:
    """`text` in single quotes, with what hydra would take for the end of it escaped."""
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"


def literal_path(word: str) -> str:
    """`word` with its value quoted where the key takes a path or a name: there `=`, `,`, `{` or 2024 are mere letters.

    A leading ~ is the home folder: no shell expands it behind `key=`. `null`, an empty value and what is quoted
    already stay as they are. `against=[a,b]` is a list of paths.
    """
    found = PATH_KEYS.fullmatch(word)
    if found is None:
        return word
    key, value = found.groups()
    if key == "against" and value[:1] + value[-1:] == "[]":
        return word if set("'\"") & set(value) else f"{key}=[{','.join(map(_literal, value[1:-1].split(',')))}]"
    return f"{key}={_literal(value)}"


def _literal(value: str) -> str:
    if value in ("", "null") or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return value
    text = os.path.expanduser(value)
    return text if PLAIN.fullmatch(text) and not _is_number_or_bool(text) else quoted(text)


def _is_number_or_bool(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false", "null")
    return True


def is_url(text: str | os.PathLike[str]) -> bool:
    """Whether a path names a place that is not a folder here."""
    return URL.match(os.fspath(text)) is not None


def redact(text: str) -> str:
    """`text` without user, password and query in its URLs: they may be secrets."""
    return URL.sub(r"\1\2", text)
