"""``python -m service.load``: see ``service.load_test``.

Each sending process imports this module again before it starts, so it imports nothing else at the top.
"""

if __name__ == "__main__":
    from feature_store.cli import run_cli
    from service.load_test import load_test

    run_cli(load_test, "tidemark load-test")
