"""Reasons that concern events: of a whole call, of one event that is rejected, and of guards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from feature_store.state.events import EventReason
from service.error_catalog.entry import TARGET, ErrorEntry, rejected_event, stub
from service.errors import Reason

DAYS: Final = "from datetime import UTC, datetime, timedelta\n\n"
TWICE: Final = (
    "from tidemark import Event, EventClient\n\n"
    f'with EventClient("{TARGET}", timeout_s=10) as events:\n'
    "    for _ in range(2):\n"
    '        recorded = events.record([Event("visitor-10", "view")])'
)

EVENTS: Final[Mapping[str, ErrorEntry]] = {
    Reason.TOO_MANY_EVENTS: ErrorEntry(
        "A message has more than 1000 events.",
        "Split the events into messages of at most 1000. `EventClient` does it.",
        stub("events", "RecordEvents", "RecordEventsRequest(events=[events_pb2.Event()] * 1001)"),
    ),
    Reason.ARCHIVE_BEHIND: ErrorEntry(
        "As many commits wait for the archive as the setting `max_unarchived_commits` allows.",
        "Start `tidemark archive`, or find out what stops it: its log, and the space on its disk. Then send the events "
        "again, with the same ids.",
        TWICE,
        options=("--max-unarchived-commits", "1"),
    ),
    Reason.NOT_IN_CLUSTER: ErrorEntry(
        "The features are in a Redis cluster, which takes no live events and no merges: they change several keys at "
        "once.",
        "Use a single Redis, with Sentinels for failover. Loads, scores, consent and deletions work in a cluster.",
        rejected_event('Event("900", "view")'),
        redis="cluster",
    ),
    EventReason.EVENT_TYPE_INVALID: ErrorEntry(
        "The type of an event is empty, longer than 64 bytes, or contains characters that cannot be printed.",
        "Send the type as the features of the config name it, such as `purchase`.",
        rejected_event('Event("visitor-9", "")'),
    ),
    EventReason.EVENT_TIME_INVALID: ErrorEntry(
        "The time of an event is missing, before 1970 or out of range.",
        "Send the time at which it happened, in UTC.",
        rejected_event(
            'Event("visitor-9", "view", datetime(1969, 7, 20, tzinfo=UTC))', "from datetime import UTC, datetime\n\n"
        ),
    ),
    EventReason.EVENT_TOO_LATE: ErrorEntry(
        "The event happened longer ago than the setting `max_lateness_hours` allows.",
        "Load older events with `tidemark load`, or raise `max_lateness_hours`: the server then remembers the ids of "
        "events for longer.",
        rejected_event('Event("visitor-9", "view", datetime.now(UTC) - timedelta(days=100))', DAYS),
    ),
    EventReason.EVENT_IN_FUTURE: ErrorEntry(
        "The time of the event is further ahead of the server's clock than the setting `max_future_s` allows.",
        "Check the clock and the time zone of the sender. Local times that are sent as UTC are the usual cause.",
        rejected_event('Event("visitor-9", "view", datetime.now(UTC) + timedelta(days=1))', DAYS),
    ),
    EventReason.AMOUNT_INVALID: ErrorEntry(
        "The amount of an event is not finite or beyond 10¹².",
        "Send the money in the currency of the shop's data, and leave the field out if there is none.",
        rejected_event('Event("visitor-9", "purchase", amount=float("nan"))'),
    ),
    EventReason.DURATION_INVALID: ErrorEntry(
        "The duration of an event is negative or out of range.",
        "Send how long the event took, and leave the field out if it is not known.",
        rejected_event('Event("visitor-9", "view", duration_s=-1.0)'),
    ),
    EventReason.ITEM_ID_INVALID: ErrorEntry(
        "The item id of an event is longer than 256 bytes or contains characters that cannot be printed.",
        "Send the id of the item as the shop's data has it.",
        rejected_event('Event("visitor-9", "view", item_id="shoe\\n")'),
    ),
    EventReason.CHANNEL_INVALID: ErrorEntry(
        "The channel of an event is longer than 64 bytes or contains characters that cannot be printed.",
        "Send a short name, such as `web`, `app` or `store`.",
        rejected_event('Event("visitor-9", "view", channel="web\\n")'),
    ),
    EventReason.EVENT_ID_INVALID: ErrorEntry(
        "The id of an event is longer than 256 bytes or contains characters that cannot be printed.",
        "Send an id of the shop, such as the number of the order.",
        rejected_event('Event("visitor-9", "view", event_id="order\\n")'),
    ),
    EventReason.TEXT_TOO_LONG: ErrorEntry(
        "The text of an event has more than 10,000 characters.",
        "Shorten it.",
        rejected_event('Event("visitor-9", "feedback", text="x" * 10_001)'),
    ),
    EventReason.EVENT_CAPPED: ErrorEntry(
        "The customer has more events in a time span than the settings `max_events_per_type_hour`, "
        "`max_events_per_hour` or `max_events_per_customer` allow. The event is archived, but it does not change the "
        "customer's features.",
        "Look for bots, test accounts and ids that many visitors share. Raise the setting if customers really are that "
        "busy.",
        f"{TWICE}\n    print(recorded.guarded[0].reason)",
        options=("--max-events-per-type-hour", "1"),
    ),
    EventReason.AMOUNT_CLIPPED: ErrorEntry(
        "The amount is beyond the range of the training data. The event counts with the nearest bound.",
        "Check the unit and the currency. If the amount is right there is nothing to do; the next fit learns a new "
        "bound.",
        rejected_event('Event("visitor-9", "purchase", amount=1e9)', detail="guarded"),
    ),
    EventReason.DURATION_CLIPPED: ErrorEntry(
        "The duration is beyond the range of the training data. The event counts with the nearest bound.",
        "Check the unit: durations are in seconds. If the duration is right there is nothing to do.",
        rejected_event('Event("visitor-9", "view", duration_s=1e9)', detail="guarded"),
        requires="a model with a feature that adds up the durations of views",
    ),
    EventReason.EVENT_TYPE_SIMILAR: ErrorEntry(
        "No feature of the models in use reads the type of the event, but one reads a type with a similar name, which "
        "the message says. The event is archived, but it changes no score.",
        "Send the type as the features of the config name it: upper and lower case count. There is nothing to do if it "
        "is something else. `unread` in the response counts all events whose type no feature reads.",
        rejected_event('Event("visitor-9", "Purchase")', detail="guarded"),
    ),
}
"""By reason."""
