"""Forks: no child hangs in SQLite, holds a lock of its parent, or writes its parent's file."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from filling import OPEN
from hindsight.server import eventually

from hindsight_exec.outbox import spool
from hindsight_exec.outbox.store import Outbox

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

without_hooks = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="forks in C, through CPython's ctypes"
)

# `fork(do)` runs `do` in a child and prints what that prints; `ctypes_fork` is as uWSGI forks:
# no hook of Python runs.
FORKS = """
import ctypes, traceback, warnings
from contextlib import suppress
from hindsight_exec.errors import OutboxUnavailable
from hindsight_exec.outbox import forks, spool
warnings.simplefilter("ignore", DeprecationWarning)
faulthandler = __import__("faulthandler")

def ctypes_fork():
    return ctypes.PyDLL(None).fork()

def fork(do, how=os.fork):
    child = how()
    if not child:
        faulthandler.dump_traceback_later(50, exit=True)
        status = 1
        try:
            do()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert not status, f"the child ended with {status}"

folder = Path(sys.argv[1]).parent / "state"
"""


def program(text: str) -> str:
    return OPEN + FORKS + textwrap.dedent(text)


# A thread that is inside SQLite: inside a function that SQLite calls.
INSIDE = """
    inside, leave = threading.Event(), threading.Event()

    def stay():
        inside.set()
        leave.wait()
        inside.clear()
        return 1

    def step():
        with outbox._db.access, outbox._db.step:
            outbox._db.connection.create_function("stay", 0, stay)
            outbox._db.first("SELECT stay()")

    thread = threading.Thread(target=step)
    thread.start()
    inside.wait()
"""


def test_a_fork_waits_for_threads_inside_sqlite(path: Path, run: Any) -> None:
    """A thread that is inside SQLite leaves it before the fork, so the child can use SQLite."""
    ended = run(
        program(INSIDE)
        + textwrap.dedent("""
        def free_it_when_the_fork_waits():
            while forks.this_process().lock.acquire(blocking=False):
                forks.this_process().lock.release()
                time.sleep(0.01)
            leave.set()

        def child():
            assert not inside.is_set()
            Outbox(folder.parent / "child.db").put(source(), turn(1))

        threading.Thread(target=free_it_when_the_fork_waits).start()
        fork(child)
        thread.join()
        outbox.put(source(), turn(2))
        fork(lambda: Outbox(folder.parent / "second.db").put(source(), turn(3)))
        """),
        str(path),
    )
    assert (ended.status, ended.err) == (0, "")
    for name in ("o.db", "child.db", "second.db"):
        with closing(Outbox(path.with_name(name))) as outbox:
            assert outbox.summary().held == 1


def test_a_fork_does_not_wait_for_ever(path: Path, run: Any) -> None:
    """If a thread stays inside SQLite, the fork goes on; the child refuses to use SQLite."""
    ended = run(
        program("forks.FORK_WAIT = 0.2\n" + textwrap.dedent(INSIDE))
        + textwrap.dedent("""
        from hindsight_exec import RetainWriter, Settings

        def child():
            for use in (
                lambda: Outbox(None),
                lambda: Outbox(folder.parent / "child.db"),
                lambda: RetainWriter(
                    Settings(api_url="http://127.0.0.1:9", bank_id="b"), state=folder
                ).put([{"role": "user", "content": "x"}], session="s"),
            ):
                try:
                    use()
                except OutboxUnavailable as error:
                    assert "was forked while another thread was inside SQLite" in str(error)
                else:
                    raise AssertionError("it used SQLite")

        fork(child)
        leave.set()
        thread.join()
        outbox.put(source(), turn(2))
        fork(lambda: Outbox(folder.parent / "child.db").put(source(), turn(1)))
        """),
        str(path),
    )
    assert (ended.status, ended.out) == (0, "")
    with closing(Outbox(path)) as outbox:
        assert outbox.summary().held == 1


# Forks on a second thread exactly between `os.open` of a file and what follows it, or between
# what precedes `os.close` and that.
IN_BETWEEN = """
    import os as real
    forked, children, threads = threading.Event(), [], []

    def fork_meanwhile():
        child = os.fork()
        if not child:
            signal.pause()
        children.append(child)
        forked.set()

    class Os:
        def __getattr__(self, name):
            return getattr(real, name)

        def open(self, path, *arguments):
            descriptor = real.open(path, *arguments)
            if str(path).endswith(ENDING):
                self.fork()
            return descriptor

        def close(self, descriptor):
            if CLOSING and str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith(ENDING):
                self.fork()
            real.close(descriptor)

        def fork(self):
            forked.clear()
            threads.append(threading.Thread(target=fork_meanwhile))
            threads[-1].start()
            forked.wait(0.3)  # it does not come if the fork waits
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("ending", [".folder.lock", ".lock"])
@pytest.mark.parametrize("closing_it", [False, True])
def test_a_fork_beside_a_lock_file(path: Path, start: Any, ending: str, closing_it: bool) -> None:
    """No child keeps a lock that is being opened or closed at the fork."""
    folder = path.with_name("state")
    text = program(IN_BETWEEN) + textwrap.dedent(f"""
        import signal
        ENDING, CLOSING = {ending!r}, {closing_it}
        spool.create(folder).release()
        patched = Os()
        if CLOSING:
            claim = spool.create(folder)
            patched.open = real.open
            forks.os = patched
            claim.release()
        else:
            patched.close = real.close
            forks.os = patched
            claim = spool.create(folder)
        for thread in threads:
            thread.join()
        say("children", *children)
        say("parent")
        signal.pause()
        """)
    parent = start(text, str(path))
    parent.wait_for("parent")
    parent.send(signal.SIGKILL)
    parent.process.wait()
    children = next(one for one in parent._read if one.startswith("children ")).split()[1:]
    try:
        assert children
        for left in spool.files(folder):
            # The last child may not have closed them yet.
            eventually(lambda left=left: spool.adopt(left)).release(remove=True)
    finally:
        for child in children:
            os.kill(int(child), signal.SIGKILL)


