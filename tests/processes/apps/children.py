"""multiprocessing: `children.py METHOD HOW`; HOW is join, pool or terminate."""

from __future__ import annotations

import multiprocessing
import sys

import giving


def main(method: str, how: str) -> None:
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["giving"])
    giving.give(10)
    if how == "join":
        children = [context.Process(target=giving.give, args=(20,)) for _ in range(3)]
        for child in children:
            child.start()
        giving.give(10)
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0, 0, 0]
        return
    pool = context.Pool(3)
    pool.map(giving.give, [5] * 12, chunksize=1)
    giving.give(10)
    if how == "terminate":
        pool.terminate()
    else:
        pool.close()
    pool.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
