"""Kill a training, resume it, and compare it with one that was left alone.

Rules:

1. The trainings are processes of their own, started by the commands that a person types, and
   SIGKILL is all that the killed one is told.
2. When to kill is decided by the log, read from outside, and only where there is something to lose.
3. The exit code is 0 only if the run was really killed in the middle of unsaved work and
   everything is equal afterwards.
4. All is written into a fresh folder, which is removed at the end unless `--keep` is given.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from demo_compare import aspects
from demo_watch import Watch

import kitchen
from kitchen.recipes.char_lm import CharLMConfig, read_corpus

SUMMARY = "Kill a training with SIGKILL, resume it, and compare it with one that was left alone."
WORKFLOW = "kitchen.recipes.char_lm:char_lm"
KILLED, ALONE = "killed", "unkilled"
CONFIG = CharLMConfig()
UPDATES = CONFIG.epochs * CONFIG.batches
LOOK_SECONDS = 0.02
PATIENCE_SECONDS = 240
WIDTH = 64


class Trouble(Exception):
    """The demonstration cannot go on; the message says why."""


# --- what to kill, and when -------------------------------------------------------------------


class Kill(NamedTuple):
    """A moment, and what is so special about it."""

    told: str
    is_time: Callable[[Watch], bool]


def deep_in_unsaved_work(run: Watch) -> bool:
    """Most of what lies between two checkpoints is done, and none of it saved."""
    return run.step > 0.3 * UPDATES and run.unsaved > 0.6 * CONFIG.checkpoint_every


def in_what_is_done_again(run: Watch) -> bool:
    """The work that the last crash cost is being made up for, and is not all made up for yet."""
    return bool(run.rewinds) and run.unsaved > 0.3 * CONFIG.checkpoint_every


def soon_after_a_checkpoint(run: Watch) -> bool:
    """Next to nothing is unsaved."""
    return run.step > 0.7 * UPDATES and 0 < run.unsaved < 0.1 * CONFIG.checkpoint_every


KILLS = (
    Kill("deep in unsaved work", deep_in_unsaved_work),
    Kill("while it does the lost work again", in_what_is_done_again),
    Kill("soon after a checkpoint", soon_after_a_checkpoint),
)


# --- the trainings ----------------------------------------------------------------------------


class Training:
    """The process that executes a run, and what its log says of it."""

    def __init__(self, folder: Path, run: str) -> None:
        self.watch = Watch(folder / "kitchen.db", run)
        self._folder = folder
        self._process = self._start("run", WORKFLOW, "--id", run)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).with_name("kitchen")), *arguments]
        with (self._folder / f"{self.watch.run}.txt").open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=self._folder,
                env={**os.environ, "KITCHEN_STORE": str(self.watch.store)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        """Of the process that has the run now."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Whether the run is completed. Raises `Trouble` if its process ended in another way."""
        code = self._process.poll()
        if code is None:
            return False
        self.watch.look()
        if code != 0:
            said = (self._folder / f"{self.watch.run}.txt").read_text(errors="replace")
            raise Trouble(f"run {self.watch.run!r} ended with exit code {code}:\n{said[-2000:]}")
        return True

    def kill(self) -> None:
        """SIGKILL, and read what it had written until then."""
        self._process.kill()
        if self._process.wait() != -signal.SIGKILL:
            raise Trouble(f"run {self.watch.run!r} ended before it could be killed")
        self.watch.look()

    def resume(self) -> None:
        """A new process takes the run up; returns when it is at work again."""
        self._process = self._start("resume", self.watch.run)
        processes = self.watch.processes
        for _ in looking(self):
            if self.watch.processes > processes and self.watch.is_working:
                return

    def stop(self) -> None:
        """End the process, whatever it is at."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def looking(*trainings: Training) -> Iterator[None]:
    """Look at the logs again and again, until all are completed."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        ended = [training.has_ended() for training in trainings]
        if all(ended):
            return
        if time.monotonic() > deadline:
            raise Trouble(f"not done after {PATIENCE_SECONDS} s")
        for training in trainings:
            training.watch.look()
        yield
        time.sleep(LOOK_SECONDS)


