"""The door: composes the configuration with hydra, reports every problem in it at once, and calls the verb.

Nothing behind this file sees a DictConfig; hydra writes no folders of its own (Compose API).
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cass_scale import __version__
from cass_scale.errors import EXIT_CONFIG, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, CassScaleError, ConfigError
from cass_scale.signals import ending_in_order
from cass_scale.types import JSON, Call
from cass_scale.verbs import VERBS
from cass_scale.words import flatten, is_url, literal_path, own_words, redact, with_arms, written_out

OF_SHARDS = {"webdataset": ("stream=webdataset", "stream=dali"), "ffcv": ("stream=ffcv",)}  # what reads shards


def config_dir() -> Path:
    """The top-level `configs` of a checkout, or its copy inside the installed package."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def program() -> int:
    """`main` as all that a process does: what launchers send behind its end shall not change the exit code."""
    return main(for_good=True)


def main(argv: Sequence[str] | None = None, *, for_good: bool = False) -> int:
    """Run one verb; returns the exit code: 0 ok, 2 configuration, 3 data, 75 preempted.

    for_good: SIGTERM and SIGUSR1 stay ignored afterwards.
    """
    born = _process_start()
    arguments = sys.argv[1:] if argv is None else list(argv)
    sys.argv[1:] = map(redact, sys.argv[1:])  # wandb records it
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)  # rest: overrides behind an option, which argparse cannot place
    if flags := [word for word in rest if word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    if options.verb is None:
        parser.print_help()
        return EXIT_CONFIG
    how = Call(_command(arguments), dry_run=options.dry_run, quiet=options.quiet, born=born)
    try:
        with ending_in_order(for_good=for_good):
            result = run_verb(options.verb, [*options.overrides, *rest], how)
    except (CassScaleError, OSError) as error:
        if options.debug:
            raise
        print(f"cass-scale {options.verb}: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, CassScaleError) else EXIT_FAILED
    except KeyboardInterrupt:  # before or after the loop, which saves first
        if options.debug:
            raise
        print(f"cass-scale {options.verb}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return int(result.get("exit_code", EXIT_OK))


def call(verb: str, overrides: Sequence[str], keys: Mapping[str, Any]) -> JSON:
    """The Python twin: `overrides` as on the command line, `keys` nested dictionaries of the same names."""
    words = [*overrides, *flatten({k: v for k, v in keys.items() if k not in ("dry_run", "quiet")})]
    flags = Call(_command([verb, *words]), bool(keys.get("dry_run")), bool(keys.get("quiet")))
    return run_verb(verb, words, flags)


def _command(words: Sequence[str]) -> str:
    """The command line as records keep it."""
    return shlex.join(["cass-scale", *map(redact, words)])


def run_verb(verb: str, overrides: Sequence[str], flags: Call) -> JSON:
    """Compose, then hand plain values to the verb's module."""
    config = compose_config(verb, overrides)
    module = import_module(f"cass_scale.verbs.{verb}")  # torch is loaded only by verbs that need it
    result: JSON = module.run(config, build, flags)
    return result


def build(node: Mapping[str, Any], *parts: Any, **extra: Any) -> Any:
    """Call the `_target_` of a configuration node with its values: dotted paths are the only registry.

    `parts` and `extra` go to the call itself, since hydra would take dataclasses among them for configuration.
    A node with `_partial_` gives the callable.
    """
    make = instantiate({**node, "_partial_": True}, _convert_="all")
    return make if node.get("_partial_") else make(*parts, **extra)


def compose_config(verb: str, words: Sequence[str]) -> JSON:
    """The resolved configuration of a verb as plain values. Raises ConfigError with every bad override in it."""
    groups_of_verb = _groups(verb)
    words = written_out(verb, words)
    words = _imply_source(verb, words) if "data" in groups_of_verb else words
    words = with_arms(words, groups_of_verb)
    words, passed_on = own_words(words, [*_root(verb), *groups_of_verb]) if verb == "study" else (words, [])
    overrides = _parse([literal_path(word) for word in words])
    groups = [o for o in overrides if o.key_or_group in groups_of_verb]
    values = [o for o in overrides if o not in groups]
    wrong = {id(o): p for o in groups if (p := _choice_problem(o))}
    chosen = [_line(o) for o in groups if id(o) not in wrong]
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        base = _compose(verb, chosen)
        known = set(_leaves(base)) | _optional_keys(base)
        problems = [
            *wrong.values(),
            *(p for o in values if (p := _key_problem(o, base, known))),
            *_contradictions(overrides),
        ]
        if problems:
            raise ConfigError(*problems)
        full = _compose(verb, chosen + ["++" + _line(o) for o in values])
    try:
        plain = OmegaConf.to_container(full, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).split("\n")[0]) from error
    config = {str(k): v for k, v in plain.items()} if isinstance(plain, dict) else {}
    if is_url((config.get("data") or {}).get("path") or ""):
        from cass_scale.data.remote import public

        config["data"]["path"] = public(config["data"]["path"])
    return config | ({"words": passed_on} if verb == "study" else {})


def _imply_source(verb: str, words: list[str]) -> list[str]:
    """`data.path=DIR` means `data=folder`, or `data=shards` where DIR holds some, so that defaults give way unnamed."""
    given = [word.lstrip("+") for word in words]
    paths = [word.removeprefix("data.path=").strip("'\"") for word in given if word.startswith("data.path=")]
    named = {word.partition("=")[0]: word.partition("=")[2] for word in given if word.startswith(("data=", "stream="))}
    implied, kind = [], _shard_format(paths[0]) if paths else None
    if paths and "data" not in named:
        named["data"] = "shards" if kind else "folder"
        implied.append(f"data={named['data']}")
    if named.get("data") == "shards" and "stream" in _groups(verb) and "stream" not in named:
        implied.append(f"stream={kind or 'webdataset'}")
    return [*implied, *words]


def _shard_format(path: str) -> str | None:
    from cass_scale.data.layouts import shard_format  # decoders are loaded by verbs that need data

    return shard_format(path)


def _compose(verb: str, lines: list[str]) -> DictConfig:
    try:
        return compose(verb, lines)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).split("\n")[0]) from error