@without_hooks
@pytest.mark.parametrize("hooks", ["none", "of the child"])
def test_a_child_starts_afresh_without_hooks(path: Path, start: Any, hooks: str) -> None:
    """Where no hook runs before a fork, the pid tells: the child leaves connection and locks."""
    parent = start(
        program(
            """
        import signal
        from hindsight_exec.executor import process
        HOOKS = """
            + repr(hooks)
            + """
        claim = spool.create(folder)
        own = Outbox(claim.path)
        own.put(source(), turn(1))
        reader, writer = os.pipe()

        def child():
            for use in (own.summary, lambda: own.put(source(), turn(2))):
                try:
                    use()
                except OutboxUnavailable as error:
                    assert "open another" in str(error), error
                else:
                    raise AssertionError("the child used its parent's connection")
            own.close()
            claim.release(remove=True)
            theirs = spool.create(folder)
            Outbox(theirs.path).put(source(), turn(3))
            os.write(writer, str(os.getpid()).encode())
            signal.pause()

        if not ctypes_fork():
            try:
                if HOOKS == "of the child":  # uWSGI's py-call-osafterfork
                    process.renew_if_forked()
                child()
            finally:
                os._exit(1)
        say("child", os.read(reader, 100).decode())
        own.put(source(), turn(4))
        say("forked")
        signal.pause()
        """
        ),
        str(path),
    )
    parent.wait_for("forked")
    folder = path.with_name("state")
    first, second = spool.files(folder)
    parent.send(signal.SIGKILL)
    parent.process.wait()
    child = int(next(one for one in parent._read if one.startswith("child ")).split()[1])
    try:
        assert spool.is_live(second)
        claim = spool.adopt(first)
        assert claim is not None
        with closing(Outbox(first)) as outbox:
            assert outbox.summary().held == 2
        claim.release()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_fork_inside_a_transaction(path: Path, run: Any) -> None:
    """A signal handler or a finalizer may fork between two statements of its own thread."""
    ended = run(
        program("""
        outbox.put(source(), turn(1))
        def child():
            with suppress(OutboxUnavailable):
                outbox._db.execute("COMMIT")
                raise AssertionError("the child committed for its parent")
            Outbox(folder.parent / "child.db").put(source(), turn(1))

        with outbox._db.access, outbox._db.step, outbox._db.transaction():
            outbox._db.execute("DELETE FROM turns")
            fork(child)
            outbox._db.execute("ROLLBACK")
            outbox._db.execute("BEGIN")
        outbox.put(source(), turn(2))
        """),
        str(path),
    )
    assert (ended.status, ended.err) == (0, "")
    with closing(Outbox(path)) as outbox:
        assert outbox.summary().held == 2


