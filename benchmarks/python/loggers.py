"""Each way to log a step's values, as its users write it.

log() takes what prepared() or host() made: the first from values that the program has anyway, the second from the
outputs of a jitted step, where all but usp have to wait for the device. The defaults of each library are left as they
are, but for what would ask the network or the terminal.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import SCALARS, WEIGHTS


def flat(values: Mapping[str, Any]) -> dict[str, float]:
    """A number for each name: what libraries take that know no vectors."""
    out = {name: float(values[name]) for name in SCALARS}
    rho = values["rho"]
    for i in range(WEIGHTS):
        out[f"rho_{i}"] = float(rho[i])
    return out


class Nothing:
    """The loop alone. Its time per call is that of the two readings of the clock."""

    title = "nothing"
    packages: tuple[str, ...] = ()
    steps = 500  # in a block
    waits = True  # for the step to end, before values of the device can be had

    def __init__(self, where: Path) -> None:
        self.where = where

    def prepared(self, values: Mapping[str, Any]) -> Any:
        """From values that are in the host's memory."""
        return flat(values)

    def host(self, tele: Mapping[str, Any]) -> Any:
        """From outputs of a jitted function: in one transfer, which waits for the step to end."""
        import jax

        return flat(jax.device_get(tele))

    def log(self, step: int, values: Any) -> None:
        """The call that is measured."""

    def settle(self) -> None:
        """Returns when what was logged so far is no work any more, as far as that can be known."""

    def close(self) -> dict[str, Any]:
        """Ends it in order; what it says of what was kept."""
        return {}


class NoLog(Nothing):
    """The loop without any logging: device values stay where they are."""

    waits = False

    def host(self, tele: Mapping[str, Any]) -> Any:
        return tele


class JSONLines(Nothing):
    """json.dumps and a line in a file that is buffered as open() does."""

    title = "JSON lines"

    def __init__(self, where: Path) -> None:
        self.file = open(where / "log.jsonl", "w", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def log(self, step: int, values: Any) -> None:
        self.file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")

    def close(self) -> dict[str, Any]:
        self.file.close()
        return {}


class WandB(Nothing):
    """run.log of wandb in its offline mode: its service process writes a file, nothing is sent."""

    title = "wandb, offline"
    packages = ("wandb",)

    def __init__(self, where: Path) -> None:
        os.environ["WANDB_SILENT"] = "true"
        import wandb

        self.run = wandb.init(project="bench", dir=where, mode="offline")

    def log(self, step: int, values: Any) -> None:
        self.run.log(values, step=step)

    def settle(self) -> None:
        time.sleep(0.3)

    def close(self) -> dict[str, Any]:
        self.run.finish()
        return {}


class TensorBoardX(Nothing):
    """SummaryWriter.add_scalar of tensorboardX, a call for each number; with crc32c, which makes it faster."""

    title = "SummaryWriter, tensorboardX"
    packages = ("tensorboardX", "crc32c")

    def __init__(self, where: Path) -> None:
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(where))

    def log(self, step: int, values: Any) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def settle(self) -> None:
        time.sleep(0.3)

    def close(self) -> dict[str, Any]:
        self.writer.close()
        return {}


class TensorBoard(Nothing):
    """TensorBoard's own EventFileWriter, on which PyTorch's SummaryWriter stands: an event for each number."""

    title = "EventFileWriter, tensorboard"
    packages = ("tensorboard",)

    def __init__(self, where: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.event, self.summary = Event, Summary
        self.writer = EventFileWriter(str(where))

    def log(self, step: int, values: Any) -> None:
        for name, value in values.items():
            summary = self.summary(value=[self.summary.Value(tag=name, simple_value=value)])
            self.writer.add_event(self.event(wall_time=time.time(), step=step, summary=summary))

    def settle(self) -> None:
        time.sleep(0.3)

    def close(self) -> dict[str, Any]:
        self.writer.close()
        return {}


class MLflow(Nothing):
    """log_metrics of MLflow with synchronous=False, into SQLite, its default store for local files."""

    title = "MLflow, asynchronous"
    packages = ("mlflow-skinny", "sqlalchemy")
    steps = 50  # it stores some hundred of them in a second, and keeps the rest in memory

    def __init__(self, where: Path) -> None:
        os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
        import logging

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        import mlflow

        self.mlflow = mlflow
        mlflow.set_tracking_uri(f"sqlite:///{where}/mlflow.db")
        mlflow.set_experiment("bench")
        mlflow.start_run()

    def log(self, step: int, values: Any) -> None:
        self.mlflow.log_metrics(values, step=step, synchronous=False)

    def settle(self) -> None:
        self.mlflow.flush_async_logging()

    def close(self) -> dict[str, Any]:
        self.mlflow.flush_async_logging()
        self.mlflow.end_run()
        return {}


class USP(Nothing):
    """Run.emit, with a recorder that stores every record and logs the digest of every step's weights."""

    title = "usp"
    waits = False

    def __init__(self, where: Path) -> None:
        os.environ["USP_RECORDER_KEY_FILE"] = str(where / "signing.key")
        import usp

        specs = {name: usp.field("metric", (), "f64") for name in SCALARS}
        fields = usp.fields(**specs, rho=usp.field("digest", (WEIGHTS,), "f64"))
        self.run = usp.Run(fields=fields, dir=where / "runs")
        self.emit = self.run.emit

    def prepared(self, values: Mapping[str, Any]) -> Any:
        return {**{name: float(values[name]) for name in SCALARS}, "rho": np.asarray(values["rho"], np.float64)}

    def host(self, tele: Mapping[str, Any]) -> Any:
        return tele

    def log(self, step: int, values: Any) -> None:
        self.emit(step, values)

    def settle(self) -> None:
        caught_up(self.run)

    def close(self) -> dict[str, Any]:
        native = self.run.native
        summary = self.run.close()
        return {"native": native, **{key: summary[key] for key in ("emitted", "stored", "lost", "dropped")}}


def consumer(run: Any) -> Any:
    """What the recorder says in the ring of a run: pid, position, stored."""
    return run._session.ring.consumer()


def caught_up(run: Any, timeout: float = 10.0) -> bool:
    """Waits until the recorder has stored all that was emitted."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        # Records with device values may still be on their way into the ring: two looks apart must agree.
        before = run.emitted
        time.sleep(0.02)
        now = consumer(run)
        if run.emitted == before and now.stored + now.lost >= before:
            return True
    return False


LOGGERS: dict[str, type[Nothing]] = {
    "nothing": NoLog, "jsonl": JSONLines, "wandb": WandB, "tensorboardx": TensorBoardX, "tensorboard": TensorBoard,
    "mlflow": MLflow, "usp": USP,
}  # fmt: skip
