"""``python -m tidemark.load``: see ``tidemark.load.cli``.

Each sending process imports this module again before it starts, so it imports nothing else at the top.
"""

if __name__ == "__main__":
    from tidemark.load.cli import main

    main()
