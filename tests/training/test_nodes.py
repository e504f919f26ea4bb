"""Training over several machines: two hosts, each a network namespace of this one, by torchrun and as SLURM starts it.

The commands are those of the how-to; only what stands behind ``polypseg train`` is ours.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from polypseg.errors import PolypsegError, UsageError
from polypseg.training.folds import train_folds
from polypseg.training.recipe import Recipe
from polypseg.training.run import train

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PLAIN = Path(__file__).with_name("plain.yaml")  # a recipe of defaults alone
PAGE = ROOT / "docs" / "how-to" / "several-machines.md"
EPOCHS, BATCH = 6, 3
SETTINGS = {
    "frames": {"batch_size": BATCH},
    "optimizer": {"schedule": "one_cycle", "ema_decay": 0.5},
    "trainer": {"epochs": EPOCHS, "precision": "32-true", "threads": 1, "accelerator": "cpu"},
}


def blocks(language: str) -> list[str]:
    """The page's code blocks of a language, continued lines joined."""
    found = re.findall(rf"(?ms)^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"))
    return [block.replace("\\\n", " ") for block in found]


def launchers(option: str) -> list[str]:
    """The page's torchrun commands that have an option, up to ``polypseg train``."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line.partition(" train ")[0] + " train" for line in lines if option in line and "torchrun" in line]


def options(out: Path, data: Path, *more: str) -> str:
    """What ``polypseg train`` is given, as ``recipe`` has it."""
    words = [
        "--config", str(PLAIN), "--data", str(data), "--out", str(out), "--model.name", "Unet",
        "--model.encoder", "tu-test_efficientnet", "--model.decoder_channels", "[32,16,16,8,8]",
        "--model.encoder_weights", "none", "--frames.size", "64", "--frames.workers", "0", "--trainer.loggers", "[]",
        "--frames.batch_size", str(BATCH), "--optimizer.name", "adamw", "--optimizer.learning_rate", "1e-3",
        "--optimizer.schedule", "one_cycle", "--optimizer.ema_decay", "0.5", "--trainer.epochs", str(EPOCHS),
        "--trainer.precision", "32-true", "--trainer.threads", "1", "--trainer.accelerator", "cpu", *more,
    ]  # fmt: skip
    return shlex.join(words)


@pytest.fixture(scope="module")
def recipe(small_recipe: Callable[..., Any]) -> Recipe:
    made: Recipe = small_recipe(**SETTINGS)
    return made


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """46 frames: 32 of training are 11 batches of up to 3, an odd number; 7 of validation are 3, the last of one."""
    from polypseg.data import phantom

    return phantom.write(tmp_path_factory.mktemp("data") / "phantom", 46, seed=3, height=72, width=88)


class Hosts:
    """Machines called node1 and node2 that see each other over a wire, and have no other network.

    Args:
        folder: for the programs that a machine would have installed, and its table of names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"polypseg-{os.getpid()}-{number}" for number in (1, 2)]
        (folder / "hosts").write_text("127.0.0.1 localhost\n10.99.0.1 node1\n10.99.0.2 node2\n")
        (folder / "resolv.conf").write_text("")
        self.program("polypseg", f'exec {sys.executable} -m polypseg.cli "$@"')
        self.program("torchrun", f'exec {sys.executable} -m torch.distributed.run "$@"')
        for name in self.names:
            _ip("netns", "add", name)
        one, two = self.names
        _ip("link", "add", "wire1", "netns", one, "type", "veth", "peer", "name", "wire2", "netns", two)
        for number, name in enumerate(self.names, 1):
            _ip("-n", name, "addr", "add", f"10.99.0.{number}/24", "dev", f"wire{number}")
            for link in ("lo", f"wire{number}"):
                _ip("-n", name, "link", "set", link, "up")

    def program(self, name: str, script: str) -> None:
        file = self.folder / name
        file.write_text(f"#!/bin/bash\n{script}\n")
        file.chmod(0o755)

    def words(self, number: int, command: str) -> list[str]:
        """What runs a line of the shell on a machine, counted from 1."""
        within = (
            f"hostname node{number}; for file in hosts resolv.conf; do"
            f" mount --bind {shlex.quote(str(self.folder))}/$file /etc/$file; done; {command}"
        )
        return ["ip", "netns", "exec", self.names[number - 1], "unshare", "--uts", "--mount", "bash", "-c", within]

    def start(self, number: int, command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.words(number, f"exec {command}"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env=self.environment,
        )  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        said = dict(re.findall(r"(?m)^export (\w+)=(\w+)$", "".join(blocks("bash"))))
        return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **said}

    def lose(self, number: int) -> None:
        """Kill all that runs on a machine."""
        for process in _ip("netns", "pids", self.names[number - 1]).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)

    def close(self) -> None:
        for number, name in enumerate(self.names, 1):
            with contextlib.suppress(AssertionError):  # it was not made
                self.lose(number)
                _ip("netns", "delete", name)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("two machines are made as network namespaces, which needs Linux and root")
    if missing := [program for program in ("ip", "unshare", "mount") if not shutil.which(program)]:
        pytest.skip(f"two machines are made as network namespaces, which needs {' and '.join(missing)}")
    made = Hosts.__new__(Hosts)
    try:
        made.__init__(tmp_path_factory.mktemp("hosts"))  # type: ignore[misc]
        subprocess.run(made.words(1, "true"), check=True, capture_output=True, text=True)
    except (AssertionError, subprocess.CalledProcessError) as error:
        made.close()
        pytest.skip(f"network namespaces are not permitted here: {getattr(error, 'stderr', None) or error}")
    yield made
    made.close()


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """What each wrote, once all have ended well."""
    written = [process.communicate(timeout=1500) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), written
    return written


