#!/bin/sh
# Measures a bundle of edgedistill with every backend that this board has, and packs the reports into one file.
#
#   sh measure.sh BUNDLE [NAME]      NAME: of the file and of the device in the report; default: the board's host name
#   PYTHON=~/venv/bin/python sh measure.sh BUNDLE      another Python; SECONDS_EACH=5 measures longer, SAMPLES=30 less
#
# It needs Python 3.8, numpy and a runtime (deploy/jetson.md says which), nothing of edgedistill but the bundle, and no network.
# It writes NAME.zip in the current folder, with job.json and report.json of each backend: figures, and what the board
# and its runtimes are called. No picture leaves the board.
set -eu

bundle=${1:?usage: sh measure.sh BUNDLE [NAME]}
name=${2:-$(hostname | tr -c 'A-Za-z0-9\n' '-' | cut -c 1-32)}
python=${PYTHON:-python3}
here=$(pwd)
case $python in
    /*) ;;
    */*) python=$here/$python ;;
esac

cd "$bundle"
sha256sum --check --quiet SHA256SUMS
SECONDS_EACH=${SECONDS_EACH:-2} SAMPLES=${SAMPLES:-300} exec "$python" - "$here/$name.zip" <<'PYTHON'
import json
import os
import subprocess
import sys
import tempfile
import shutil
import zipfile

sys.path.insert(0, "agent.pyz")
from agent import backends, job  # noqa: E402

archive = sys.argv[1]
with open("bundle.json", encoding="utf-8") as stream:
    bundle = json.load(stream)
models = bundle["models"]
measured = {}
for name, version in backends.available().items():
    if version.startswith("not here"):
        print("%s: %s" % (name, version))
        continue
    fitting = [model for model in models if backends.runs(name, model["target"])]
    if not fitting:
        print("%s %s: the bundle has no graph for it" % (name, version))
        continue
    ordered = sorted(fitting, key=lambda model: model["precision"] != "fp32")
    request = {
        "version": job.VERSION,
        "backend": name,
        "models": [
            {"name": model["name"], "path": model["file"], "sha256": model["sha256"], "precision": model["precision"]}
            for model in ordered
        ],
        "modes": list(backends.create(name).modes),
        "images": "images.npy",
        "labels": "labels.npy",
        "host_predictions": {
            model["name"]: "host.%s.npy" % model["name"]
            for model in ordered
            if os.path.isfile("host.%s.npy" % model["name"])
        },
        # the way from a picture to its label, at the size that `edgedistill bench` takes by default
        "pictures": {"width": 1280, "height": 720, "store_px": bundle["store_px"], "fit": bundle["fit"]},
        "threads": 1,
        "processes": 3,
        "rounds": 5,
        "samples": int(os.environ["SAMPLES"]),
        "seconds": float(os.environ["SECONDS_EACH"]),
        "accuracy_images": 500,
    }
    folder = tempfile.mkdtemp()
    try:
        for file in os.listdir("."):
            os.symlink(os.path.abspath(file), os.path.join(folder, file))
        with open(os.path.join(folder, "job.json"), "w", encoding="utf-8") as stream:
            json.dump(request, stream)
        # without the list of standard input, which is this program
        command = [sys.executable, "agent.pyz", "job.json"]
        print("%s %s: measuring %d graphs" % (name, version, len(ordered)), flush=True)
        code = subprocess.call(command, cwd=folder, stdin=subprocess.DEVNULL)
        if code == 0:
            contents = {}
            for file in ("job.json", "report.json"):
                with open(os.path.join(folder, file), encoding="utf-8") as stream:
                    contents[file] = stream.read()
            measured[name] = contents
        else:
            print("%s: failed with exit code %d; the other backends are measured" % (name, code))
    finally:
        shutil.rmtree(folder)
if not measured:
    sys.exit("measure.sh: no backend could be measured; see the lines above")
with zipfile.ZipFile(archive + ".part", "w", zipfile.ZIP_DEFLATED) as packed:
    for name, contents in measured.items():
        for file, text in contents.items():
            packed.writestr("%s/%s" % (name, file), text)
os.replace(archive + ".part", archive)
print("%s: %s" % (archive, ", ".join(measured)))
PYTHON
