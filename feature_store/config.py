"""The config file: where events come from and which features are kept. `training` adds what is predicted."""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from feature_store.definitions import Candidates, Feature, Interests, check_unique_names
from feature_store.errors import InputError

BUILT_IN = Path(__file__).parent / "configs"


class Source(BaseModel):
    """``[source]``: DuckDB SQL that turns the shop's tables into canonical events and attributes.

    Folders are relative to the config file, or ``package:NAME/FOLDER`` for data inside an installed Python package.

    Attributes:
        events: SQL for the events.
        archive: Folder that live events are archived in, in place of ``events``.
        attributes: SQL for the customer table.
        paths: Folders by name, which the SQL can use as ``${name}``.
    """

    model_config = ConfigDict(extra="forbid")

    events: str | None = None
    archive: Annotated[str | None, Field(min_length=1)] = None
    attributes: str | None = None
    paths: dict[str, str] = {}

    _base: Path = PrivateAttr(default=Path())

    def check_events(self) -> None:
        """Raise ValueError unless there is exactly one source of events."""
        if (self.events is None) == (self.archive is None):
            raise ValueError("source: give either 'events' (SQL) or 'archive' (a folder)")

    def relative_to(self, folder: Path) -> None:
        """Make relative folders relative to ``folder``."""
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
    def folders(self) -> list[Path]:
        """The folders that may be read: those of ``paths``, and the archive."""
        folders = [self.folder(f"paths.{name}", path) for name, path in self.paths.items()]
        return folders if self.archive_folder is None else [*folders, self.archive_folder]

    @property
    def queries(self) -> list[str]:
        """The SQL, with its folders filled in."""
        return [self.sql(query) for query in (self.events, self.attributes) if query is not None]

    @property
    def archive_folder(self) -> Path | None:
        """The archive that the events come from; None if they come from SQL."""
        return None if self.archive is None else self.folder("archive", self.archive)

    def folder(self, key: str, path: str) -> Path:
        """The path of a folder; ``key`` is its key in the config, for errors."""
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


Column = Annotated[str, Field(min_length=1)]


class Snapshot(BaseModel):
    """``[snapshot]``: a shop without events that has one row per customer, with a label.

    Attributes:
        table: SQL for ``customer_id``, the label, and numbers or text about the customer.
        paths: Folders by name, which the SQL can use as ``${name}``.
        label: Column with 0/1 or a boolean: whether the customer left, or bought if ``target`` is "propensity".
        target: What the label says.
        value: Column with the future spend of each customer; without it every customer is worth ``economics.value``.
        contact_cost: Column with the cost of contacting each customer.
        offer_cost: Column with the cost of the offer for each customer.
        group: Column whose rows belong together, such as a household.
        leave_out: Columns that must not be learnt from, because they were not known before the label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    paths: dict[str, str] = {}
    label: Column
    target: Literal["churn", "propensity"] = "churn"
    value: Column | None = None
    contact_cost: Column | None = None
    offer_cost: Column | None = None
    group: Column | None = None
    leave_out: tuple[Column, ...] = ()


class FeatureConfig(BaseModel):
    """The part of a config that the feature store reads: where the data is, and which features to keep.

    A ``[snapshot]`` takes the place of ``[source]``, and all its columns are candidates.

    Attributes:
        source: Where the events and attributes come from.
        snapshot: One row per customer with a label, for a shop without events.
        interests: Which events are views and purchases of items.
        candidates: Features to select from. Without it every ``[[feature]]`` is used.
        feature: Features by name, at most 512.
    """

    model_config = ConfigDict(extra="ignore")

    source: Source
    snapshot: Snapshot | None = None
    interests: Interests = Interests()
    candidates: Candidates | None = None
    feature: Annotated[list[Feature], Field(max_length=512)] = []

    @model_validator(mode="before")
    @classmethod
    def _from_snapshot(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("snapshot") is None:
            return data
        if "source" in data:
            raise ValueError("give either [source] or [snapshot]")
        snapshot = data["snapshot"]
        section = snapshot if isinstance(snapshot, dict) else {}
        source = {"attributes": section.get("table"), "paths": section.get("paths", {})}
        return {"candidates": {}, **data, "source": source}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.snapshot is None:
            self.source.check_events()
        if not self.feature and self.candidates is None:
            raise ValueError("feature: give [[feature]] sections, or a [candidates] section to select from")
        check_unique_names(self.feature)
        return self


Config = TypeVar("Config", bound=FeatureConfig)


def built_in_names() -> list[str]:
    """Names of the configs that are part of tidemark."""
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))


def load_config(kind: type[Config], name: str) -> Config:
    """Read a config by file path or built-in name; InputError names the file, the key and the fix."""
    path = Path(name) if name.endswith(".toml") or Path(name).is_file() else BUILT_IN / f"{name}.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        names = ", ".join(built_in_names())
        raise InputError(f"config '{name}' is neither a TOML file nor a built-in config ({names})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config '{name}' cannot be read: {type(error).__name__}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path.name}: not valid TOML: {error}") from error
    return parse_config(kind, data, path)


def parse_config(kind: type[Config], data: Mapping[str, object], path: Path) -> Config:
    """Validate parsed TOML; relative folders are relative to the folder of ``path``. InputError as above."""
    try:
        config = kind.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path.name}: {first_problem(error)}") from error
    config.source.relative_to(path.parent)
    return config


def first_problem(error: ValidationError) -> str:
    """The first problem that pydantic found, as ``where: what``."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    what = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