# --- the acts ---------------------------------------------------------------------------------


class Screen:
    """Where it is told. On a terminal there is colour, and a line that says how far it is."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self._live = sys.stdout.isatty()
        self._colours = self._live and not os.environ.get("NO_COLOR")

    def say(self, line: str = "") -> None:
        """A line that stays."""
        print(f"\r\x1b[K{line}" if self._live else line, flush=True)

    def note(self, line: str) -> None:
        """A line of the timeline."""
        self.say(f"{time.monotonic() - self.begun:6.1f} s  {line}")

    def progress(self, trainings: tuple[Training, ...]) -> None:
        """The line that says how far it is."""
        if self._live:
            told = "   ".join(f"{t.watch.run} {t.watch.step:,}" for t in trainings)
            line = f"{time.monotonic() - self.begun:6.1f} s  {told}   of {UPDATES:,} updates"
            print(f"\r\x1b[K{self.paint(line, 2)}", end="", flush=True)

    def paint(self, text: str, code: int) -> str:
        """In a colour, where there are colours: 1 bold, 2 dim, 31 red, 32 green."""
        return f"\x1b[{code}m{text}\x1b[0m" if self._colours else text


def train(screen: Screen, killed: Training, alone: Training) -> list[int]:
    """Both trainings to their ends; the updates at which one of them was killed."""
    killed_at: list[int] = []
    run = killed.watch
    for _ in looking(killed, alone):
        screen.progress((killed, alone))
        if len(killed_at) == len(KILLS) or not run.is_working:
            continue
        kill = KILLS[len(killed_at)]
        if killed.has_ended() or not kill.is_time(run):
            continue
        lost, pid = len(run.rewinds), killed.pid
        killed.kill()
        killed_at.append(run.step)
        screen.note(screen.paint(f"✗ kill -9 {pid}", 31) + f" at update {run.step:,}, {kill.told}")
        screen.note(f"  the log ends at {run.place}")
        killed.resume()
        told = f"↺ kitchen resume {run.run}: process {killed.pid} "
        if len(run.rewinds) > lost:
            cost = run.rewinds[-1]
            told += f"goes back to the checkpoint at update {cost.back_to:,};"
            screen.note(told)
            screen.note(f"  {cost.updates} updates, {cost.seconds:.2f} s of work, are done again")
        else:
            screen.note(told + "goes on: everything was saved")
    if not any(cost.updates for cost in run.rewinds):
        raise Trouble("the run was never killed in the middle of unsaved work")
    again = sum(cost.updates for cost in run.rewinds)
    seconds = sum(cost.seconds for cost in run.rewinds)
    screen.note(
        f"✓ both are done; {run.run!r} took {run.processes} processes and did {again} updates, "
        f"{seconds:.1f} s of work, twice"
    )
    return killed_at


def compare(screen: Screen, killed: kitchen.History, alone: kitchen.History) -> bool:
    """Print the table; whether all is equal and the store is sound."""
    differences: list[str] = []
    screen.say(screen.paint(f"  {'':33}{KILLED:14}{ALONE}", 1))
    for aspect in aspects(killed, alone):
        one, other = (digest[:10] for digest in aspect.digests)
        difference = aspect.difference
        verdict = screen.paint("DIFFERENT", 31) if difference else screen.paint("equal", 32)
        screen.say(f"  {aspect.name:16}{aspect.size:>15}  {one:14}{other:14}{verdict}")
        if difference:
            differences.append(f"  {aspect.name} differ first at {difference}")
    findings = killed.store.verify()
    size = sum(killed.store.head(run) for run in (KILLED, ALONE))
    verdict = screen.paint("DAMAGED", 31) if findings else screen.paint("sound", 32)
    screen.say(f"  {'the store':16}{f'{size:,} events':>15}  {'chains, blobs':28}{verdict}")
    for line in [*differences, *map(str, findings)]:
        screen.say(screen.paint(line, 31))
    return not differences and not findings


def draw_losses(screen: Screen, run: kitchen.History, killed_at: list[int]) -> None:
    """The loss as a line of bars, on a logarithmic scale, and below it where the run was killed."""
    points = [point.value for point in run.metrics("loss")]
    buckets = [
        points[i * len(points) // WIDTH : (i + 1) * len(points) // WIDTH] for i in range(WIDTH)
    ]
    means = [math.log(sum(bucket) / len(bucket)) for bucket in buckets]
    low, high = min(means), max(means)
    bars = "".join("▁▂▃▄▅▆▇█"[round((m - low) / (high - low or 1) * 7)] for m in means)
    marks = {(step - 1) * WIDTH // UPDATES for step in killed_at}
    screen.say(f"  loss  {math.exp(high):.2f} {bars} {math.exp(low):.2f}")
    screen.say(" " * 13 + "".join("✗" if i in marks else " " for i in range(WIDTH)).rstrip())


def show_samples(screen: Screen, samples: list[str]) -> None:
    """What the model learned to say."""
    for epoch, sample in enumerate(samples[:-1], 1):
        screen.say(f"  after epoch {epoch}   {' '.join(sample.split())}…")
    last = textwrap.fill(" ".join(samples[-1].split()), 92)
    screen.say(textwrap.indent(f"{last}…", "    "))


def invite(screen: Screen, folder: Path, *, kept: bool) -> None:
    """How to look around."""
    if kept:
        screen.say("  to look around:")
        screen.say(f"    export KITCHEN_STORE={folder / 'kitchen.db'}")
    else:
        screen.say("  to look around, `scripts/demo --keep`, and then:")
    for command in (
        f"show {KILLED}",
        f"log {KILLED}",
        f"state {KILLED}",
        f"graph {KILLED}",
        "verify",
    ):
        screen.say(f"    kitchen {command}")


def perform(screen: Screen, folder: Path, *, kept: bool) -> bool:
    """The whole of it; whether all is equal."""
    corpus = read_corpus(CONFIG)
    screen.say(screen.paint("A training that is killed three times, and one that is left alone", 1))
    screen.say(
        f"  text   Python's manual, {len(corpus.text):,} characters, sha256 {corpus.digest[:10]}"
    )
    screen.say(
        f"  model  {CONFIG.context} characters in sight, {CONFIG.hidden} hidden units, in NumPy; "
        f"{UPDATES:,} updates by Adam"
    )
    screen.say(f"  saved  every {CONFIG.checkpoint_every} updates\n")
    with contextlib.ExitStack() as processes:
        trainings: list[Training] = []
        for run in (KILLED, ALONE):
            trainings.append(Training(folder, run))
            processes.callback(trainings[-1].stop)
        killed, alone = trainings
        screen.note(f"▸ kitchen run {WORKFLOW} --id {KILLED}   (process {killed.pid})")
        screen.note(f"▸ kitchen run {WORKFLOW} --id {ALONE} (process {alone.pid})")
        killed_at = train(screen, killed, alone)
    left, right = (kitchen.history(run, store=folder / "kitchen.db") for run in (KILLED, ALONE))
    screen.say()
    draw_losses(screen, left, killed_at)
    screen.say()
    equal = compare(screen, left, right)
    screen.say()
    show_samples(screen, left.state_at()["samples"])
    screen.say()
    invite(screen, folder, kept=kept)
    return equal


def main() -> int:
    """The exit code: 0 if everything is equal, 1 if not, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=SUMMARY)
    parser.add_argument("--keep", action="store_true", help="leave the store, to look around in")
    keep = parser.parse_args().keep
    folder = Path(tempfile.mkdtemp(prefix="kitchen-demo-"))
    screen = Screen()
    try:
        equal = perform(screen, folder, kept=keep)
    except Trouble as trouble:
        screen.say(f"demo: {trouble}")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    word = screen.paint("equal, bit for bit", 32) if equal else screen.paint("NOT EQUAL", 31)
    screen.say(f"\n{word}; {time.monotonic() - screen.begun:.0f} s")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