def table(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "metrics.csv")


def wait_for_epochs(out: Path, processes: list[subprocess.Popen[str]], count: int) -> None:
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        if (out / "metrics.csv").is_file() and len((out / "metrics.csv").read_text().splitlines()) > count:
            return
        time.sleep(0.02)
    for process in processes:
        process.kill()
    pytest.fail(f"no {count} epochs: {[process.communicate() for process in processes]}")


@pytest.fixture(scope="module")
def killed(hosts: Hosts, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Any]]:
    """A run by elastic torchrun whose second machine lost its worker and later all it had, a copy from before that,
    and what was written."""
    folder = tmp_path_factory.mktemp("killed")
    out = folder / "run"
    (command,) = launchers("--nnodes 2 --nproc-per-node 1 --rdzv-backend")
    line = f"{command} {options(out, frames, '--resume')}"  # as the page has it
    agents = [hosts.start(number, line) for number in (1, 2)]
    wait_for_epochs(out, agents, 2)
    time.sleep(0.3)  # into a later epoch
    shutil.copytree(out, folder / "before", ignore=shutil.ignore_patterns("*.part"))  # those vanish while it runs
    (worker,) = Path(f"/proc/{agents[1].pid}/task/{agents[1].pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    wait_for_epochs(out, agents, len(table(folder / "before")) + 1)
    time.sleep(0.3)
    hosts.lose(2)
    lost = agents.pop()
    agents.append(hosts.start(2, line))
    return out, folder / "before", [*finish(agents), lost.communicate()]


def test_a_killed_machine_costs_an_epoch_begun_and_no_more(killed: Any) -> None:
    out, before, written = killed
    done = len(table(before))
    assert 2 <= done < EPOCHS
    assert list(table(out)["epoch"]) == list(range(EPOCHS))
    log = (out / "log.txt").read_text()
    assert log.count("training small on") == 3  # once begun, twice restarted
    assert log.count("epoch 1/") == 1
    assert log.count("epoch ") <= EPOCHS + 2  # one may have been in the table, not yet in a checkpoint
    pd.testing.assert_frame_equal(table(before).iloc[: done - 1], table(out).iloc[: done - 1])
    # The first process speaks and says where the run is; of the others only errors are heard, in one line each.
    assert [text.strip() for text, _ in written] == [str(out), "", ""]
    for _, error in written:
        assert "Traceback" not in error
    assert written[0][1].count("another process of this training has gone") == 2
    assert "epoch" not in written[1][1] + written[2][1]
    assert not list(out.rglob("*.part")) and not (out / "cache").exists()


def test_the_numbers_are_those_of_one_process(killed: Any, frames: Path, recipe: Recipe) -> None:
    """Two processes validated 7 frames in batches of 3, of which one had a batch less; here one does, without them."""
    from polypseg.bundle import Preprocessing
    from polypseg.data import read
    from polypseg.data.splits import read_split
    from polypseg.models.losses import segmentation_loss
    from polypseg.models.network import build
    from polypseg.models.weights import normalisation

    out, _, _ = killed
    catalog = read(frames).with_split(read_split(out / "split.csv")).of_split("val")
    assert len(catalog) == 7
    network = build(recipe.model.architecture)
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    network.load_state_dict({key.removeprefix("network."): value for key, value in state.items()})
    network.eval()
    preprocessing = Preprocessing(64, 64, *normalisation(recipe.model.encoder, "none"), "linear")
    images = torch.from_numpy(np.stack([preprocessing.apply(catalog.frame(index)) for index in range(7)]))
    truths = np.stack([preprocessing.resize_mask(catalog.mask(index)) for index in range(7)])
    losses, dices, pooled = [], [], []
    for start in range(0, 7, BATCH):
        part = slice(start, start + BATCH)
        truth = torch.from_numpy(truths[part]).float()[:, None]
        with torch.inference_mode():
            logits = network(images[part])
        losses += [float(segmentation_loss(logits, truth, recipe.loss))] * len(truth)
        found, wanted = logits[:, 0].numpy() > 0, truths[part] > 0
        both, all_ = (found & wanted).sum((1, 2)), found.sum((1, 2)) + wanted.sum((1, 2))
        dices += list(2 * both / all_)
        pooled.append(2 * both.sum() / all_.sum())
    last = table(out).iloc[-1]
    assert last["val_loss"] == pytest.approx(np.mean(losses), abs=2e-5)
    assert last["val_dice"] == pytest.approx(np.mean(dices), abs=2e-5)
    assert last["val_dice_batch"] == pytest.approx(np.mean(pooled), abs=2e-5)


def steps(frames_of_training: int, processes: int) -> int:
    """Steps an epoch: rounds in which every process has a batch."""
    batches = math.ceil(frames_of_training / BATCH)
    return (batches - (frames_of_training % BATCH == 1)) // processes


def assert_goes_on(out: Path, recipe: Recipe, done: int, before: int, after: int) -> None:
    """Each epoch once, ``done`` of them by ``before`` processes and the others by ``after``; the learning rate's cycle
    is where it would be had the run begun with so many."""
    rows = table(out)
    assert list(rows["epoch"]) == list(range(EPOCHS))
    count = int((pd.read_csv(out / "split.csv")["split"] == "train").sum())
    expected = [steps(count, before)] * done + [steps(count, after)] * (EPOCHS - done)
    assert list(rows["step"].diff().fillna(rows["step"].iloc[0])) == expected
    rate, each = recipe.optimizer.learning_rate, steps(count, after)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], rate)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=each * EPOCHS, pct_start=0.1, cycle_momentum=False
    )
    rates = [rate / 25]
    for _ in range(each * EPOCHS):
        optimizer.step()
        cycle.step()
        rates += cycle.get_last_lr()
    wanted = [rates[each * (epoch + 1)] for epoch in range(done, EPOCHS)]
    assert list(rows["learning_rate"][done:]) == pytest.approx(wanted, rel=1e-4)


