"""The command ``seg``, also as ``python -m seg``: ``seg train model=unetpp`` runs ``python -m seg.train``."""

from seg.cli.dispatch import main

if __name__ == "__main__":
    main()
