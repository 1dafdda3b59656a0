"""The core stands on its own: on few packages, and small enough to be read in an afternoon."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# What the core may import; timm in its turn needs torchvision and pillow.
CORE_NEEDS = {"torch", "timm", "numpy", "h5py", "pandas", "safetensors", "pyyaml", "tqdm"}
CORE_NEEDS |= {"filelock", "torchvision", "pillow"}
CORE = [
    "model",
    "kernels",
    "batches",
    "train",
    "transfer",
    "readout",
    "scores",
    "crowd",
    "trials",
    "backbone",
    "features",
    "predict",
    "optim",
    "checkpoint",
    "parallel",
    "config",
    "resume",
    "paths",
    "progress",
    "errors",
]
IMPORTED_AS = {"scikit-learn": "sklearn", "ipykernel": "ipykernel"}
MOST_LINES = 3500  # that `import ubrain.train` reads; 6,004 before the core was freed

PROGRAM = """
import importlib, json, sys
refused, modules = json.loads(sys.argv[1]), json.loads(sys.argv[2])

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in refused:
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for module in modules:
    importlib.import_module(module)
ours = [m.__file__ for name, m in sys.modules.items() if name.partition(".")[0] == "ubrain"]
print(json.dumps(ours))
"""


def import_alone(modules):
    """Import modules in a process without the packages that the core does not need: our files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {Requirement(line).name for line in project["dependencies"]} - CORE_NEEDS
    refused = [IMPORTED_AS.get(name, name).replace("-", "_") for name in sorted(names)]
    arguments = [json.dumps(refused), json.dumps(modules)]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_core_imports_with_few_packages_and_without_the_wings():
    files = {
        Path(f).relative_to(ROOT / "ubrain") for f in import_alone([f"ubrain.{m}" for m in CORE])
    }
    assert files == {Path(f"{module}.py") for module in CORE} | {Path("__init__.py")}


def test_to_train_reads_little_of_ours():
    files = import_alone(["ubrain.train"])
    lines = sum(len(Path(f).read_text(encoding="utf-8").splitlines()) for f in files)
    assert lines <= MOST_LINES, f"{lines} lines in {len(files)} files"
