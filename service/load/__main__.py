"""``python -m service.load``: see ``service.load.command``.

Sending processes import this module once more, before their own: what it imports, each of them would wait for.
"""

if __name__ == "__main__":
    from feature_store.cli import run_cli
    from service.load.command import load

    run_cli(load)
