"""Settings come from options or the environment, and the README's table is the settings' own documentation."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings

README = Path(__file__).parents[3] / "README.md"


def test_the_readme_documents_every_setting_with_its_default() -> None:
    table = README.read_text()
    for name, setting in Settings.model_fields.items():
        default = "required" if setting.is_required() else f"`{setting.default}`"
        option = "--" + name.replace("_", "-")
        assert f"| `{option}` | `TIDEMARK_{name.upper()}` | {default} | {setting.description} |" in table


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMARK_REGISTRY", "/models")
    monkeypatch.setenv("TIDEMARK_REDIS", "redis://somewhere")
    monkeypatch.setenv("TIDEMARK_PORT", "1234")
    settings = Settings()  # type: ignore[call-arg]
    assert (settings.registry, settings.redis, settings.port) == (Path("/models"), "redis://somewhere", 1234)


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", 70_000), ("port", -1), ("redis", ""), ("redis_timeout_ms", 0), ("slice_rows", 0), ("log_level", "LOUD")],
)
def test_a_setting_out_of_range_is_refused(name: str, value: object) -> None:
    good: dict[str, object] = {"registry": Path("r"), "redis": "redis://x"}
    with pytest.raises(ValidationError, match=name):
        Settings(**(good | {name: value}))  # type: ignore[arg-type]
