"""Runs a study's jobs side by side on this machine, each with a log."""

import contextlib
import multiprocessing
import os
import shlex
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from datamodules.files.locks import take
from datamodules.provenance import claim_folder
from datamodules.text.plain_text import describe_error
from lightning_modules.run.progress import bar_options
from lightning_modules.run.stop_signal import StopListener, is_stopping, leave
from lightning_modules.run.user_errors import user_errors
from studies.jobs.job import Job, drop_spent
from studies.jobs.states import log_path

Main = Callable[[list[str]], Any]


def _start_worker(num_threads: int) -> None:
    """Shares the machine's cores between the workers; lets this one stop in order, and end with the study's process."""
    torch.set_num_threads(num_threads)
    StopListener().listen()
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    # What a job has written survives that, as it survives any kill.
    os._exit(1)


@contextlib.contextmanager
def _deafening_children() -> Iterator[None]:
    """Keeps Ctrl-C from processes that start meanwhile; this one hears of it at the end, and stops them."""
    # Python's helper, at whose start it is let through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    hears = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, hears)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_job(main: Main, job: Job, log: Path) -> None:
    """Runs a job with its output in a log, which is locked as long as the job runs."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        take(file, wait=True)
        print(f"$ python -m scripts.{job.stage} {shlex.join(job.args)}", flush=True)
        try:
            main(job.args)
        except Exception as error:
            if not isinstance(error, user_errors()):
                traceback.print_exc()
            print(f"error: {describe_error(error)}", flush=True)
            raise


def run_jobs(jobs: list[Job], folder: Path, workers: int, mains: dict[str, Main]) -> None:
    """Runs jobs, each as soon as what it needs is finished; one that is done already says so and costs little.

    A failing job stops what needs it and nothing else. Where a scheduler asks this process to stop, the jobs that run
    save what they have, and it leaves with `EXIT_STOPPED`.

    Args:
        jobs: Each after what it needs.
        folder: Of the study or sweep.
        workers: Jobs that run side by side.
        mains: The stages' scripts.

    Raises:
        ValueError: Jobs failed; it names the first, its log, and how many.
        RuntimeError: Likewise, and one of them by a mistake of Kindred's own.
    """
    claim_folder(folder)
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")
    waiting, finished, running = list(jobs), set[str](), dict[Future[None], Job]()
    failed: dict[str, BaseException] = {}
    progress = tqdm(total=len(jobs), unit="jobs", desc=folder.name, **bar_options(seconds=0))
    with ProcessPoolExecutor(workers, context, _start_worker, (threads,)) as pool, progress:
        try:
            while True:
                # A worker starts with a job that finds none idle.
                with _deafening_children():
                    for job in [job for job in waiting if finished.issuperset(job.needs)]:
                        waiting.remove(job)
                        running[pool.submit(_run_job, mains[job.stage], job, log_path(folder, job))] = job
                if not running:
                    break
                if is_stopping():
                    leave(f"while {len(running)} jobs ran")
                for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    error = future.exception()
                    if error is None:
                        finished.add(job.name)
                        drop_spent(jobs)
                    elif isinstance(error, BrokenProcessPool):
                        names = ", ".join([job.name, *(other.name for other in running.values())])
                        raise ValueError(f"a worker was killed (out of memory?) while it ran one of {names}")
                    elif isinstance(error, Exception):
                        failed[job.name] = error
                        tqdm.write(f"{job.name} failed, see {log_path(folder, job)}")
                    else:
                        raise error
                    progress.set_postfix_str(job.name, refresh=False)
                    progress.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    if failed:
        first = next(job for job in jobs if job.name in failed)
        more = f" ({len(failed)} jobs failed{f', {len(waiting)} wait for them' if waiting else ''})"
        message = f"{first.name} failed, see {log_path(folder, first)}: {describe_error(failed[first.name])}{more}"
        if bugs := [error for error in failed.values() if not isinstance(error, user_errors())]:
            raise RuntimeError(message) from bugs[0]
        raise ValueError(message)
