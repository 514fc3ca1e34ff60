"""Run the configurations of a folder, several at a time; run/parallel.sh starts this.

Every job is ``run/main.py --cfg X --repeat R --mark_done`` in a process of its own, whose output goes to
``<out_dir>/logs/<configuration>.log``. Without GPUs, jobs are forked from this process after its imports, which saves
each of them seconds. With GPUs or on macOS, whose libraries do not survive a fork, and for another main program, each
job is a new Python process. ``--launcher submitit`` runs jobs on the machines of Slurm instead.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import ctypes
import fcntl
import importlib
import json
import logging
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

RUN = Path(__file__).resolve().parent.parent
OWN_MAIN = RUN / "main.py"
DONE = "_done"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SUBMITTED_MINUTES = 24 * 60
_RUN_SUBMITTED = "import sys; sys.path.insert(0, sys.argv[1]); from grid import jobs; jobs.be_submitted(*sys.argv[2:])"
_PATIENCE = 15.0  # seconds for an interrupted job to end by itself
_PR_SET_PDEATHSIG = 1
_DEFAULT_THREADS = 6  # GraphGym's num_threads


class JobError(ValueError):
    """The folder of configurations cannot be run; the message says why and what to do."""


@dataclass(frozen=True)
class Job:
    """One configuration, the file for its output, and its ``num_threads``."""

    config: Path
    log: Path
    num_threads: int

    @property
    def name(self) -> str:
        return self.config.name.removesuffix(".yaml")


@dataclass(frozen=True)
class Plan:
    """How jobs are run."""

    main: Path  # the program that each job starts
    repeat: int  # seeds per job
    at_once: int
    sleep: float = 0.0  # seconds between two starts
    gpus: tuple[str, ...] = ()  # for CUDA_VISIBLE_DEVICES, each job gets the least used; empty = variable not set
    threads: int = 0  # per job; 0 = those of the configuration


@dataclass(frozen=True)
class Running:
    job: Job
    gpu: str | None
    begun: float
    log_start: int  # where this attempt begins in the log


@dataclass(frozen=True)
class Failure:
    """A failed job: its exit status or signal, and the last line of its error."""

    job: Job
    status: str
    last_line: str


# ---- which jobs ---------------------------------------------------------------------------------------------------


def find_jobs(folder: Path, repeat: int, own_main: bool) -> tuple[list[Job], int]:
    """The waiting configurations (``*.yaml``) by name, after `reopen`, and the number of finished ones.

    Raises:
        JobError: there are neither.
    """
    reopen(folder, repeat, own_main)
    configs = sorted(folder.glob("*.yaml"))
    finished = sum(not _waiting_file(file).exists() for file in folder.glob(f"*.yaml{DONE}"))
    if not configs and not finished:
        raise JobError(f"{folder}: no configuration in it (*.yaml); make some with run/configs_gen.py")
    return [job_of(file) for file in configs], finished


def reopen(folder: Path, repeat: int, own_main: bool) -> None:
    """Let finished configurations (``*.yaml_done``) that lack some of ``repeat`` seeds wait again (``*.yaml``).

    ``own_main``: jobs run our main.py, which records each finished seed. Another program may record none; its
    configurations lack seeds only if some seeds are recorded.
    """
    for file in sorted(folder.glob(f"*.yaml{DONE}")):
        if not _waiting_file(file).exists() and _lacks_seeds(file, repeat, own_main):
            file.rename(_waiting_file(file))


def _waiting_file(done_file: Path) -> Path:
    return done_file.with_name(done_file.name.removesuffix(DONE))


def job_of(config: Path) -> Job:
    threads = _number(_settings(config), "num_threads", _DEFAULT_THREADS)
    log = results_of(config) / "logs" / f"{config.name.removesuffix('.yaml')}.log"
    return Job(config, log, threads or _DEFAULT_THREADS)


def results_of(config: Path) -> Path:
    """The ``out_dir`` of a configuration, which contains the folder of its experiment."""
    return written_out(_settings(config).get("out_dir", "results"))


def written_out(path: str) -> Path:
    """A path with ``~`` and ``$NAME`` expanded; an unknown name stays, and the job will refuse it."""
    expanded = Path(os.path.expandvars(path))
    with contextlib.suppress(RuntimeError):
        return expanded.expanduser()
    return expanded


def _settings(config: Path) -> Mapping[str, Any]:
    """The settings of the YAML, as typed; {} if it cannot be read, which the job will report."""
    try:
        settings = yaml.load(config.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _number(settings: Mapping[str, Any], name: str, default: int) -> int:
    text = str(settings.get(name, default))
    return int(text) if text.isdecimal() else default


def _lacks_seeds(done_file: Path, repeat: int, own_main: bool) -> bool:
    first_seed = _number(_settings(done_file), "seed", 0)
    folder = results_of(done_file) / done_file.name.removesuffix(f".yaml{DONE}")
    runs = [folder / str(seed) for seed in range(first_seed, first_seed + repeat)]
    finished = sum(map(is_finished, runs))
    of_other_program = [(run / "val" / "stats.json").exists() and not (run / "run.json").exists() for run in runs]
    return finished < repeat if finished else own_main and not any(of_other_program)


def is_finished(run: Path) -> bool:
    """Whether our main.py has recorded in ``run.json`` that the run is finished."""
    try:
        return bool(json.loads((run / "run.json").read_text(encoding="utf-8")).get("finished"))
    except (OSError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def alone_with(folder: Path, patience: float = 5.0) -> Iterator[None]:
    """Lock the folder, so that no second queue runs the same jobs at the same time.

    Jobs inherit the lock, so it ends with the last of them.

    Raises:
        JobError: there is no such folder, or its lock was not free within ``patience`` seconds.
    """
    if not folder.is_dir():
        raise JobError(f"{folder}: no such folder; expected the folder of configurations that configs_gen.py made")
    with (folder / ".lock").open("w") as file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise JobError(f"{folder}: its jobs are being run already; wait for them, or stop them") from error
                time.sleep(0.1)
        yield


# ---- how ----------------------------------------------------------------------------------------------------------


def find_main(name: str) -> Path:
    """The file of GraphGym's MAIN: a program name without ``.py``, in our run/ or the current folder; or a path.

    Raises:
        JobError: there is none.
    """
    file = name if name.endswith(".py") else f"{name}.py"
    for candidate in (Path(file),) if "/" in file else (RUN / file, Path(file)):
        if candidate.is_file():
            return candidate.resolve()
    raise JobError(f"MAIN {name}: no file {file} in {RUN.name}/ or in the current folder; expected e.g. main")


def find_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """GPUs named by GPUS (``0,1``; ``none`` = use the CPU), else by CUDA_VISIBLE_DEVICES, else all that exist."""
    for variable in ("GPUS", "CUDA_VISIBLE_DEVICES"):
        if environment.get(variable):
            named = [name.strip() for name in environment[variable].split(",")]
            return () if named[0] in ("none", "-1") else tuple(filter(None, named))
        if variable in environment and variable != "GPUS":  # set and empty: hidden on purpose
            return ()
    if not shutil.which("nvidia-smi"):
        return ()
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    return tuple(listing.stdout.split()) if listing.returncode == 0 else ()


def make_plan(args: argparse.Namespace, jobs: int, environment: Mapping[str, str]) -> Plan:
    """The plan for ``jobs`` jobs; JobError if MAIN or a number is wrong."""
    from joblib import cpu_count  # takes a while

    gpus = find_gpus(environment)
    at_once = min(args.max_jobs, max(jobs, 1))
    per_gpu = environment.get("JOBS_PER_GPU", "")
    if per_gpu:
        if not per_gpu.isdigit() or per_gpu == "0":
            raise JobError(f"JOBS_PER_GPU is '{per_gpu}', expected a number of at least 1")
        at_once = min(at_once, int(per_gpu) * max(len(gpus), 1))
    threads = 0
    if at_once > 1:
        threads = max(1, cpu_count() // at_once)
        limit = environment.get("OMP_NUM_THREADS", "")
        threads = min(threads, int(limit)) if limit.isdigit() and int(limit) > 0 else threads
    return Plan(find_main(args.main), args.repeat, at_once, args.sleep, gpus, threads)


def command_of(job: Job, plan: Plan) -> list[str]:
    """The command line of a job, without the Python that runs it."""
    threads = ["num_threads", str(min(plan.threads, job.num_threads))] if plan.threads else []
    return [str(plan.main), "--cfg", str(job.config), "--repeat", str(plan.repeat), "--mark_done", *threads]


# ---- running ------------------------------------------------------------------------------------------------------


class Queue:
    """Runs jobs according to a `Plan` and collects failures; stopping the queue stops its jobs.

    ``jobs`` may be a generator: each job is taken only when it can start. ``total`` is the expected number of jobs.
    """

    def __init__(self, jobs: Iterable[Job], plan: Plan, total: int) -> None:
        self.jobs, self.plan, self.total = jobs, plan, total
        self.running: dict[int, Running] = {}
        self.finished: list[Job] = []
        self.failures: list[Failure] = []
        self.stopped: set[str] = set()  # names of jobs that are ended on purpose

    def run(self) -> None:
        """Run all jobs.

        Raises:
            KeyboardInterrupt: the queue was stopped, and has stopped its jobs.
        """
        if self._forks():
            import_early()
        try:
            for number, job in enumerate(self.jobs, start=1):
                if number > 1:
                    time.sleep(self.plan.sleep)
                self._start(job, number)
                while len(self.running) >= self.plan.at_once:
                    self._wait()
            while self.running:
                self._wait()
        except BaseException:
            self._stop()
            raise

    def _forks(self) -> bool:
        return self.plan.main == OWN_MAIN and not self.plan.gpus and sys.platform.startswith("linux")

    def _start(self, job: Job, number: int) -> None:
        used = Counter(running.gpu for running in self.running.values())
        gpu = min(self.plan.gpus, key=lambda name: used[name], default=None)
        environment = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        if self.plan.threads:
            environment["OMP_NUM_THREADS"] = str(min(self.plan.threads, job.num_threads))
        job.log.parent.mkdir(parents=True, exist_ok=True)
        log_start = job.log.stat().st_size if job.log.exists() else 0
        if number == 1:
            print(f"Progress of the jobs: {job.log.parent}/<job>.log")
        print(f"[{number}/{self.total}] {job.name}{f' on GPU {gpu}' if gpu else ''}", flush=True)
        self._launch(Running(job, gpu, time.monotonic(), log_start), environment)

    def _launch(self, running: Running, environment: dict[str, str]) -> None:
        job, parent = running.job, os.getpid()
        # Delay signals until the child is recorded here and has set its own signal handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        with warnings.catch_warnings():  # Python 3.12 warns of idle threads that libraries start when imported
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _run_job_and_exit(job, command_of(job, self.plan), environment, self._forks(), parent)
        with contextlib.suppress(OSError):  # the child does the same; either may come first
            os.setpgid(pid, pid)
        self.running[pid] = running
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)

    def _wait(self) -> None:
        """Wait until a job ends, and record how it ended."""
        pid, status = os.waitpid(-1, 0)
        self._record(pid, os.waitstatus_to_exitcode(status))

    def _record(self, pid: int, code: int | str) -> None:
        """Record a job's end: ``code`` is its exit status, or a word that says why it has none."""
        running = self.running.pop(pid, None)
        if running is None:
            return
        job = running.job
        seconds = f"{time.monotonic() - running.begun:.0f} s"
        if code == 0:
            self.finished.append(job)
            print(f"finished {job.name} ({seconds})", flush=True)
            return
        if job.name in self.stopped:
            print(f"stopped {job.name} ({seconds})", flush=True)
            return
        self.failures.append(Failure(job, name_of_status(code), last_line(job.log, running.log_start)))
        print(f"FAILED {job.name} ({seconds})", flush=True)

    def _stop(self) -> None:
        """Interrupt the running jobs, wait, kill those that do not end; a second interrupt kills at once."""
        self._signal(signal.SIGINT)
        deadline = time.monotonic() + _PATIENCE
        try:
            while self.running and time.monotonic() < deadline:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                self.running.pop(pid, None)
                if pid == 0:
                    time.sleep(0.05)
        except (KeyboardInterrupt, ChildProcessError):  # the latter: interrupted after a job's end, before its record
            pass
        finally:
            self._signal(signal.SIGKILL)
            for pid in self.running:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)


