"""The config file: where the events come from and which features are kept. `training` adds what is predicted."""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from feature_store.definitions import Feature, Interests, check_unique_names
from feature_store.errors import InputError

BUILT_IN = Path(__file__).parent / "configs"


class Source(BaseModel):
    """``[source]``: DuckDB SQL that turns the shop's tables into canonical events and attributes.

    Instead of SQL for events, ``archive`` may name the folder that live events are archived in. ``paths`` names folders
    for the SQL to use as ``${name}``. Folders are relative to the config file, or ``package:NAME/FOLDER`` for data
    inside an installed Python package.
    """

    model_config = ConfigDict(extra="forbid")

    events: str | None = None
    archive: Annotated[str | None, Field(min_length=1)] = None
    attributes: str | None = None
    paths: dict[str, str] = {}

    _base: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.events is None) == (self.archive is None):
            raise ValueError("give 'events' (SQL) or 'archive' (a folder), one of the two")
        return self

    def relative_to(self, folder: Path) -> None:
        """Resolve relative folders from here on."""
        self._base = folder

    def sql(self, query: str) -> str:
        """``query`` with every ``${name}`` replaced by its folder."""
        folders = {name: str(self.folder(f"paths.{name}", path)) for name, path in self.paths.items()}
        try:
            return Template(query).substitute(folders).strip().removesuffix(";")
        except (KeyError, ValueError) as error:
            raise InputError(
                f"source: the SQL uses an unknown folder {error}: add it to source.paths, or write $$ for a dollar sign"
            ) from error

    @property
    def archive_folder(self) -> Path | None:
        """The archive that the events come from, None where they come from SQL."""
        return None if self.archive is None else self.folder("archive", self.archive)

    def folder(self, key: str, path: str) -> Path:
        """Where a folder of the config is; ``key`` names it in errors."""
        if not path.startswith("package:"):
            return (self._base / path).resolve()
        package, _, folder = path.removeprefix("package:").partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise InputError(f"source.{key}: Python package '{package}' is not installed")
        return Path(next(iter(spec.submodule_search_locations))) / folder


class FeatureConfig(BaseModel):
    """The part of a config that the feature store reads: ``[source]`` and the ``[[feature]]`` lines."""

    model_config = ConfigDict(extra="ignore")

    source: Source
    interests: Interests = Interests()
    feature: Annotated[list[Feature], Field(min_length=1, max_length=512)]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        check_unique_names(self.feature)
        return self


Config = TypeVar("Config", bound=FeatureConfig)


def built_in_names() -> list[str]:
    """Names of the configs that come with tidemark."""
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))


def load_config(kind: type[Config], name: str) -> Config:
    """Read a config by file path or built-in name; InputError names the file, the key and the mend."""
    path = Path(name) if name.endswith(".toml") or Path(name).is_file() else BUILT_IN / f"{name}.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(built_in_names())
        raise InputError(f"config '{name}' is neither a TOML file nor a built-in one ({known})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config '{name}' cannot be read: {type(error).__name__}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path.name}: not valid TOML: {error}") from error
    return parse_config(kind, data, path)


def parse_config(kind: type[Config], data: Mapping[str, object], path: Path) -> Config:
    """Validate parsed TOML; relative folders are relative to ``path``."""
    try:
        config = kind.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path.name}: {first_problem(error)}") from error
    config.source.relative_to(path.parent)
    return config


def first_problem(error: ValidationError) -> str:
    """The first problem pydantic found, as ``where: what``."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    what = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
