"""What a feature store that fails is told as."""

from __future__ import annotations

from feature_store.errors import ReadOnlyStoreError, StoreFullError, StoreUnavailableError
from service.errors import Reason, RequestError


def store_error(error: StoreUnavailableError, mend: str = "try again shortly") -> RequestError:
    """For a call that the store did not answer, or refused to write for."""
    if isinstance(error, StoreFullError):
        message = "the feature store has no memory left for writes: give Redis more, or erase what is not needed"
        return RequestError(Reason.FEATURE_STORE_FULL, message)
    if isinstance(error, ReadOnlyStoreError):
        message = f"the feature store takes no writes just now: {mend}"
        return RequestError(Reason.FEATURE_STORE_UNAVAILABLE, message)
    return RequestError(Reason.FEATURE_STORE_UNAVAILABLE, f"the feature store does not answer: {mend}")


def not_in_cluster() -> RequestError:
    """For what a Redis cluster cannot do as a whole or not at all."""
    message = "the features are in a Redis cluster, which takes loads, consent and deletions only: use a single Redis"
    return RequestError(Reason.NOT_IN_CLUSTER, message)
