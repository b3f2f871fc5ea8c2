"""The fault suite finds the faults for which it was made: each test takes one fix back, and histories must show it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from feature_store.archive import mover
from feature_store.loading.event_history import EventHistory
from feature_store.loading.load import Loader
from feature_store.online import erasure
from feature_store.online.commit import Group
from feature_store.online.event_log import EventLog
from feature_store.online.keys import ARCHIVED, log_key
from tests.faults.history import History, KilledError

MAX_HISTORIES: Final = 12
STEPS: Final = 40

pytestmark = pytest.mark.full

Revert = Callable[[pytest.MonkeyPatch], None]


def erasures_overwrite_each_other(patch: pytest.MonkeyPatch) -> None:
    """An erasure writes a log entry back although another one has changed it meanwhile."""
    patch.setattr(erasure, "REPLACE", b"redis.call('SET', KEYS[1], ARGV[2], 'XX') return 1")


def loads_ignore_tombstones(patch: pytest.MonkeyPatch) -> None:
    """A load takes a customer without state and profile for untouched, although it was erased during the load."""
    loaded = Loader._loaded

    def unchecked(loader: Loader, *arguments: Any) -> Group:
        group = loaded(loader, *arguments)
        return Group([write for write in group.writes if not write.check_only], group.log)

    patch.setattr(Loader, "_loaded", unchecked)
    patch.setattr(Loader, "_is_missed", lambda *_: False)
    patch.setattr(Loader, "_tombstones", lambda *_: {})


def the_log_has_no_identity(patch: pytest.MonkeyPatch) -> None:
    """The archive goes by positions alone, which a Redis that has lost commits assigns again."""
    patch.setattr(mover, "_recover", lambda *_, **__: None)
    patch.setattr(EventHistory, "_check_lineage", lambda *_: None)


def the_mark_comes_before_the_removal(patch: pytest.MonkeyPatch) -> None:
    """Entries are noted as archived before they are removed: an archiver that dies in between leaves them for ever."""

    def forget(log: EventLog, first: int, last: int) -> None:
        log.client.call(log.client.redis.set, ARCHIVED, last)
        _die_if_asked()
        for position in range(first, last + 1):
            log.client.call(log.client.redis.unlink, log_key(position))

    patch.setattr(EventLog, "forget", forget)


_dying: Final[list[bool]] = [False]


def _die_if_asked() -> None:
    if _dying[0]:
        raise KilledError


class Between(History):
    """Histories in which the archiver is killed within the removal of entries as well."""

    def kill_archiver(self) -> None:
        _dying[0] = True
        try:
            with suppress(KilledError):
                self.archive()
        finally:
            _dying[0] = False


@pytest.mark.parametrize(
    "revert",
    [
        erasures_overwrite_each_other,
        loads_ignore_tombstones,
        the_log_has_no_identity,
        the_mark_comes_before_the_removal,
    ],
)
def test_a_fix_that_is_taken_back_is_found(revert: Revert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revert(monkeypatch)
    for seed in range(MAX_HISTORIES):
        history = Between(tmp_path / str(seed), seed)
        try:
            for _ in range(STEPS):
                history.step()
            history.check()
        except AssertionError as error:
            print(f"found by history {seed}: {error!r}")
            return
        finally:
            history.node.close()
    pytest.fail(f"{MAX_HISTORIES} histories did not find it")
