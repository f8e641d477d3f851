"""What TensorBoard, Weights & Biases and MLflow have stored of a metric, read from their files."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path

Records = dict[str, list[tuple[int, float]]]
"""The value of each metric at each step at which it was logged."""

BLOCK = 2**15
WHOLE, LAST = 1, 4


def tensorboard(folder: Path) -> Records:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Records = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend(
                (each.step, each.value) for each in events.Scalars(tag)
            )
    return found


def wandb(folder: Path, axis: str) -> Records:
    """The history of the offline runs in a folder, by the metric that is their axis."""
    from wandb.proto import wandb_internal_pb2

    found: Records = {}
    for path in sorted(folder.rglob("offline-run-*/run-*.wandb")):
        for data in _log_records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            for key in row.keys() - {axis}:
                if axis in row and not key.startswith("_"):
                    found.setdefault(key, []).append((row[axis], row[key]))
    return found


def mlflow(address: str) -> Records:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(address)
    found: Records = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            for key in run.data.metrics:
                history = client.get_metric_history(run.info.run_id, key)
                found.setdefault(key, []).extend((each.step, each.value) for each in history)
    return found


def _log_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log as LevelDB writes it, behind a header of seven bytes.

    It is in blocks, which no fragment of a record crosses. Each fragment has a checksum, a length
    and a kind: the whole record, its first, a middle, or its last part.
    """
    stream, parts = io.BytesIO(data), []
    stream.seek(7)
    while stream.tell() < len(data):
        left = BLOCK - stream.tell() % BLOCK
        if left < 7:
            stream.seek(left, io.SEEK_CUR)
            continue
        _, length, kind = struct.unpack("<IHB", stream.read(7))
        parts.append(stream.read(length))
        if kind in (WHOLE, LAST):
            yield b"".join(parts)
            parts = []