def _line(override: Override) -> str:
    """The override as it was given, without + or ++: whether a key must be new is not for a person to know."""
    return str(override.input_line).lstrip("+")


def _parse(words: list[str]) -> list[Override]:
    overrides, problems = [], []
    for word in words:
        try:
            word.encode()
            override = OverridesParser.create().parse_override(word)
        except UnicodeEncodeError:
            problems.append(f"{word!r}: not UTF-8, which records are written in; rename it, or give it a link")
            continue
        except HydraException:
            problems.append(
                f"{word}: not an override; write key=value, and quotes around a value with special characters: "
                "\"key='a,b=c'\""
            )
            continue
        if override.is_delete():
            problems.append(f"{word}: keys cannot be taken out; give them another value")
        elif override.is_sweep_override():
            problems.append(f"{word}: one value at a time; quote it if the comma belongs to it: \"key='a,b'\"")
        else:
            overrides.append(override)
    if problems:
        raise ConfigError(*problems)
    return overrides


def _groups(verb: str) -> list[str]:
    """Groups that a verb chooses from: the entries of its defaults list."""
    return [group for entry in _root(verb).get("defaults", []) if isinstance(entry, dict) for group in entry]


def _root(verb: str) -> JSON:
    found: JSON = yaml.safe_load((config_dir() / f"{verb}.yaml").read_text())
    return found


def _choice_problem(override: Override) -> str | None:
    group, choice = override.key_or_group, str(override.value())
    choices = sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
    if choice in choices:
        return None
    near = difflib.get_close_matches(choice, choices, n=1)
    return (
        f"{group}={choice}: no such choice; {f'did you mean {near[0]}? ' if near else ''}there are {', '.join(choices)}"
    )


