"""Training speed compared with a peer: an epoch from eight sources, in edgedistill and in torchdistill.

    pip install torchdistill
    CUDA_VISIBLE_DEVICES= python -m benchmarks.peer_torchdistill        four to six minutes on two cores

edgedistill runs each source once and caches its outputs; torchdistill runs its teachers in the training loop (release
0.3.3 could cache the outputs of a teacher, `CacheableDataset`; 1.1.5 cannot). The two are interleaved in one process,
in rounds; each round gives a ratio. The table also has the cost of the cache, and the number of epochs from which
edgedistill is faster with that cost included. The claim to test: at least five times as fast. It cannot hold for a
student as large as its sources: its own step costs three or four of their forward passes on either side.

The same on both sides: the nets and their initial weights, the images, the batch size, the augmentation (edgedistill's,
of a whole batch; for torchdistill in a registered collate function), the memory layout, the losses and their weights (a
test compares the gradients), AdamW, and the process with its threads. An epoch has every image once, each with a label:
which images have one does not change the cost of an epoch.

torchdistill's own: DistillationBox with its data loader, forward hooks, WeightedSumLoss of a KDLoss a source and a
CrossEntropyLoss, optimizer and epoch processes. The loop over the loader is the one of its
examples/torchvision/image_classification.py, without logs and validation.

Different by design: torchdistill's teachers see the augmented image, the cache has outputs of the original image.
edgedistill also keeps the moving average of the weights. Neither side saves or evaluates anything here.
"""

from __future__ import annotations

import sys
from importlib import util

from benchmarks.lines import append
from benchmarks.peer_torchdistill.settings import SETTINGS
from benchmarks.peer_torchdistill.table import CLAIM, ratio, verdict
from benchmarks.peer_torchdistill.timing import measure
from edgedistill.console import say
from edgedistill.distributed.device import default_device


def main() -> None:
    """Measure every setting and append the lines."""
    if util.find_spec("torchdistill") is None:
        sys.exit("torchdistill is not installed here; pip install torchdistill")
    if default_device().type != "cpu":
        sys.exit("these lines are of a CPU; set CUDA_VISIBLE_DEVICES=, or run python -m benchmarks.gpu")
    for setting in SETTINGS:
        line = measure(setting)
        middle, low, high = ratio(line["seconds"])
        say(f"{setting.family}: {middle:.2f} [{low:.2f}, {high:.2f}] times as fast; {CLAIM:.0f}: {verdict(low, high)}")
        say(str(append("peer_torchdistill", line)))


if __name__ == "__main__":
    main()
