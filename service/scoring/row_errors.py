"""Why a customer has no score: the checks of a batch row by row, and the error of each row that fails one."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.state.layout import Floats, MissingReason, StateBatch, surely_finite
from service.errors import Reason, RequestError
from service.scoring.types import ScoreRequest
from service.telemetry.logs import customers

MIN_TIME_S: Final = -62_135_596_800.0
MAX_TIME_S: Final = 253_402_300_799.0
"""The years 1 to 9999, which a google.protobuf.Timestamp can represent."""

Bools = npt.NDArray[np.bool_]


def usable_rows(states: StateBatch, table: Floats) -> Bools | None:
    """Which rows have a score.

    Args:
        states: The states that were scored.
        table: What the model computed, float64 ``[n, outputs + 1]``.

    Returns:
        bool ``[n]``, or None if all rows have a score, which is the usual case and takes a fraction of the time.
    """
    as_of = states.as_of
    withheld = [row for row, record in states.profiles.items() if not record.scoring]
    in_range = all(MIN_TIME_S <= time_s <= MAX_TIME_S for time_s in as_of.tolist())
    if states.all_valid and not withheld and surely_finite(table) and in_range:
        return None
    usable = states.valid & np.isfinite(table).all(axis=1) & (as_of >= MIN_TIME_S) & (as_of <= MAX_TIME_S)
    usable[withheld] = False
    return usable


def row_errors(
    request: ScoreRequest, states: StateBatch, usable: Bools | None, start: int, now: float
) -> dict[int, RequestError]:
    """The errors of a request's customers, by position.

    Args:
        request: The request, whose customers are rows ``start`` and following of the batch.
        states: The states of the batch.
        usable: As :func:`usable_rows` returns it.
        start: The row of the request's first customer.
        now: The time at which the scores were computed, in unix seconds.
    """
    stop = start + len(request.customer_ids)
    found = states.found[start:stop]
    has_score = np.ones_like(found) if usable is None else usable[start:stop]
    withheld = {row - start for row, record in states.profiles.items() if not record.scoring and start <= row < stop}
    errors: dict[int, RequestError] = {}  # rows with the same fault share an error, so that it is encoded once
    if without := np.flatnonzero(~has_score).tolist():
        missing, unreadable = _missing(states.missing), _unreadable()
        for at in without:
            errors[at] = unreadable if found[at] else missing
            if found[at] and at not in withheld:
                customers.report("what is stored cannot be used", request.customer_ids[at])
    if request.max_age_s is not None:
        too_old = has_score & (now - states.as_of[start:stop] > request.max_age_s)
        errors.update(dict.fromkeys(np.flatnonzero(too_old).tolist(), _too_old(request.max_age_s)))
    if withheld:
        errors.update(dict.fromkeys(withheld, _withheld()))
    return errors


def _unreadable() -> RequestError:
    message = (
        "what is stored for this customer cannot be used: load the features of the serving model again; if the "
        "customer's profile was lost, store its consent"
    )
    return RequestError(Reason.STATE_UNREADABLE, message, "customer_id")


def _missing(why: MissingReason) -> RequestError:
    if why is MissingReason.NOT_LOADED:
        message = "the feature store holds no features of the serving model, of any customer: load them first"
        return RequestError(Reason.FEATURES_NOT_LOADED, message)
    if why is MissingReason.STORE_AWAY:
        message = "the feature store does not answer, and has not been read for this customer within allow_stale"
        return RequestError(Reason.FEATURE_STORE_UNAVAILABLE, f"{message}: try again shortly", "allow_stale")
    message = "nothing is known about this customer: check the id, or load the customer's features first"
    return RequestError(Reason.CUSTOMER_UNKNOWN, message, "customer_id")


def _withheld() -> RequestError:
    message = "the customer does not allow scoring: ask for consent first"
    return RequestError(Reason.CONSENT_WITHHELD, message, "customer_id")


def _too_old(max_age_s: float) -> RequestError:
    message = f"the features are older than {max_age_s:g} s: load newer ones, or allow a larger max_feature_age"
    return RequestError(Reason.FEATURES_TOO_OLD, message, "max_feature_age")