def test_two_threads_fork_at_once(path: Path, run: Any) -> None:
    """Forks of several threads wait for each other and all succeed."""
    ended = run(
        program("""
        def some():
            for _ in range(30):
                fork(lambda: Outbox(None).put(source(), turn(1)))

        threads = [threading.Thread(target=some) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(200):
            outbox.put(source(), turn(number))
        for thread in threads:
            thread.join()
        """),
        str(path),
    )
    assert (ended.status, ended.err) == (0, "")


def test_a_finalizer_inside_a_step(path: Path, run: Any) -> None:
    """A call that interrupts a step of its own thread is an error that says so, not a deadlock."""
    ended = run(
        program("""
        def finalizer():
            try:
                outbox.put(source(), turn(9))
            except OutboxUnavailable as error:
                print("refused" if "this very thread" in str(error) else error)

        with outbox._db.access, outbox._db.step:
            finalizer()
        outbox.put(source(), turn(1))
        print(outbox.summary().held)
        """),
        str(path),
    )
    assert (ended.status, ended.out, ended.err) == (0, "refused\n1\n", "")


def test_what_threads_were_changing(path: Path, run: Any) -> None:
    """A child uses no dict that threads of its parent were changing.

    Where there is no GIL, such a dict may stay locked in the child (CPython 3.13.5).
    """
    ended = run(
        program("""
        done = threading.Event()

        def change():
            while not done.is_set():
                for number in range(2000):
                    source(str(number))

        threads = [threading.Thread(target=change) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(100):
                fork(lambda: source("child"))
        finally:
            done.set()
        """),
        str(path),
    )
    assert (ended.status, ended.err) == (0, "")


# Three threads that give, look and adopt, and one that forks; the children do the same.
SOAK = """
    rounds = int(sys.argv[2])
    sys.setswitchinterval(1e-5)
    done = threading.Event()

    def give():
        number = 0
        while not done.is_set():
            number += 1
            outbox.put(source(str(number % 5)), turn(number))
            if number % 50 == 49:
                outbox.purge()

    def recall():
        while not done.is_set():
            outbox.summary()
            outbox.entries(10)

    def adopt():
        while not done.is_set():
            claim = spool.create(folder)
            with Closing(Outbox(claim.path)) as left:
                left.put(source(), turn(1))
            claim.release()
            claim = spool.adopt(claim.path)
            if claim is not None:  # a process that is about to be forked may hold it
                claim.release(remove=True)

    def child():
        claim = spool.create(folder)
        with Closing(Outbox(claim.path)) as mine:
            mine.put(source(), turn(1))
        claim.release(remove=True)

    from contextlib import closing as Closing
    threads = [threading.Thread(target=one) for one in (give, recall, adopt)]
    for thread in threads:
        thread.start()
    try:
        for number in range(rounds):
            fork(child)
    finally:
        done.set()
    for thread in threads:
        thread.join()
    print(rounds)
"""


# In twenty processes: what is put stays, and a fork waits for who reads it all.
@pytest.mark.soak
@pytest.mark.timeout(1300)
@pytest.mark.parametrize("_", range(20))
def test_forks_beside_busy_threads(path: Path, start: Any, _: int) -> None:
    """No child of 20 000 hangs, beside three threads that give turns, recall and adopt."""
    ended = start(program(SOAK), str(path), "1000").end(1200)
    assert (ended.status, ended.out, ended.err) == (0, "1000\n", "")


def test_some_forks_beside_busy_threads(path: Path, start: Any) -> None:
    """The same, a hundred times."""
    ended = start(program(SOAK), str(path), "100").end()
    assert (ended.status, ended.out, ended.err) == (0, "100\n", "")
