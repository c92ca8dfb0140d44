"""Methods that behave and misbehave in known ways; found by reference as ``methods_for_runner.py:NAME``."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import tdabench

MB = 2**20

# Stands for a library that needs much memory while it loads, and frees it.
_loading = np.ones(400 * MB, dtype=np.uint8)
del _loading


def zeros(task: tdabench.TaskView) -> torch.Tensor:
    return torch.zeros(task.n_queries, task.n_train)


@dataclass(frozen=True)
class Good(tdabench.MemberMethod):
    """Scores that depend on an option; ``skew`` makes them worse."""

    skew: float = tdabench.option(0.0, "share of noise", low=0, high=1, tune=(1.0, 0.0, 0.5))

    def attribute(self, member: tdabench.Member, state: None) -> torch.Tensor:
        task = member.task
        gradients = -member.gradients(task.queries, of="target").dot(member.gradients(task.training, of="loss"))
        noise = torch.randn(gradients.shape, generator=tdabench.generator("noise")) * gradients.std()
        return (1 - self.skew) * gradients + self.skew * noise


@dataclass(frozen=True)
class Allocates(tdabench.MemberMethod):
    """256 MB in fit, touched and forgotten."""

    def fit(self, member: tdabench.Member) -> None:
        torch.ones(256 * MB // 4).sum()

    def attribute(self, member: tdabench.Member, state: None) -> torch.Tensor:
        return zeros(member.task)


@dataclass(frozen=True)
class Slow(tdabench.MemberMethod):
    """Known times per member."""

    def fit(self, member: tdabench.Member) -> None:
        time.sleep(0.2)

    def attribute(self, member: tdabench.Member, state: None) -> torch.Tensor:
        time.sleep(0.1)
        return zeros(member.task)


@dataclass(frozen=True)
class Imports(tdabench.MemberMethod):
    """Says how much torch imports at the first gradient and the first step of an optimizer."""

    def fit(self, member: tdabench.Member) -> None:
        before = set(sys.modules)
        p = torch.nn.Parameter(torch.ones(2))
        p.grad = torch.func.grad(lambda x: x.sin().sum())(torch.ones(2))
        torch.optim.SGD([p], lr=1.0).step()
        print("modules imported:", len(set(sys.modules) - before))

    def attribute(self, member: tdabench.Member, state: None) -> torch.Tensor:
        return zeros(member.task)


@dataclass(frozen=True)
class TrainsInside(tdabench.Method):
    """A method on the whole task, which trains in both of its phases."""

    def fit(self, task: tdabench.TaskView) -> dict[str, torch.Tensor]:
        time.sleep(0.1)
        return task.train(0)

    def attribute(self, task: tdabench.TaskView, state: dict[str, torch.Tensor]) -> torch.Tensor:
        task.train(1)
        time.sleep(0.1)
        return zeros(task)


@dataclass(frozen=True)
class Fails(tdabench.MemberMethod):
    """Goes wrong in the way it is told to."""

    how: str = tdabench.option("raise", "which way")

    def supports(self, task: tdabench.TaskView) -> str | None:
        answers = {"decline": "it never works\rand\nnever will", "answer true": True, "answer nothing": ""}
        return answers.get(self.how)

    def attribute(self, member: tdabench.Member, state: None) -> torch.Tensor:
        print(f"going to {self.how}")
        task = member.task
        return globals()[f"fail_by_{self.how}"](task)


def fail_by_raise(task: tdabench.TaskView) -> None:
    raise ZeroDivisionError("a line\nand another")


def fail_by_silence(task: tdabench.TaskView) -> None:
    raise tdabench.Declined


def fail_by_blank(task: tdabench.TaskView) -> None:
    raise tdabench.Declined(" ")


def fail_by_saying_nothing(task: tdabench.TaskView) -> None:
    raise tdabench.UsageError("\n")


def fail_by_hang(task: tdabench.TaskView) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    pids = Path(os.environ["TDABENCH_TEST_PIDS"])
    pids.with_suffix(".aside").write_text(f"{os.getpid()} {child.pid}")
    pids.with_suffix(".aside").rename(pids)
    time.sleep(300)


def fail_by_lingering(task: tdabench.TaskView) -> torch.Tensor:
    """Leave a thread behind, for which the interpreter waits before it ends."""
    threading.Thread(target=time.sleep, args=(300,)).start()
    return zeros(task)


def fail_by_nan(task: tdabench.TaskView) -> torch.Tensor:
    scores = zeros(task)
    scores[3, 5] = float("nan")
    return scores


def fail_by_shape(task: tdabench.TaskView) -> torch.Tensor:
    return zeros(task)[:, 1:]


def fail_by_transpose(task: tdabench.TaskView) -> torch.Tensor:
    return zeros(task).T


def fail_by_type(task: tdabench.TaskView) -> np.ndarray:
    return np.zeros((task.n_queries, task.n_train))


def fail_by_integers(task: tdabench.TaskView) -> torch.Tensor:
    return zeros(task).long()


def fail_by_surrogate(task: tdabench.TaskView) -> None:
    name = os.fsdecode(b"caf\xe9")  # which is not UTF-8
    raise FileNotFoundError(f"no file {name}")


def fail_by_writing(task: tdabench.TaskView) -> torch.Tensor:
    task.training.inputs.sub_(0.5)
    return zeros(task)


def fail_by_junk(task: tdabench.TaskView) -> None:
    """Write to whatever is open, as a library with a stale descriptor may, and go to another folder."""
    os.chdir(tempfile.gettempdir())
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(number, b"\x00 no event\n1\n{}\n")
    raise ZeroDivisionError("after all that")


def fail_by_exit(task: tdabench.TaskView) -> None:
    os._exit(3)


def fail_by_kill(task: tdabench.TaskView) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_by_memory(task: tdabench.TaskView) -> None:
    raise MemoryError


def fail_by_allocation(task: tdabench.TaskView) -> torch.Tensor:
    return torch.empty(2**50, dtype=torch.uint8)


@dataclass(frozen=True)
class Raises(tdabench.MemberMethod):
    """Fails without being told to."""

    def attribute(self, member: tdabench.Member, state: None) -> torch.Tensor:
        raise ValueError("broken")