class SubmittedQueue(Queue):
    """Submits jobs by submitit: to Slurm or, without srun, as further processes on this machine.

    Args:
        folder: for submitit's files, seen by all machines.
        options: further parameters of submitit's ``AutoExecutor``.

    Raises:
        JobError: submitit is not installed, or knows no such parameter.
    """

    def __init__(self, jobs: Iterable[Job], plan: Plan, total: int, folder: Path, options: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise JobError("--launcher submitit needs the extra 'slurm': pip install 'glem-graphgym[slurm]'") from error
        # Slurm chooses the GPUs, and a job takes the cores that it gets.
        super().__init__(jobs, replace(plan, gpus=(), threads=0), total)
        self.submitted: dict[int, submitit.Job[int]] = {}
        self.executor = submitit.AutoExecutor(folder)
        try:
            self.executor.update_parameters(**{"name": "glem", "timeout_min": _SUBMITTED_MINUTES, **options})
        except (NameError, AssertionError) as error:
            raise JobError(f"--submit: {error}") from error

    def _forks(self) -> bool:
        return False

    def _launch(self, running: Running, environment: dict[str, str]) -> None:
        python = [sys.executable, "-c", _RUN_SUBMITTED, str(RUN), str(running.job.config)]
        try:
            job = self.executor.submit(subprocess.call, [*python, *command_of(running.job, self.plan)])
        except RuntimeError as error:
            raise JobError(f"{running.job.name} cannot be submitted: {' '.join(str(error).split())}") from error
        self.submitted[id(job)], self.running[id(job)] = job, running

    def _wait(self) -> None:
        while not (ended := [number for number, job in self.submitted.items() if job.done()]):
            time.sleep(0.5)
        job = self.submitted.pop(ended[0])
        self._record(ended[0], job.state if job.exception() else job.result())

    def _stop(self) -> None:
        for job in self.submitted.values():
            job.cancel(check=False)
        deadline = time.monotonic() + _PATIENCE
        while not all(job.done() for job in self.submitted.values()) and time.monotonic() < deadline:
            time.sleep(0.05)


def import_early() -> None:
    """Import the modules that every job needs, before jobs are forked."""
    sys.path[:0] = [str(RUN), str(RUN.parent)]
    from command_line import before_imports

    before_imports()
    for name in ("torch_geometric.graphgym.train", "transformers", "glem_graphgym.report.aggregate"):
        importlib.import_module(name)


def _run_job_and_exit(job: Job, command: list[str], environment: dict[str, str], forked: bool, parent: int) -> NoReturn:
    """Run the job in the child process; never returns to the queue's code."""
    code = 1
    try:
        os.setpgid(0, 0)
        _die_with_parent(parent)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        _redirect_to_log(job.log)
        os.environ.update(environment)
        sys.argv = command
        print(f"==== {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(command)}", flush=True)
        if not forked:
            os.execv(sys.executable, [sys.executable, *command])
        sys.path[0] = str(Path(command[0]).parent)
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def be_submitted(config: str, *command: str) -> NoReturn:
    """Run the job of a configuration in this process, which submitit has started."""
    _run_job_and_exit(job_of(Path(config)), list(command), {}, False, os.getppid())


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the queue dies, so that no job runs next to those of a new queue."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _redirect_to_log(log: Path) -> None:
    sys.stdout.flush()
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null_input = os.open(os.devnull, os.O_RDONLY)
    for source, standard_descriptor in ((null_input, 0), (target, 1), (target, 2)):
        os.dup2(source, standard_descriptor)
    for descriptor in (null_input, target):
        if descriptor > 2:
            os.close(descriptor)


# ---- what came out ------------------------------------------------------------------------------------------------


def name_of_status(code: int | str) -> str:
    if isinstance(code, str) or code >= 0:
        return str(code)
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name} (out of memory?)" if name == "SIGKILL" else name


