"""``python -m tidemark.load``: an open-loop load test of a server, with a report.

::

    plan ─► processes, each: arrival times ─► calls on connections ─► rows (when, how long, how late, what came)
                                                                        │
    report (JSON, HTML) ◄── result ◄── tally: histograms, counts ◄──────┘      search: the same, step by step
"""
