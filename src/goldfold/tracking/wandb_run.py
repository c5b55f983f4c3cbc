"""A W&B run that nothing waits for and whose failures harm nobody."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from goldfold import files
from goldfold.config.schema import Tracking
from goldfold.progress import say, warn
from goldfold.tracking.modes import PARAMETERS, RUN_ID, SWEEP_ID, Sweep, has_key, import_wandb, wandb_mode

Pixels = npt.NDArray[np.uint8]

START_SECONDS, FINISH_SECONDS = 30.0, 60.0
"""How long W&B may take to reach its server, and to send what is left at the end."""
WAIT_SECONDS = 180.0
"""How long the end of a fold waits for all that, should W&B not keep to these limits."""
SMALL = 1_000_000
"""Bytes: larger files of a run are in its manifest only."""
LEAST_FREE = 1_000_000
"""Bytes: with less on W&B's disk, it may have lost lines; it does not say so itself."""
LEFT_OUT = ("wandb.json",)
"""Files of a run that its manifest does not list."""


class WandbRun:
    """One W&B run: of a fold, or of a whole run or ensemble. ``group`` is the run's name, ``job_type`` the stage.

    Calls only note what is to be done; a thread of its own does it, so that a slow network slows no training. Whatever
    fails there gives one warning. A run that cannot go online is kept offline. ``finish`` waits for what is left, for a
    limited time.
    """

    def __init__(
        self,
        settings: Tracking,
        *,
        project: str,
        run: str,
        fold: str,
        job_type: str,
        config: Mapping[str, Any],
        folder: Path,
        id: str | None = None,
        tags: Iterable[str] = (),
        sweep: Sweep | None = None,
    ) -> None:
        """``fold``: a fold's folder, or what else the run is of. The same ``id`` goes on with that run.

        ``sweep``: the run that a sweep's agent waits for; only one of a process can be that. Raises BadInput when the
        package wandb is not installed.
        """
        self.fell_back = False
        """Whether it is offline although online was asked for."""
        self.broken = False
        """Whether something of it failed for good."""
        self._run: Any = None
        self._tasks: queue.SimpleQueue[tuple[str, Callable[[], object]] | None] | None = None
        mode = wandb_mode(settings) if settings.wandb else "disabled"
        if mode == "disabled":
            return
        self._wandb = import_wandb()
        folder = folder.resolve()
        self._folder, self._mode, self._sweep = folder, mode, sweep
        self._options: dict[str, Any] = {
            "project": settings.project or project,
            "entity": settings.entity,
            "group": run,
            "name": f"{run}-{fold}",
            "job_type": job_type,
            "tags": [*settings.tags, fold, *tags],
            "id": id,
            "config": {**config, **(sweep.parameters if sweep else {})},
            "dir": str(folder),
            "reinit": "create_new",  # several runs in one process
        }
        if sweep is not None:
            # The agent names them in the environment; its run lies where the sweep lies.
            self._options |= {"id": sweep.run, "project": None, "entity": None}
        self._tasks = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"wandb {run}-{fold}", daemon=True)
        self._thread.start()
        self._later("start", self._start)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """A point of the curves; None is left out."""
        known = _known(values)
        self._later("log", lambda: self._run.log(known, step=step))

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Final values; None is left out."""
        known = _known(values)
        self._later("log", lambda: self._run.summary.update(known))

    def show(self, key: str, pictures: Callable[[], Iterable[tuple[Pixels, str]]]) -> None:
        """Images (H, W, C) uint8 with captions, drawn when their turn comes."""

        def send() -> None:
            shown = [self._wandb.Image(pixels, caption=text) for pixels, text in pictures()]
            if shown:
                self._run.log({key: shown})

        self._later("log images", send)

    def keep_files(self, name: str, kind: str, folder: Path) -> None:
        """An artifact of a folder: manifest.json lists all files (path, bytes, sha256); the small ones go with it."""
        folder = folder.resolve()  # `wandb sync` may be called from anywhere

        def send() -> None:
            entries = list_files(folder)
            manifest = Path(self._run.dir) / "manifest.json"
            files.write_json(manifest, {"source": name, "files": entries})
            artifact = self._wandb.Artifact(
                name, type=kind, metadata={"bytes": sum(entry["bytes"] for entry in entries)}
            )
            paths = {"manifest.json": manifest}
            paths |= {entry["path"]: folder / entry["path"] for entry in entries if entry["bytes"] <= SMALL}
            for path, file in paths.items():
                # immutable: no second copy in W&B's own folders
                artifact.add_file(str(file), name=path, policy="immutable", skip_cache=True)
            self._run.log_artifact(artifact)

        self._later("keep files", send)

    def finish(self, failed: bool = False) -> bool:
        """Send what is left and end the run. Returns whether W&B has taken everything, or keeps it offline."""
        if self._tasks is None:
            return False
        self._later("finish", lambda: self._run.finish(exit_code=1 if failed else 0))
        self._tasks.put(None)
        self._tasks = None
        self._thread.join(WAIT_SECONDS)
        if self._thread.is_alive():
            self.broken = True
            warn("W&B does not finish; the training goes on without waiting (`wandb sync` may upload what is left)")
        elif not self.broken and _free_bytes(self._folder) < LEAST_FREE:
            self.broken = True
            warn(f"W&B: no space is left under {self._folder}, so its record may be cut; metrics.jsonl has everything")
        return not self.broken

    def _later(self, what: str, call: Callable[[], object]) -> None:
        if self._tasks is not None:
            self._tasks.put((what, call))

    def _work(self) -> None:
        tasks = self._tasks
        assert tasks is not None
        while (task := tasks.get()) is not None:
            what, call = task
            if self.broken and (what != "finish" or self._run is None):
                continue
            try:
                call()
            except BaseException as error:  # W&B may even call sys.exit; here it ends no more than this run
                if not self.broken:
                    warn(f"W&B could not {what} ({_reason(error)}); the training goes on, metrics.jsonl has everything")
                self.broken = True

    def _start(self) -> None:
        try:
            if self._mode == "online" and not has_key():
                raise PermissionError("there is no key; `wandb login` stores one")  # else W&B asks, and waits
            self._run = self._init(self._mode)
        except Exception as error:
            if self._mode == "online":
                warn(f"W&B could not go online ({_reason(error)}); this run is kept offline")
                self.fell_back = True
                # Its service still holds the id of the run that it could not start.
                self._options["id"] = f"{self._options['id']}-offline" if self._options["id"] else None
            self._run = self._init_again()
        online = self._mode == "online" and not self.fell_back
        say(f"W&B: {self._options['name']}: {self._run.url if online else Path(self._run.dir).parent}")

    def _init_again(self) -> Any:
        """Offline, if need be with a new service: an earlier run may have ended with a crash of the old one."""
        try:
            return self._init("offline")
        except Exception:
            with contextlib.suppress(Exception, SystemExit):
                self._wandb.teardown()
            os.environ.pop("WANDB_SERVICE", None)
            return self._init("offline")

    def _init(self, mode: str) -> Any:
        settings: dict[str, Any] = {"console": "off", "init_timeout": START_SECONDS, "finish_timeout": FINISH_SECONDS}
        settings["finish_timeout_raises"] = True
        if self._sweep is not None:
            settings["sweep_id"] = self._sweep.id
        # Older versions know fewer settings.
        known = {key: value for key, value in settings.items() if key in self._wandb.Settings.model_fields}
        # Its reports on its own errors would hold up the end of a command for 20 s when the network is dead.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        with _without_sweep():
            return self._wandb.init(
                **self._options,
                mode=mode,
                resume="allow" if mode == "online" and self._options["id"] and self._sweep is None else None,
                settings=self._wandb.Settings(**known),
            )


def list_files(folder: Path) -> list[dict[str, Any]]:
    """Every file under a folder, by path: ``path``, ``bytes``, ``sha256``. Unfinished writes are left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return [
        {
            "path": path.relative_to(folder).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": files.sha256_file(path),
        }
        for path in paths
        if path.name not in LEFT_OUT
    ]


@contextlib.contextmanager
def _without_sweep() -> Iterator[None]:
    """Hide the sweep from W&B, which else makes every run of the process that of the trial."""
    held = {name: os.environ.pop(name) for name in (SWEEP_ID, RUN_ID, PARAMETERS) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _free_bytes(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return float("inf")
