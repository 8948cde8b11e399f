"""Workers: processes of the same command that share its work piece by piece, with a lock for each piece.

The operating system releases a lock when its process ends, so the other workers take over the piece of a killed one.
"""

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from seg.display.console import is_rank_zero
from seg.errors import UserError
from seg.runs.folder import hold_lock

log = logging.getLogger("seg")
Piece = TypeVar("Piece")
POLL_SECONDS = 0.5


def refuse_ranks(who: str) -> None:
    """Raise UserError if this process is a rank of several that torchrun or SLURM started together."""
    if not is_rank_zero():
        raise UserError(
            f"{who}: started as one of several ranks; its workers need none: start each by itself, on SLURM as a job "
            "array with one task each"
        )


def share_pieces(
    pieces: Iterable[Piece],
    lock_file: Callable[[Piece], Path],
    below: Path,
    is_done: Callable[[Piece], bool],
    work: Callable[[Piece], None],
    what: str,
) -> None:
    """Do the pieces that no other worker has locked, then wait for the others' and do those that are left.

    Args:
        pieces: of the work.
        lock_file: returns the lock of a piece; removed once the piece is done.
        below: folder that the user named.
        is_done: returns True if any worker has done the piece; called under its lock.
        work: does a piece, under its lock; one that is not done afterwards is not tried again.
        what: plural of a piece, for the message.
    """
    left, told = list(pieces), False
    while left:
        locked = []
        for piece in left:
            file = lock_file(piece)
            with hold_lock(file, below) as held:
                if not held:
                    locked.append(piece)
                    continue
                if not is_done(piece):
                    work(piece)
                if is_done(piece):
                    file.unlink(missing_ok=True)
        if len(locked) == len(left):
            if not told:
                log.info(f"other workers have {len(left)} of the {what}; waiting for them")
            told = True
            time.sleep(POLL_SECONDS)
        left = locked
