"""What a training run asks of the process that it runs in: one torch thread, and Ctrl-C at a good moment."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import torch


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """One torch thread inside, the caller's number of them again after.

    The products of this policy are too small to share: threads that wait for each other made an update many times
    slower on a busy machine, and the number of threads can change the order of a sum, and so a result's last bit. The
    simulator, which takes other threads, keeps the other cores busy.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that it never falls into the middle of an update."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # Python delivers Ctrl-C to the main thread only
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
