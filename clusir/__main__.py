"""``python -m clusir``: the same as ``clusir``."""

from clusir.cli.main import main

if __name__ == "__main__":
    main(prog_name="python -m clusir")
