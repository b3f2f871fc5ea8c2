"""What each check of the audit looks for, and what to do about its findings. The documentation is generated from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Check(NamedTuple):
    """A check: what it finds, why that matters for the models, and what to do."""

    problem: str
    reason: str
    fix: str


CHECKS: Final[Mapping[str, Check]] = {
    "history": Check(
        "The history is too short for the cut-offs that the config asks for.",
        "A model needs training, calibration and test cut-offs, each with a full horizon after it.",
        "Load a longer history, or choose shorter horizons or fewer cut-offs in [evaluation].",
    ),
    "config": Check(
        "The config names an event type or a column that the source does not have, or a column of the wrong type.",
        "Labels and features would be empty.",
        "Name one that the source has; the finding lists them.",
    ),
    "completeness": Check(
        "Values are missing, rows are left out because a required column is empty, or customers have no attributes.",
        "Missing values are learnt as they are. If they got lost on the way, the models learn about the loss.",
        "Find out why they are missing. There is nothing to do if the shop does not know them.",
    ),
    "duplicates": Check(
        "Events, event ids or customer ids occur more than once.",
        "Events that are read twice count twice in the features, and twice in spend.",
        "Select each event once, and give each event its own event_id. In a snapshot, select one row per customer.",
    ),
    "customers": Check(
        "There are too few customers.",
        "With few customers the choice of features and models is left to chance.",
        "Add customers.",
    ),
    "ids": Check(
        "Ids are read as floating-point numbers, or were shortened by a spreadsheet, such as 1.20E+11.",
        "They are no longer the ids that the shop sends, and several customers may have become one.",
        "Read the column as text: `read_csv(…, types = {'customer_id': 'VARCHAR'})`. Export shortened ids again.",
    ),
    "heavy customer": Check(
        "A customer id has far more events than any customer could have.",
        "It is often a placeholder for guests, a test account or a till, and it distorts sums.",
        "Leave the id out in SQL, unless it is a real customer.",
    ),
    "one purchase": Check(
        "Most customers have a single purchase.",
        "There is no interval between purchases to learn from, often because guests get a new id for each order.",
        "Check how the shop identifies customers.",
    ),
    "out of range": Check(
        "Events are older than 1990.",
        "Cut-offs are placed between the first and the last event.",
        "Check how times are converted (seconds or milliseconds, missing dates), or leave the events out in SQL.",
    ),
    "lone events": Check(
        "A few events are far before or far after all others.",
        "Cut-offs are placed between the first and the last event, and most of them would see no events.",
        "Leave them out in SQL if their times are wrong.",
    ),
    "dates only": Check(
        "Events are at midnight: the source has dates without a time of day, for all events or for some.",
        "Half-lives below one day have no meaning, and live events, which have a time, look different.",
        "Select the time of day as well, if the shop has it.",
    ),
    "gap": Check(
        "Days within the history have no events.",
        "To the models it looks as if no customer came.",
        "Load the missing events, unless the shop was closed.",
    ),
    "falling volume": Check(
        "The last days have far fewer events than usual.",
        "An unfinished load looks like customers who leave.",
        "Load these days again, or leave them out in SQL.",
    ),
    "event types": Check(
        "There are very many event types.",
        "Each type becomes several candidate features.",
        "Select the kind of event as event_type, and the thing that it was about as item_id.",
    ),
    "unread type": Check(
        "Events have types that no feature reads, or whose names are nearly those that the config names.",
        "They change no score. `Purchase` beside `purchase` is often one thing from two senders.",
        "Give the same thing one name in SQL and where events are sent. Add features of the other types, if they may "
        "matter.",
    ),
    "late type": Check(
        "Events of a type begin only in the second half of the history.",
        "The models would take the absence of the type for behaviour of the customers.",
        "Load the past of the type, or leave it out of the features.",
    ),
    "stopped type": Check(
        "Events of a type end while other types continue.",
        "No customer will have such events from now on, so features of the type mislead.",
        "Load the rest, or leave the type out of the features.",
    ),
    "negative values": Check(
        "Amounts or durations are negative.",
        "Negative amounts reduce spend. Negative durations are errors.",
        "There is nothing to do if the amounts are returns. Check how durations are computed.",
    ),
    "outliers": Check(
        "A few values are far above all others of their type.",
        "Training clips them in features, but they still dominate spend.",
        "Check units, currencies and test orders.",
    ),
    "constant column": Check(
        "A column has the same value in every row.",
        "Nothing can be learnt from it.",
        "Leave it out.",
    ),
    "column type": Check(
        "A column is neither a number nor text.",
        "It is not used as a feature.",
        "Convert it in SQL, for example a date to a number of days.",
    ),
    "id column": Check(
        "Hardly any value of a column occurs twice: it is an id, a name or free text.",
        "It identifies customers, and nothing learnt from it applies to new ones.",
        "Leave it out.",
    ),
    "many values": Check(
        "A text column has more distinct values than become categories.",
        "All other values count as one.",
        "Group the values in SQL, for example regions instead of towns, or leave the column out.",
    ),
    "label": Check(
        "The label of a snapshot is not 0 or 1 in every row that has one, or one of its values is too rare.",
        "There is nothing to tell the two kinds of customers apart by.",
        "Define the label in SQL, name another column, or add customers.",
    ),
    "no label": Check(
        "Rows of a snapshot have no label.",
        "They are scored, and not used for training.",
        "There is nothing to do if these are the customers to score.",
    ),
    "attributes without times": Check(
        "The attributes beside events have no valid_from, so today's values are used at every past cut-off.",
        "An attribute that changed after a cut-off may tell what happened then, and quality on past data is too "
        "optimistic.",
        "Select the time from which each row is valid as valid_from, with one row per change, or keep only attributes "
        "that never change.",
    ),
    "leak": Check(
        "A column of a snapshot, or an attribute beside events, predicts the label almost perfectly. With events, the "
        "labels are those of the newest training cut-off.",
        "It was probably written after the outcome, so the model would fail on customers whose outcome is open.",
        "Unless it was known before the outcome, add it to snapshot.leave_out. With events, do not select it, or "
        "select its valid_from.",
    ),
    "treatment probability": Check(
        "The stated probabilities of treatment do not fit the customers who were treated.",
        "Every estimate of the value of a policy is then biased.",
        "Give the probability that was used for each customer, and check that no rows were lost in one group.",
    ),
}
"""The checks by the name that findings have."""
