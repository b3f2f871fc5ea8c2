"""The place of a worker when workers end, cannot start, or hang. A worker is a pipe here, and time a number."""

from __future__ import annotations

from multiprocessing import Pipe

import pytest

from service.app.worker_slot import MAX_PAUSE_S, MIN_LIFE_S, MIN_PAUSE_S, READY, START_S, Worker, WorkerSlot


class FakeProcess:
    """A process that ends when the test says so."""

    sentinel = -1

    def __init__(self) -> None:
        self.exitcode: int | None = None

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        if self.exitcode is None:
            self.exitcode = -9

    terminate = kill

    def join(self, timeout: float | None = None) -> None:
        assert timeout is not None, "a wait without a limit"


class Machine:
    """Starts workers, and has the clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.processes: list[FakeProcess] = []
        self.slot = WorkerSlot(self._start, clock=lambda: self.now)

    def _start(self) -> Worker:
        (ours, self.pipe), (asking, _) = Pipe(), Pipe()
        self.processes.append(FakeProcess())
        return Worker(self.processes[-1], ours, asking, self.now)

    def say(self, answer: str) -> None:
        """The latest worker sends something."""
        self.pipe.send(answer)
        self.slot.tick()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.slot.tick()

    def end(self, code: int = -9) -> None:
        """The latest worker ends."""
        self.pipe.close()
        self.processes[-1].exitcode = code
        self.slot.tick()

    @property
    def started(self) -> int:
        return len(self.processes)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_a_worker_that_served_for_a_while_is_replaced_at_once(machine: Machine) -> None:
    machine.say(READY)
    machine.wait(MIN_LIFE_S + 1)
    machine.end()
    machine.wait(0)
    assert machine.started == 2
    machine.say(READY)
    assert machine.slot.worker.ready


def test_a_replacement_that_cannot_start_is_tried_again_after_pauses_that_double(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.say(READY)
    machine.wait(MIN_LIFE_S + 1)
    machine.end()
    machine.wait(0)
    pauses = []
    for _ in range(10):
        started, began = machine.started, machine.now
        machine.say("the registry cannot be read")
        while machine.started == started:
            machine.wait(0.25)
        pauses.append(machine.now - began)
    doubling = [MIN_PAUSE_S * 2**number for number in range(10)]
    assert pauses == [min(pause, MAX_PAUSE_S) for pause in doubling]
    assert "a worker cannot start: the registry cannot be read: starting another in 0.5 s" in caplog.text
    machine.say(READY)
    machine.wait(MIN_LIFE_S + 1)
    machine.end()
    machine.wait(0)
    assert machine.started == 13, "one that served for a while ends the series"


def test_a_worker_that_ends_as_soon_as_it_is_ready_is_not_replaced_without_a_pause(machine: Machine) -> None:
    machine.say(READY)
    machine.end()
    machine.wait(MIN_PAUSE_S / 2)
    assert machine.started == 1
    machine.wait(MIN_PAUSE_S / 2)
    assert machine.started == 2


def test_a_worker_that_ends_without_a_word_is_replaced(machine: Machine) -> None:
    machine.end(1)
    machine.wait(MIN_PAUSE_S)
    assert machine.started == 2


def test_a_worker_that_hangs_while_it_starts_is_killed_and_replaced(machine: Machine) -> None:
    machine.wait(START_S)
    assert machine.processes[0].is_alive()
    machine.wait(1)
    assert not machine.processes[0].is_alive()
    machine.wait(MIN_PAUSE_S)
    assert machine.started == 2


def test_a_worker_put_in_place_of_another_lets_that_one_stop(machine: Machine) -> None:
    machine.say(READY)
    pipe = machine.pipe
    new = machine._start()
    new.ready = True
    old = machine.slot.put(new)
    assert old.process is machine.processes[0]
    assert pipe.poll(), "its pipe is closed"
    machine.wait(1)
    assert machine.slot.worker is new


def test_a_worker_put_into_an_empty_place_ends_the_attempts(machine: Machine) -> None:
    machine.end()
    assert machine.slot.is_empty
    machine.slot.put(machine._start())
    machine.say(READY)
    machine.wait(MAX_PAUSE_S)
    assert machine.started == 2