def _leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, node):
        name = f"{prefix}{key}"
        yield name
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            yield from _leaves(child, f"{name}.")


def _optional_keys(base: DictConfig) -> set[str]:
    """Keys of an arm that its preset leaves at their defaults."""
    if not isinstance(base.get("arms"), DictConfig):
        return set()
    fields = ("model", "weights", "outputs", "optimizer", "mean", "std", "args")
    return {f"arms.{arm}.{name}" for arm in base.arms if isinstance(base.arms[arm], DictConfig) for name in fields}


def _key_problem(override: Override, base: DictConfig, known: set[str]) -> str | None:
    key = override.key_or_group
    node = OmegaConf.select(base, key) if key in known and not key.endswith(".args") else None
    if isinstance(node, DictConfig):
        some = ", ".join(f"{key}.{name}" for name in list(node)[:3])
        return f"{override.input_line}: {key} is a section; set its keys one by one: {some} ..."
    embedded = key == "data.path" and "_target_" in base.get("data", {})  # _contradictions has the better words
    if key in known or embedded or any(key.startswith(f"{k}.") and k.endswith(".args") for k in known):
        return None
    sections = {k.rpartition(".")[0] for k in known}
    shown = sorted(known - sections - {k for k in known if k.endswith(("_target_", "_partial_"))})
    near = difflib.get_close_matches(key, shown, n=1, cutoff=0.5)
    same = [k for k in shown if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    hint = (
        f"; did you mean {(same or near)[0]}?" if same or near else f"; top-level keys are {', '.join(map(str, base))}"
    )
    return f"unknown key {key}{hint}"


def _contradictions(overrides: list[Override]) -> list[str]:
    seen: dict[str, str] = {}
    problems = []
    for override in overrides:
        key, line = override.key_or_group, str(override.input_line)
        if seen.get(key, line) != line:
            problems.append(f"{seen[key]} contradicts {line}: give the key once")
        seen[key] = line
    chosen, path = seen.get("data", "data=folder"), seen.get("data.path")
    if path and chosen in ("data=phantom", "data=digits"):
        problems.append(f"{chosen} contradicts {path}: embedded data have no path; drop one of the two")
    if path and seen.get("data") == "data=folder" and is_url(path.partition("=")[2].strip("'\"")):
        problems.append(f"data=folder cannot read {path}: a URL is that of shards; drop data=folder")
    if chosen == "data=shards":
        able = OF_SHARDS[_shard_format(path.partition("=")[2].strip("'\"")) or "webdataset" if path else "webdataset"]
        if seen.get("stream", able[0]) not in able:
            problems.append(f"{seen['stream']} cannot read the shards in {path}; use {' or '.join(able)}")
    return problems


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "cass-scale",
        description="Pretrains image encoders without labels around CASS, and measures what it saves.",
    )
    parser.add_argument("--version", action="version", version=f"cass-scale {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, (what, example) in VERBS.items():
        keys = (config_dir() / f"{name}.yaml").read_text()
        verb = verbs.add_parser(
            name,
            help=what,
            description=f"{what}.\n\nexample:\n  {example}",
            epilog=f"keys and defaults ({name}.yaml; groups are the folders of configs/):\n\n{keys}\n{_choices(name)}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_argument(
            "overrides", nargs="*", metavar="key=value", help="hydra overrides: group=choice, key.sub=value"
        )
        verb.add_argument(
            "--dry-run",
            action="store_true",
            help="print the resolved configuration and what it would cost; start nothing",
        )
        verb.add_argument("--quiet", action="store_true", help="warnings and errors only")
        verb.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _choices(verb: str) -> str:
    rows = [f"  {g}: {', '.join(sorted(p.stem for p in (config_dir() / g).glob('*.yaml')))}" for g in _groups(verb)]
    return "\n".join(["choices:", *rows]) if rows else ""


def _process_start() -> float:
    """When this process began, so that imports are part of its device-hours."""
    try:
        import psutil

        return float(psutil.Process().create_time())
    except (ImportError, OSError):
        return time.time()
