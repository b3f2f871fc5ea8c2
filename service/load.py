"""``python -m service.load``: the former name of ``python -m tidemark.load``.

Sending processes import this module once more, before their own: each of them would wait for what it imports.
"""

if __name__ == "__main__":
    from feature_store.cli import run_cli
    from tidemark.load.cli import load

    run_cli(load)