def test_two_processes_are_resumed_by_one(killed: Any, frames: Path, recipe: Recipe) -> None:
    _, before, _ = killed
    complete = torch.load(before / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] + 1
    assert_goes_on(train(recipe, [frames], before, resume=True), recipe, complete, 2, 1)


def test_one_process_is_resumed_by_two(
    hosts: Hosts, frames: Path, recipe: Recipe, tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    out = tmp_path / "run"
    interrupted(2, lambda: train(recipe, [frames], out))
    finish([hosts.start(n, f"{launchers('--node-rank')[n - 1]} {options(out, frames, '--resume')}") for n in (1, 2)])
    assert_goes_on(out, recipe, 2, 1, 2)


# As SLURM's srun starts a task of each node of a job; only the machines are ours.
SRUN = """
status=0; tasks=()
export SLURM_JOB_ID=4711 SLURM_JOB_NAME=polyps SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=1 SLURM_NNODES=2
export SLURM_NODELIST='node[1-2]' SLURM_LOCALID=0
{tasks}
for task in "${{tasks[@]}}"; do wait $task || status=1; done
cat {folder}/task-0 {folder}/task-1 >&2
exit $status
"""


def sbatch_script(hosts: Hosts, folder: Path, arguments: list[str]) -> Path:
    """The page's script, with our options, and the srun that it calls."""
    (script,) = blocks("sh")
    words = [shlex.join(hosts.words(n, f"exec polypseg train {arguments[n - 1]}")) for n in (1, 2)]
    tasks = [f"SLURM_PROCID={n} SLURM_NODEID={n} {words[n]} 2>{folder}/task-{n} & tasks+=($!)" for n in (0, 1)]
    hosts.program("srun", SRUN.format(tasks="\n".join(tasks), folder=folder))
    file = folder / "polyps.sbatch"
    file.write_text(script)
    return file


def test_slurm(hosts: Hosts, frames: Path, killed: Any, tmp_path: Path) -> None:
    """The page's script trains over two machines, exactly as the run above that was killed and went on."""
    arguments = options(tmp_path / "run", frames)
    script = sbatch_script(hosts, tmp_path, [arguments, arguments])
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    done = subprocess.run(["bash", script], env=hosts.environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "run")  # one process speaks
    assert "2 processes, machines: 2" in (tmp_path / "run" / "log.txt").read_text()
    whole, parts = (table(out).drop(columns="seconds") for out in (tmp_path / "run", killed[0]))
    pd.testing.assert_frame_equal(whole, parts)
    whole, parts = (
        torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for out in (tmp_path / "run", killed[0])
    )
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []


def test_what_stops_one_machine_stops_all_with_a_line_each(hosts: Hosts, frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    script = sbatch_script(hosts, tmp_path, [options(out, frames), options(out, tmp_path / "not-mounted")])
    done = subprocess.run(["bash", script], env=hosts.environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode != 0
    lines = sorted(line for line in done.stderr.splitlines() if line.startswith("polypseg: "))
    assert len(lines) == 2 and "Traceback" not in done.stderr
    assert lines[0].startswith(f"polypseg: {tmp_path / 'not-mounted'}")
    assert lines[1].startswith(f"polypseg: stopped, because process 1 on node2 cannot start: {tmp_path}/not-mounted")
    assert not out.exists()


def test_the_script_asks_for_another_turn_when_its_time_is_nearly_up(tmp_path: Path) -> None:
    (script,) = blocks("sh")
    for name, text in (("srun", "exec sleep 60"), ("scontrol", f'echo "$@" >{tmp_path}/asked')):
        (tmp_path / name).write_text(f"#!/bin/bash\necho $$ >{tmp_path}/{name}.pid\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    process = subprocess.Popen(["bash", "-c", script], env=environment)
    deadline = time.monotonic() + 30
    while not (tmp_path / "srun.pid").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    process.wait(30)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGKILL)
    assert (tmp_path / "asked").read_text().split() == ["requeue", "4711"]
    assert "--signal=B:USR1@" in script and "--resume" in script


def test_a_command_that_torchrun_may_start_again_does_not_throw_its_epochs_away(
    frames: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: Callable[..., None]
) -> None:
    environment = {
        "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0", "RANK": "0", "LOCAL_RANK": "0",
        "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "run"
    interrupted(1, lambda: train(recipe, [frames], out))
    with pytest.raises(PolypsegError, match="contains a run already; use --resume"):
        train(recipe, [frames], out)
    for again in (train, partial(train_folds, folds=2)):
        with pytest.raises(UsageError, match=r"--overwrite: torchrun starts the command again .*; give --resume"):
            again(recipe, [frames], out=out, overwrite=True)
    assert len(table(out)) == 1
    train(recipe, [frames], out, resume=True)  # the restart of a command that the page shows
    assert (out / "log.txt").read_text().count("epoch 1/") == 1
    assert list(table(out)["epoch"]) == list(range(EPOCHS))


def test_fsdp_says_what_it_needs(frames: Path, small_recipe: Callable[..., Any], tmp_path: Path) -> None:
    settings = {"accelerator": "cpu", "devices": 2, "strategy": "fsdp"}
    with pytest.raises(PolypsegError, match="requires a GPU accelerator") as caught:
        train(small_recipe(trainer=settings), [frames], tmp_path / "run")
    assert str(caught.value).removeprefix("small: ") in PAGE.read_text(encoding="utf-8")
    for setting in ({"ema_decay": 0.9}, {"gradient_clip": 1.0}):
        with pytest.raises(UsageError, match=r"fsdp goes neither with optimizer\.ema_decay nor"):
            train(small_recipe(trainer=settings, optimizer=setting), [frames], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fewer_batches_than_processes_are_told(frames: Path, small_recipe: Callable[..., Any]) -> None:
    from types import SimpleNamespace

    from polypseg.bundle import Preprocessing
    from polypseg.data import read_all
    from polypseg.data.splits import make_split
    from polypseg.training.datamodule import FramesDataModule

    catalog = read_all([frames])
    module = FramesDataModule(
        catalog.with_split(make_split("random", catalog)), Preprocessing(64, 64, (0.5,) * 3, (0.5,) * 3),
        small_recipe(frames={"batch_size": 16}),
    )  # fmt: skip
    module.trainer = SimpleNamespace(global_rank=0, world_size=4)  # type: ignore[assignment]
    assert len(module.batches("val")) == 1
    with pytest.raises(PolypsegError, match=r"are fewer batches than the 4 processes; lower frames\.batch_size"):
        module.batches("train")
