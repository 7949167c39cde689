"""The record of a device where only some images have a label, as of somebody else's model."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.agent import metrics
from edgedistill.devices.bench import AgentReport, Measurement, device_records
from edgedistill.measurements import HOST_TO_HOST, Device
from edgedistill.records import Accuracy


@pytest.mark.parametrize("unlabeled", [0, 40, 100])
def test_accuracy_is_told_only_where_every_image_has_a_label(unlabeled: int) -> None:
    predicted_N = np.arange(100) % 3
    labels_N = np.where(np.arange(100) < unlabeled, -1, predicted_N)
    measured = Measurement(
        name="fp32",
        mode=HOST_TO_HOST,
        batch=1,
        window="",
        sha256="",
        precision="fp32",
        samples_ms=(1.0,),
        cells=((0, 0, 1),),
        warmup_ms=(),
        accuracy=Accuracy(**metrics.accuracy(labels_N, predicted_N)),
        agreement_with_host=1.0,
        ratio_to_fp32=None,
        warnings=(),
    )
    report = AgentReport(version=1, backend="onnxruntime-cpu", backend_version="", facts={}, results=(measured,))
    (record,) = device_records(Device(name="local"), report, labels_N)
    assert (record.accuracy is None) == bool(unlabeled)
    assert record.accuracy is None or record.accuracy.top1 == 1.0
