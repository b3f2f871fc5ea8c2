"""``python -m tidemark.load``: an open-loop load test of a server, with a report.

::

    plan ─► processes, each: arrival times ─► calls on connections ─► records (when, latency, lag, outcome)
                                                                          │
    report (JSON, HTML) ◄── result ◄── tally: histograms, counts ◄────────┘     rate search: the same, step by step
"""
