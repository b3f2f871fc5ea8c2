"""``python -m tidemark.load``: see ``tidemark.load.cli``.

Sending processes import this module once more, before their own: what it imports, each of them would wait for.
"""

if __name__ == "__main__":
    from feature_store.cli import run_cli
    from tidemark.load.cli import load

    run_cli(load)
