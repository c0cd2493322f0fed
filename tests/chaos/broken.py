"""The program put together with one of its safeguards taken out, to show that the checker sees it.

It must not be imported by anything: it is started in a process of its own, as the orchestrator
(`broken.py PART stage1 STUDY ...`) or, for the tree kill, as its runner (`broken.py runner SPEC`).
Nothing in the program itself can be switched off like this.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweeper import cli
from sweeper.errors import StudyBusy
from sweeper.runner.attempt import Attempt
from sweeper.spec import AttemptSpec
from sweeper.storage.base import Lease


class WrapperOnly(Attempt):
    """A runner that ends what it started itself, and nothing that this started in turn."""

    def end(self) -> None:
        if self._trainer is not None and self._status is None:
            os.kill(self._trainer.pid, signal.SIGKILL)
            self._until(lambda: self._status is not None, 5.0)


def without_tree_kill() -> None:
    from sweeper.executors import local

    local.runner_command = lambda spec: [sys.executable, "-P", __file__, "runner", str(spec)]
    local.end_orphans = lambda *identities: None


def ruthless(kind: type) -> type:
    """A loop that puts its attempts in the place of whatever is there: a second fence, taken down."""

    class Ruthless(kind):
        def _begin(self, trial: Any, attempt: int, prepared: Any, slot: Any) -> Path:
            shutil.rmtree(prepared.paths.folder, ignore_errors=True)
            return super()._begin(trial, attempt, prepared, slot)

    return Ruthless


def without_replay() -> None:
    from sweeper.commands import stages

    class Forgetful(ruthless(stages.StageRun)):
        """Knows nothing of what an earlier orchestrator began."""

        def _reconcile(self) -> None:
            pass

    stages.StageRun = Forgetful


def without_lease() -> None:
    from sweeper.commands import stages
    from sweeper.storage import sql

    class Unfenced(sql.SqlStore):
        """Everybody gets the lease, and whoever writes is let in."""

        def held(self, study: str) -> Lease | None:
            return None

        def acquire(self, study: str, holder: str, *, ttl_s: float) -> Lease:
            for _ in range(20):  # the other may get it again in between
                with contextlib.suppress(StudyBusy):
                    if current := super().held(study):
                        super().release(current)
                    return super().acquire(study, holder, ttl_s=ttl_s)
            return super().acquire(study, holder, ttl_s=ttl_s)

        def renew(self, lease: Lease, *, ttl_s: float) -> None:
            pass

        def release(self, lease: Lease) -> None:
            pass

        def begin(self, study: str, trial: Any, attempt: int, *, lease: Lease, **more: Any) -> None:
            begin = super().begin
            self._let_in(study, lease, lambda h: begin(study, trial, attempt, lease=h, **more))

        def record(
            self, study: str, trial_id: str, facts: Any, *, lease: Lease | None = None
        ) -> bool:
            record = super().record
            return self._let_in(study, lease, lambda h: record(study, trial_id, facts, lease=h))

        def _let_in(self, study: str, lease: Lease | None, write: Callable[[Any], Any]) -> Any:
            """Under the lease of whoever has it; again where that changes hands meanwhile."""
            for _ in range(20):
                with contextlib.suppress(StudyBusy):
                    return write(super().held(study) or lease)
            return write(super().held(study) or lease)

    sql.SqlStore = Unfenced
    stages.StageRun = ruthless(stages.StageRun)


def whole() -> None:
    """Nothing is taken out: the same tests must then find nothing."""


PARTS = {
    "tree-kill": without_tree_kill,
    "replay": without_replay,
    "lease": without_lease,
    "nothing": whole,
}


def main() -> int:
    part, *rest = sys.argv[1:]
    if part == "runner":
        WrapperOnly(AttemptSpec.read(Path(rest[0]))).run()
        return 0
    PARTS[part]()
    return cli.main(rest)


if __name__ == "__main__":
    sys.exit(main())