def last_line(log: Path, start: int = 0) -> str:
    """The last ``error: ...`` line in a log from byte ``start`` on; without one, the last line of output."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - 65536))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return "no log"
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    output = [line for line in lines if not line.startswith("==== ")]
    return (errors or output or ["no output"])[-1]


def report(queue: Queue, finished_before: int) -> str:
    """How many jobs finished, and a table of those that failed."""
    total = queue.total + finished_before
    before_text = f", {finished_before} of them before" if finished_before else ""
    lines = [
        f"{len(queue.finished) + finished_before} of {total} jobs finished{before_text}; {len(queue.failures)} failed"
    ]
    if queue.failures:
        rows = [("failed job", "status", "last line of its error")]
        rows += [(failure.job.name, failure.status, failure.last_line) for failure in queue.failures]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines += ["", *(f"{name:<{widths[0]}}  {status:<{widths[1]}}  {line}" for name, status, line in rows), ""]
        logs = sorted({str(failure.job.log.parent) for failure in queue.failures})
        lines.append(f"Whole logs: {', '.join(f'{folder}/<job>.log' for folder in logs)}")
    # These jobs found results of other settings, and name the remedy of main.py, which a queue does not take.
    if refused := [failure.job for failure in queue.failures if "--overwrite" in failure.last_line]:
        remedy = "change out_dir in the base, or delete these results; then type the command again"
        lines.append(f"There is no --overwrite here: {remedy}")
        lines += [f"rm -r {shlex.quote(str(results_of(job.config) / job.name))}" for job in refused]
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    from command_line import check_repeat

    parser = argparse.ArgumentParser(
        prog="run/parallel.sh",
        description="Run every configuration of a folder, several at a time; finished ones are not run again.",
        epilog="Environment: GPUS (0,1 or none; default: all), JOBS_PER_GPU (most jobs that share a GPU), PYTHON.",
    )
    parser.add_argument("config_dir", type=Path, help="folder of configurations, from run/configs_gen.py")
    parser.add_argument("repeat", type=int, help="seeds per configuration")
    parser.add_argument("max_jobs", type=int, nargs="?", default=2, help="jobs at a time (default: 2)")
    parser.add_argument("sleep", type=float, nargs="?", default=1.0, help="seconds between two starts (default: 1)")
    parser.add_argument("main", nargs="?", default="main", help="program of a job, without .py (default: main)")
    parser.add_argument(
        "--launcher", choices=("local", "submitit"), default="local", help="submitit: on the machines of Slurm"
    )
    parser.add_argument(
        "--submit", action="append", default=[], metavar="NAME=VALUE",
        help="parameter of submitit's AutoExecutor, e.g. slurm_partition=gpu, gpus_per_node=1, timeout_min=240",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if wrong := [text for text in args.submit if "=" not in text or args.launcher == "local"]:
        parser.error(f"--submit is {wrong[0]}, expected NAME=VALUE, together with --launcher submitit")
    check_repeat(parser, args.repeat, "REPEAT")
    if args.max_jobs < 1:
        parser.error(f"MAX_JOBS is {args.max_jobs}, expected at least 1")
    if not 0 <= args.sleep < float("inf"):
        parser.error(f"SLEEP is {args.sleep}, expected seconds, 0 or more")
    return args


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 all finished; 1 a job failed, or none could be started; 2 wrong command line; 130 stopped."""
    args = parse_args(argv)
    return to_status(lambda: run_folder(args), JobError, OSError)


def run_folder(args: argparse.Namespace) -> int:
    """Run the waiting configurations of a folder, and report; returns the exit status."""
    own_main = find_main(args.main) == OWN_MAIN
    with alone_with(args.config_dir):
        jobs, finished = find_jobs(args.config_dir, args.repeat, own_main)
        plan = make_plan(args, len(jobs), os.environ)
        queue = Queue(jobs, plan, len(jobs))
        if args.launcher == "submitit":
            options = {name: yaml.safe_load(value) for name, value in (text.split("=", 1) for text in args.submit)}
            queue = SubmittedQueue(jobs, plan, len(jobs), args.config_dir / "submitit", options)
        elif plan.threads:  # must precede the import of libraries that read it once
            os.environ["OMP_NUM_THREADS"] = str(plan.threads)
        if jobs:
            queue.run()
    print(report(queue, finished))
    return 1 if queue.failures else 0


def to_status(work: Callable[[], int], *errors: type[Exception]) -> int:
    """Call ``work``, which runs jobs, and return its exit status; 1 for one of ``errors``, 130 if interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not under nohup
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        return work()
    except errors as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; type the same command again to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.path.insert(0, str(RUN))
    from command_line import run_program

    sys.exit(run_program(main))
