"""Garbage for the methods of a running server, and what its scores have to be all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import numpy as np
from tidemark.v1 import scoring_pb2

from feature_store.online.state_writer import StateWriter
from feature_store.state.layout import Floats, StateBatch
from service.api.scoring import decode_batch, decode_score
from service.scoring.model import Model
from service.scoring.types import ScoreRequest
from tests.benchmarks.garbage_made import FED, GOOD, SURE, TIMEOUT_S, Maker, Method, Tally, methods
from tests.benchmarks.setting import BATCH, UNARY

IN_FLIGHT: Final = 32
CHANNELS: Final = 2
TOLERANCE: Final = 1e-4
CLIENTS_OWN: Final = "Internal error from Core"
"""What grpc.aio says where it reads from, or writes to, a call that has ended already."""

GRPC_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class Oracle:
    """What the scores of customers have to be, computed from what Redis holds."""

    def __init__(self, registry: Path, url: str) -> None:
        self.model: Final = Model.current(registry)
        self._url = url

    def states(self, names: Sequence[str]) -> dict[str, StateBatch]:
        """Each customer's state."""
        with StateWriter(self._url, self.model.layout) as store:
            values = store.read(names)
        return {name: self.model.layout.unpack([value]) for name, value in zip(names, values, strict=True)}

    def table(self, state: StateBatch, economics: dict[int, float], now: float) -> Floats:
        """The figures of one customer."""
        row = self.model.economics[np.newaxis].copy()
        for column, figure in economics.items():
            row[0, column] = figure
        return np.asarray(self.model.run(state, now, row)[0])

    def wrong(self, reply: Any, state: StateBatch, part: ScoreRequest, times: tuple[float, float]) -> str | None:
        """What is wrong with a score that was asked for and came between two times."""
        figures = [reply.churn.probability, reply.propensity.probability, reply.expected_spend]
        figures += [reply.churn.threshold, reply.propensity.threshold]
        for now in times:
            table = self.table(state, dict(part.economics), now)[:5]
            if np.allclose(figures, table, rtol=TOLERANCE, atol=TOLERANCE):
                break
        else:
            return "a wrong score"
        for alert in (reply.churn, reply.propensity):
            if not alert.automated_response_off and alert.alert is not (alert.probability >= alert.threshold):
                return "a wrong alert"
        return None


class Requests:
    """Garbage for a running server."""

    def __init__(self, target: str, oracle: Oracle, seed: int, tally: Tally) -> None:
        self._target, self._oracle, self._tally = target, oracle, tally
        self._maker = Maker(seed)
        with grpc.insecure_channel(target) as channel:
            self.methods: Final = methods(channel)
        self._sure = oracle.states(SURE)

    def run(self, count: int) -> None:
        """So many calls."""
        asyncio.run(self._run(count))

    def settled(self) -> None:
        """Hold the scores of customers whom anything may have happened to against what Redis now holds of them."""
        with grpc.insecure_channel(self._target) as channel:
            ask: Any = channel.unary_unary(UNARY, None, scoring_pb2.ScoreCustomerResponse.FromString)
            for name, state in self._oracle.states(FED).items():
                began = time.time()
                try:
                    reply = ask(scoring_pb2.ScoreCustomerRequest(customer_id=name).SerializeToString())
                except grpc.RpcError as error:
                    if error.code() not in GOOD:
                        self._tally.fault(f"after all of it: {error.code().name}")
                    continue
                self._tally.counts["scores computed again"] += int(state.found[0])
                if state.found[0] and (
                    what := self._oracle.wrong(reply.score, state, ScoreRequest([name]), (began, time.time()))
                ):
                    self._tally.fault(f"after all of it: {what}")

    async def _run(self, count: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        channels = [grpc.aio.insecure_channel(self._target, options) for _ in range(CHANNELS)]
        left = iter(range(count))

        async def client(channel: grpc.aio.Channel) -> None:
            for number in left:
                await self._one(channel, self.methods[number % len(self.methods)])

        await asyncio.gather(*(client(channels[number % CHANNELS]) for number in range(IN_FLIGHT)))
        for channel in channels:
            await channel.close()

    async def _one(self, channel: grpc.aio.Channel, method: Method) -> None:
        ids = SURE if method.path in (UNARY, BATCH) and self._maker.pick.random() < 0.7 else FED
        messages = self._maker.pick.choice((0, 1, 2, 3)) if method.many else 1
        sent = [self._maker.request(method.request, ids) for _ in range(messages)]
        began = time.time()
        try:
            reply = await self._ask(channel, method, sent)
        except grpc.aio.AioRpcError as error:
            self._tally.counts["refused"] += 1
            if error.code() not in GOOD and error.details() != CLIENTS_OWN:
                self._tally.fault(f"{method.path}: {error.code().name} {error.details()}")
        else:
            self._tally.counts["answered"] += 1
            if reply is not None and method.path in (UNARY, BATCH):
                self._check(method.path, sent[0], reply, (began, time.time()))

    async def _ask(self, channel: grpc.aio.Channel, method: Method, sent: list[bytes]) -> bytes | None:
        if method.streams:
            make: Any = channel.stream_stream if method.many else channel.unary_stream
            call = make(method.path)(iter(sent) if method.many else sent[0], timeout=TIMEOUT_S)
            if sent:
                await call.read()
                code = await call.code() if call.done() else None
                if code is not None and code is not grpc.StatusCode.OK:
                    raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), await call.details())
            call.cancel()
            return None
        make = channel.stream_unary if method.many else channel.unary_unary
        return bytes(await make(method.path)(iter(sent) if method.many else sent[0], timeout=TIMEOUT_S))

    def _check(self, path: str, sent: bytes, reply: bytes, times: tuple[float, float]) -> None:
        """Hold scores of customers who do not change against those computed here."""
        if path == UNARY:
            part: ScoreRequest = decode_score(sent)
            scores: list[Any] = [scoring_pb2.ScoreCustomerResponse.FromString(reply).score]
        else:
            part = decode_batch(sent)
            results = scoring_pb2.BatchScoreCustomersResponse.FromString(reply).results
            scores = [item.score if item.HasField("score") else None for item in results]
            if any(item.status.code and GRPC_CODES[item.status.code] not in GOOD for item in results):
                self._tally.fault(f"{path}: a customer's status is none that is defined")
        if len(scores) != len(part.customer_ids):
            self._tally.fault(f"{path}: {len(scores)} results for {len(part.customer_ids)} customers")
            return
        for name, score in list(zip(part.customer_ids, scores, strict=True))[:8]:
            if score is None:
                continue
            self._tally.counts["scores"] += 1
            if score.customer_id != name:
                self._tally.fault(f"{path}: another customer's score")
            elif name in self._sure:
                self._tally.counts["scores computed again"] += 1
                if what := self._oracle.wrong(score, self._sure[name], part, times):
                    self._tally.fault(f"{path}: {what}")
