"""In this process, or under torchrun with one rank per device; never several devices in one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from llmforge.config.dump import spoken
from llmforge.config.schema import Recipe
from llmforge.errors import ForgeError, RecipeError
from llmforge.process import free_port, large_imports
from llmforge.runs import RunDir
from llmforge.train.ahead import ReadAhead
from llmforge.train.stop import SIGNALS, StoppedByUser

GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA's driver, a card under WSL, AMD's driver
RANKS_WITHOUT_CARD = 8  # ranks that may share few cores, for a trial of a recipe meant for eight cards


def launch(words: Sequence[str], recipe: Recipe) -> int:
    """Train; returns the exit code. `words` are what the ranks read the recipe from again."""
    if "RANK" in os.environ:  # started by torchrun, ours or the user's own
        return _here(recipe)
    _refuse_taken(recipe)
    ranks = num_ranks(recipe)
    # DeepSpeed wants a process group also for one rank.
    return _here(recipe) if ranks == 1 and not recipe.train.deepspeed else _under_torchrun(words, recipe, ranks)


def _refuse_taken(recipe: Recipe) -> None:
    """Before torch is read: a folder that is in use or holds results. The run looks again, holding its lock.

    Raises:
        RecipeError, RunError: see RunDir.
    """
    if recipe.train.output_dir:
        folder = RunDir(Path(recipe.train.output_dir))
        folder.make()
        folder.refuse_live()
        if not (recipe.train.resume_from_checkpoint or recipe.train.overwrite_output_dir):
            folder.refuse_results()


def num_ranks(recipe: Recipe) -> int:
    """Processes to start: as asked, or one per visible GPU.

    Raises:
        RecipeError: more ranks than GPUs.
    """
    wanted = recipe.launch.nproc
    cards = 0 if recipe.model.device == "cpu" else _visible_gpus()
    if wanted in ("auto", "gpu"):
        return max(cards, 1)
    if not str(wanted).isdigit() or int(wanted) < 1:
        raise RecipeError(f"launch.nproc: got {wanted!r}, expected auto or a number of processes")
    if cards and int(wanted) > cards:
        raise RecipeError(f"launch.nproc: {wanted} ranks, but {cards} visible GPUs; lower it or say device: cpu")
    cores = os.cpu_count() or 1
    if not cards and int(wanted) > (most := max(cores, RANKS_WITHOUT_CARD)):
        raise RecipeError(f"launch.nproc: {wanted} ranks on {cores} CPU cores; at most {most} are started without GPUs")
    return int(wanted)


def _here(recipe: Recipe) -> int:
    _tell_deepspeed(recipe, os.environ)
    ahead = ReadAhead(recipe) if "RANK" not in os.environ else None  # among ranks, rank 0 reads first
    with large_imports():
        from llmforge.model.imports import without_unused

        with without_unused():
            from llmforge.train.run import run

    try:
        run(recipe, ahead)
    except StoppedByUser as stopped:
        if stopped.saved is None and os.environ.get("RANK", "0") == "0":
            print("forge-cli: stopped before the first step; nothing was saved", file=sys.stderr)
        return stopped.exit_code
    except ForgeError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0:
            raise
        # Mostly rank 0 meets the same error and tells it; only when this process is left alone it speaks itself.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.sigtimedwait([], 5.0)
        print(f"forge-cli: rank {rank}: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        _leave_group()
    return 0


def _visible_gpus() -> int:
    """Cards that torch sees; where the system shows no device it is not asked, so that texts are read beside it."""
    if sys.platform == "linux" and not any(Path(device).exists() for device in GPU_DEVICES):
        return 0
    with large_imports():
        import torch

    return torch.cuda.device_count()


def _tell_deepspeed(recipe: Recipe, environment: MutableMapping[str, str]) -> None:
    """DeepSpeed asks the environment, while it is imported, which device it works for."""
    if recipe.model.device == "cpu" or not _visible_gpus():
        environment.setdefault("DS_ACCELERATOR", "cpu")


def _leave_group() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _under_torchrun(words: Sequence[str], recipe: Recipe, ranks: int) -> int:
    """Run torchrun in a session of its own; signals go to rank 0, which tells the others. Returns its exit code."""
    command = [
        sys.executable, "-m", "llmforge.train.torchrun", "--nnodes", "1", "--nproc-per-node", str(ranks),
        "--master-addr", "127.0.0.1", "--master-port", str(recipe.launch.master_port or free_port()),
        "-m", "llmforge.cli", "train", *words,
    ]  # fmt: skip
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    _tell_deepspeed(recipe, environment)
    if recipe.model.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    print(f"forge-cli: {ranks} ranks: {' '.join(spoken(command[2:]))}", file=sys.stderr, flush=True)
    if recipe.train.deepspeed and environment.get("DS_ACCELERATOR") == "cpu":
        print("forge-cli: DeepSpeed compiles its CPU part when it first runs here: minutes of silence", file=sys.stderr)
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    folder = RunDir(Path(recipe.train.output_dir or "."))
    signals: list[int] = []

    def forward(number: int, frame: object) -> None:
        signals.append(number)
        rank_0 = _rank_0(folder)
        if len(signals) > 1:
            os.killpg(process.pid, signal.SIGKILL)
        elif rank_0:
            os.kill(rank_0, number)
        else:
            process.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, forward)
    code = process.wait()
    if signals and len(signals) > 1:
        code = 128 + signals[0]
    if code and folder.state_path.is_file() and folder.read_state().state == "lost":
        folder.write_state(state="failed", exit_code=code, error=f"a rank died; torchrun ended with {code}")
    return 128 - code if code < 0 else code


def _rank_0(folder: RunDir) -> int | None:
    """Process id of a live run's rank 0."""
    if not folder.state_path.is_file():
        return None
    state = folder.read_state()
    return state.pid if state.live else None
