"""What every policy is: a frozen dataclass of settings, read from TOML or a dict, known by its hash."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from riskml.errors import ConfigError, nearest


class PolicyFile:
    """Base of policies; a subclass is a frozen dataclass with a default for every field."""

    KIND: ClassVar[str]
    """What it is called in errors."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a policy; ConfigError names an unknown key and the nearest known one."""
        known = {item.name for item in fields(cls)}  # type: ignore[arg-type]  # subclasses are dataclasses
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ConfigError(
                f"the {cls.KIND} policy has no '{unknown[0]}'.{nearest(unknown[0], known)}",
                fix=f"known keys: {', '.join(sorted(known))}",
            )
        return cls(**values)

    @classmethod
    def load(cls, source: Self | Mapping[str, Any] | str | Path | None) -> Self:
        """A policy from itself, a TOML file's path, a dict of its settings, or None (all defaults).

        Raises
        ------
        ConfigError : no such file, no TOML, an unknown key, a value that is not usable, or something else.
        """
        if source is None:
            return cls()
        if isinstance(source, cls):
            return source
        if isinstance(source, Mapping):
            return cls.from_dict(source)
        fix = f"pass a {cls.KIND} policy, the path of its TOML file, or a dict"
        if not isinstance(source, (str, Path)):
            raise ConfigError(f"a {type(source).__name__} is no {cls.KIND} policy", fix=fix)
        path = Path(source)
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, IsADirectoryError):
            raise ConfigError(f"there is no policy file {path}", fix=fix) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}", fix=fix) from error
        return cls.from_dict(values)

    @cached_property
    def policy_hash(self) -> str:
        """sha256 over every value, defaults included."""
        text = json.dumps(asdict(self), sort_keys=True)  # type: ignore[call-overload]  # as above
        return hashlib.sha256(text.encode()).hexdigest()
