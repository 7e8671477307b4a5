"""``python -m benchmarks [--label LABEL] [name …]``: run them, write and show the results."""

from __future__ import annotations

import argparse
from importlib import import_module

NAMES = (
    "submit",
    "durable",
    "presence",
    "footprint",
    "cost",
    "exits",
    "delivery",
    "gateway",
    "extraction",
    "cuts",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; all without"
    )
    parser.add_argument("--rounds", type=int, help="how often each contestant runs")
    parser.add_argument("--label", default="", help="added to the names of the result files")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    for name in arguments.names or NAMES:
        options = {"rounds": arguments.rounds} if arguments.rounds else {}
        results = import_module(f".{name}", __package__).run(**options)
        for result in results if isinstance(results, list) else [results]:
            result.write(arguments.label)
            result.show()


if __name__ == "__main__":
    main()
