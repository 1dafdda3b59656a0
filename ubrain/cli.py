"""`ubrain ...`: thin commands around the module.

An option is written where its function is (see `ubrain.options`); here stands what only the command
line has.
"""

import atexit
import errno
import inspect
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

from ubrain import __version__
from ubrain.data.importers import Importer, built_in, of_other_packages
from ubrain.errors import MOST, UbrainError, cut
from ubrain.options import Command, parameters

F = TypeVar("F", bound=Callable[..., object])


class Group(click.Group):
    """Commands in the order in which they are defined."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return list(self.commands)

    def add(self, name: str, sources: str = "", **more: Any) -> Callable[[F], F]:
        """Decorator that makes a command of a function; see `ubrain.options.Command`."""

        def register(function: F) -> F:
            self.add_command(Command(name, function, sources, **more))
            return function

        return register


app = Group("ubrain", help="A universal brain encoder: one model for every voxel of every subject.")
click.version_option(__version__, prog_name="ubrain")(app)


@app.add(
    "simulate",
    "data.simulate:simulate_crowd config:SimulationConfig",
    without="config snr spread lacking",
)
def simulate(out: str, seed: int, append: bool, **sizes: Any) -> None:
    """Simulate a crowd with known ground truth."""
    from ubrain.config import SimulationConfig
    from ubrain.data.simulate import simulate_crowd

    simulate_crowd(out, SimulationConfig(**sizes), seed, append)
    info(Path(out))


@app.add("info", arguments="crowd")
def info(crowd: Path, ceilings: bool = False) -> None:
    """Print what is inside a crowd file.

    Parameters
    ----------
    crowd : crowd file (.h5).
    ceilings : ncsnr by area, and noise ceilings beside the published ones, of each subject.
    """
    import numpy as np

    from ubrain.crowd import Crowd

    with Crowd(crowd) as opened:
        counts = ", ".join(f"{len(opened.split_rows(s))} {s}" for s in ("train", "val", "test"))
        print(
            f"{crowd}: {len(opened.image_ids)} images ({counts}), "
            f"{'simulated, with ground truth' if opened.simulated else 'recorded'}"
        )
        for view in map(opened.with_scheme, opened.schemes):
            n = [len(view.split_rows(s)) for s in ("train", "val", "test")]
            n.append(len(opened.image_ids) - sum(n))
            print("splits of scheme {}: {} train, {} val, {} test, {} none".format(view.scheme, *n))
        print(
            f"{'subject':<12} {'dataset':<16} {'scanner':<8} {'voxels':>7} {'trials':>7}"
            f" {'train':>6} {'val':>5} {'test':>5} {'ceiling r':>9}  areas"
        )
        for name in opened.subjects:
            s = opened[name]
            n = [len(s.image_rows(split)) for split in ("train", "val", "test")]
            ceiling = s.noise_ceiling("test") if n[2] else np.array([np.nan])
            middle = (
                f"{np.sqrt(np.nanmedian(ceiling)):.2f}" if np.isfinite(ceiling).any() else "unknown"
            )
            areas = [a for a in dict.fromkeys(",".join(s.voxels["areas"]).split(",")) if a]
            shown = " ".join(areas[:8]) + (f" and {len(areas) - 8} more" if len(areas) > 8 else "")
            print(
                f"{name:<12} {s.dataset:<16} {s.scanner:<8} {s.n_voxels:>7} {s.n_trials:>7}"
                f" {n[0]:>6} {n[1]:>5} {n[2]:>5} {middle:>9}  {shown or '-'}"
            )
        if ceilings:
            from ubrain.data.importers import masks

            print("", *(masks.report(opened[name]) for name in opened.subjects), sep="\n\n")


@app.add("check", "data.doctor:check", arguments="crowd", names="as_json=json")
def check(crowd: str, seed: int, as_json: bool = False) -> None:
    """Look for what is wrong with a crowd file. Exit code 0: nothing, 1: warnings, 2: errors.

    Parameters
    ----------
    as_json : findings as JSON, for programs.
    """
    from ubrain.data import doctor

    findings = doctor.check(crowd, seed)
    print(doctor.as_json(findings) if as_json else f"{crowd}: {doctor.report(findings)}")
    sys.exit(doctor.exit_code(findings))


@app.add("fetch", "data.fetch:fetch", arguments="name", names="list_all=list", without="entry out")
def fetch(
    only: str, name: str = "", out: Path | None = None, list_all: bool = False, yes: bool = False
) -> None:
    """Download recordings that need no agreement. Run again to continue.

    Parameters
    ----------
    name : name of a dataset; --list shows them.
    out : folder to download into.
    list_all : show what can be fetched.
    yes : terms are read and accepted: do not ask in a terminal.
    """
    from ubrain.data import fetch as downloads

    if list_all:
        print(downloads.listing(downloads.catalogue()))
        return
    entry = downloads.find(name)
    if out is None:
        raise UbrainError("--out FOLDER is missing: where to?")
    print(downloads.conditions(name, entry), flush=True)
    if not yes and sys.stdin.isatty():
        click.confirm("Download under these terms?", abort=True)
    for path in downloads.fetch(entry, out, only):
        print(path)


@app.add(
    "train",
    "config:TrainingConfig config:BackboneConfig",
    unset=True,
    names="name=backbone",
    only="epochs batches_per_step precision device name weights levels image_size grid keep_cls"
    " registers checkpointing",
)
def train(
    crowd: Path,
    out: Path,
    profile: str = "fast",
    recipe: str | None = None,
    subjects: Sequence[str] | None = None,
    split_scheme: str | None = None,
    seed: int = 0,
    pretrained: bool | None = None,
    adapters: int | None = None,
    tensorboard: bool = False,
    on: str = "local",
    resources: Path | None = None,
    **more: Any,
) -> None:
    """Train an encoder on one subject or on a crowd; on several GPUs or machines under torchrun or
    accelerate launch. What is not given is the profile's.

    Parameters
    ----------
    crowd : crowd file (.h5).
    out : folder for the encoder, checkpoints and the log; rerun to resume.
    profile : smoke, fast or paper.
    recipe : ours, or paper: how the released code trains; default: the profile's.
    subjects : names separated by commas; default: all.
    split_scheme : name of a scheme of splits in the crowd file; default: its own splits.
    seed : seed of everything random.
    pretrained : short for --weights hub (a download), or random.
    adapters : rank of adapters on a ViT: train from images (paper: 7).
    tensorboard : also write a TensorBoard log.
    on : local, or slurm: as a job, on as many nodes as the resources say.
    resources : YAML file of what a job asks for, see docs/scaling.md.
    """
    from ubrain.config import BackboneConfig, load_profile
    from ubrain.crowd import Crowd
    from ubrain.exchange.hub import CARD, write_card
    from ubrain.features import choose_source
    from ubrain.parallel import choose_device, launched
    from ubrain.paths import check_out
    from ubrain.train import check_images, fit

    given = {key: value for key, value in more.items() if value is not None}
    if pretrained is not None:
        if "weights" in given:
            raise UbrainError(
                "--pretrained and --weights both say which weights the backbone gets; give one of"
                " them"
            )
        given["weights"] = "hub" if pretrained else "random"
    if adapters is not None:
        given["adapter_rank"] = adapters
    chosen = load_profile(profile, recipe)
    check_out(out, folder=True)
    model: dict[str, Any] = {"image_size": None} if "name" in given else {}
    model |= {f.name: given.pop(f.name) for f in fields(BackboneConfig) if f.name in given}
    if "epochs" in given:
        given["min_steps"] = 0  # what was asked for is what is done
    backbone, training = replace(chosen.backbone, **model), replace(chosen.training, **given)
    with Crowd(crowd) as opened:
        names, view = list(subjects or opened.subjects), opened.with_scheme(split_scheme)
        check_images(view, names)  # before features are computed, which may take hours
        wanted = _queue(on, resources)
        if not wanted:
            device = choose_device(training.device)
            source = choose_source(view, backbone, device, seed)
            fit(source, names, chosen.encoder, training, seed, out, tensorboard)
    if wanted:
        from ubrain.report import slurm

        slurm.train(out, out / CARD, wanted)
        print(f"encoder of {len(names)} subject(s): {out}")
    elif launched()[0] == 0:
        write_card(out)
        print(f"encoder of {len(names)} subject(s): {out}")


@app.add(
    "transfer",
    "exchange.transfers:transfer",
    names="folder=checkpoint n_images=images",
    without="crowd config",
)
def run_transfer(
    crowd: Path,
    out: str,
    profile: str = "fast",
    split_scheme: str | None = None,
    **given: Any,
) -> None:
    """New subjects on a trained encoder: its shared weights stay as they are, only voxel
    embeddings are found.

    Parameters
    ----------
    crowd : crowd file (.h5) of the new subjects.
    profile : smoke, fast or paper: what is searched through, and how long.
    out : checkpoint folder to write; rerun to resume.
    split_scheme : name of a scheme of splits in the crowd file; default: its own splits.
    subjects : names separated by commas; default: all of the crowd file.
    method : ours (the crowd prior), matching, or gradient (the paper's); refit is ours for subjects
        that the encoder was trained on, which may predict better than their trained embeddings.
    seed : seed of everything random.
    device : auto, cpu, cuda, cuda:1, mps.
    """
    from ubrain.config import load_profile
    from ubrain.crowd import Crowd
    from ubrain.exchange.transfers import transfer

    with Crowd(crowd) as opened:
        settings = load_profile(profile).transfer
        view = opened.with_scheme(split_scheme)
        table = transfer(crowd=view, out=out, config=settings, **given)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(f"encoder of {len(table)} new subject(s): {out}")


@app.add("predict", "exchange.predictions:predict_images", without="memory")
def predict(memory: str = "2GiB", **given: Any) -> None:
    """Predict a subject's responses to any images: z-scored units, (n_images, n_voxels), or maps
    of them.

    Parameters
    ----------
    subject : whose voxels.
    out : file to write: .h5, .npz, .nii, .nii.gz, .func.gii or .shape.gii; rerun to resume.
    areas : only voxels in these areas, for example FFA,PPA; default: all.
    device : auto, cpu, cuda, cuda:1, mps.
    precision : fp32 or bf16.
    memory : for what grows with images and voxels; the models come on top.
    batch : images at a time, if memory allows.
    dtype : of the stored responses: float32 or float16.
    """
    from ubrain.exchange.predictions import bytes_of, predict_images

    for path in predict_images(memory=bytes_of(memory), **given):
        print(path)


@app.add("explore", "report.explorer:explore", names="folder=checkpoint")
def explore(**given: Any) -> None:
    """Write a page to click through the voxels of an encoder: one HTML file, without a server."""
    from ubrain.report import explorer

    path = explorer.explore(**given)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser")


@app.add(
    "run",
    "report.runs:run_notebooks",
    arguments="pattern",
    names="pattern=notebook",
    without="parameters jobs",
)
def run(
    pattern: str,
    profile: str,
    crowd: str | None,
    seed: int,
    out: Path | None,
    jobs: str = "auto",
    parameter: list[str] | None = None,
    force: bool = False,
    without_images: bool = False,
    pack: str | None = None,
    split_scheme: str | None = None,
    on: str = "local",
    resources: Path | None = None,
) -> None:
    """Run notebooks and compare with the published numbers. Exit code 1 if one does not agree.

    Parameters
    ----------
    pack : a file from `ubrain pack`, an https address that ends in #sha256=..., or "release": what
        it holds is not trained anew.
    jobs : notebooks at the same time, or auto: as many as cores, at most 4; on a GPU one.
    parameter : a parameter of the notebook, value in YAML: -p seed 3 -p n_images "[25, 100]".
    on : local, or slurm: each notebook a job.
    resources : YAML file of what a job asks for, see docs/scaling.md.
    """
    from ubrain.report import runs

    if force:
        raise UbrainError("run has no --force: `ubrain publish` replaces the published run")
    n_jobs = _n_jobs(jobs)
    given = runs.parse_parameters(parameter or [])
    crowd = str(Path(crowd)) if crowd else None
    if pack is not None:
        from ubrain.report import packs

        packs.unpack(pack, given.get("profile", profile), given.get("seed", seed))
    common = (pattern, profile, crowd, seed, given, out)
    if wanted := _queue(on, resources):
        from ubrain.report import slurm

        outcomes = slurm.run_notebooks(*common, without_images, wanted, split_scheme)
    else:
        outcomes = runs.run_notebooks(*common, n_jobs, without_images, split_scheme)
    for outcome in outcomes:
        print(outcome.file)
    sys.exit(any(outcome.agrees is False for outcome in outcomes))


@app.add("pack", "report.packs:pack", arguments="pattern", names="pattern=notebook", without="jobs")
def make_pack(jobs: str = "auto", **given: Any) -> None:
    """Run notebooks, and put all that they took from the cache into one file: on another machine
    nothing is trained anew.

    Parameters
    ----------
    jobs : notebooks at the same time, or auto: as many as cores, at most 4; on a GPU one.
    """
    from ubrain.report import packs

    print(packs.pack(**given, jobs=_n_jobs(jobs)))


@app.add("unpack", arguments="pack")
def unpack(pack: str = "release") -> None:
    """Put what a pack holds into the cache, for notebooks and the workshop to find.

    Parameters
    ----------
    pack : a file from `ubrain pack`, an https address that ends in #sha256=..., or "release": the
        address in UBRAIN_PACK_URL.
    """
    from ubrain.report import packs

    print(packs.unpack(pack))


def _n_jobs(jobs: str) -> int:
    if jobs != "auto" and not jobs.isdecimal():
        raise UbrainError(f"--jobs {jobs}: expected a number, or auto")
    return 0 if jobs == "auto" else int(jobs)


def _queue(on: str, resources: Path | None) -> Any:
    """What jobs ask for; None if nothing is to be one."""
    if (on, resources) == ("local", None):
        return None
    from ubrain.report import jobs

    return jobs.read_resources(on, resources)


@app.add("publish", "report.runs:publish", arguments="pattern", names="pattern=notebook")
def publish(**given: Any) -> None:
    """For maintainers: put a finished run into papermill_runs/, figures/ and the README."""
    from ubrain.report import runs

    for path in runs.publish(**given):
        print(path)


@app.add(
    "sweep",
    "report.sweep:read_grid report.sweep:sweep",
    arguments="path",
    names="path=grid most_runs=max_runs",
    without="grid out environment resources",
)
def run_sweep(
    path: Path,
    most_runs: int,
    jobs: int,
    out: Path | None = None,
    on: str = "local",
    resources: Path | None = None,
) -> None:
    """Run a notebook with every combination of a grid. Again: runs what is missing. Exit code 1 if
    a run fails.

    The grid is a file such as

        notebook: 03_transfer
        parameters: {profile: fast, seed: [0, 1, 2], n_images: [[25], [100]]}

    where a list is swept over, anything else is fixed, and a value that is a list is a list in a
    list: six runs here.

    Parameters
    ----------
    out : folder of the sweep; default: papermill_runs/sweep-GRID.
    on : local, or slurm: each run a job.
    resources : YAML file of what a job asks for, see docs/scaling.md.
    """
    from ubrain.paths import run_dir
    from ubrain.report import sweep

    grid = sweep.read_grid(path, most_runs)
    folder = out or run_dir(f"sweep-{path.stem}")
    table, errors = sweep.sweep(grid, folder, jobs, resources=_queue(on, resources))
    print(sweep.show(sweep.summary(table, grid)))
    print(
        f"{grid.n_runs - len(errors)} of {grid.n_runs} runs finished; all numbers:"
        f" {folder / sweep.TABLE}"
    )
    for name, error in errors.items():
        print(f"failed: {folder / 'runs' / name}: {error.splitlines()[-1]}", file=sys.stderr)
    sys.exit(bool(errors))


@app.add("report")
def report(
    profile: str = "fast",
    crowd: Path | None = None,
    seed: int = 0,
    split_scheme: str | None = None,
    write: bool = False,
    check: bool = False,
    figure: bool = False,
) -> None:
    """Print what a run says on every claim, notebook by notebook: this machine's run, if there is
    one, or else the published one, on which --write, --check and --figure work.

    Parameters
    ----------
    profile : smoke, fast or paper.
    crowd : the crowd file that was run; default: the simulated crowd.
    seed : of the run.
    split_scheme : of the run, if it was not the crowd file's own splits.
    write : write its tables into README.md and docs/claims.md, between their markers, and
        codecheck.yml, ro-crate-metadata.json and codemeta.json; of the default run only.
    check : exit 1 if a table there is stale.
    figure : also draw the overview figure of the run.
    """
    from ubrain.paths import project_root
    from ubrain.report import archive, claims, runs
    from ubrain.report.claims import pages
    from ubrain.report.lab import run_name

    name = run_name(crowd, profile, seed, split_scheme)
    if (write or check) and name != runs.README_RUN:
        raise UbrainError(f"the pages show the run {runs.README_RUN}, not {name}")
    folder = runs.folder_of(name, own=not (write or check or figure))
    print(f"claims by the numbers in {folder}", file=sys.stderr)
    documents = pages.read_run(folder)
    if figure:
        print(runs.draw_overview(name), file=sys.stderr)
    if write:
        archive.write(name)
    if write or check:
        pages.write(project_root(), folder, check and not write)
    for claim in claims.read():
        if claim.notebook in documents:
            print(claim.notebook[:2], claims.sentence(claims.judge(claim, documents)))


@app.add("bench")
def run_bench(
    size: str = "paper",
    images: int | None = None,
    voxels: int | None = None,
    crowd: int | None = None,
    rounds: int = 3,
    compiled: bool = False,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Time the encoder's head against the literal form of its formulas, and a step, by part.

    Parameters
    ----------
    size : paper (on a CPU with 500 voxels of its 5,000), or fast, the laptop's profile.
    images : in a step; by default those of the size, and so the following.
    voxels : drawn in a step.
    crowd : voxels that exist, of which --voxels are drawn in a step.
    rounds : of which the median is shown.
    compiled : also time the formulas compiled by torch; on a CPU that takes long.
    device : auto, cpu, cuda, cuda:1.
    json : also write the measurements into this file.
    """
    from ubrain.paths import project_root

    if not (project_root() / "benchmarks" / "bench.py").is_file():
        raise UbrainError("the benchmarks are not installed with ubrain; run this in a checkout")
    sys.path.insert(0, str(project_root()))
    bench = import_module("benchmarks.bench")
    given = {"images": images, "voxels": voxels, "crowd": crowd}
    sizes = replace(
        bench.choose_sizes(size, device), **{k: n for k, n in given.items() if n is not None}
    )
    found = bench.bench(sizes, rounds, device, compiled)
    print(bench.table(found))
    if json is not None:
        bench.write_json(found, json)


@app.add("notebooks", "report.runs:rebuild_notebooks")
def notebooks(check: bool) -> None:
    """Rebuild every .ipynb from its .py, and docs/faithfulness.md from the profiles."""
    from ubrain.report.runs import rebuild_notebooks

    changed = rebuild_notebooks(check)
    if check and changed:
        raise UbrainError(
            f"not rebuilt from their sources: {', '.join(p.name for p in changed)}; run `make"
            " notebooks`"
        )
    print("\n".join(map(str, changed)) or "all are up to date")


@app.add("workshop", "report.workshop.sources:build")
def workshop(**given: Any) -> None:
    """Make the notebooks of the workshop from workshop/*.py, for learners or for the instructor."""
    from ubrain.report.workshop.sources import build

    print("\n".join(map(str, build(**given))))


class ImportCommand(Command):
    """`ubrain import NAME`: the importer's own options, and those that all share.

    Its dataset has test images of its own, unless it has a parameter `test_fraction`.
    """

    def __init__(self, importer: Importer) -> None:
        def run(root: str, out: str, dry_run: bool, **given: Any) -> None:
            from ubrain.data.importers.recording import Options

            function = importer.load()
            names = {field.name for field in fields(Options)} - parameters(function).keys()
            shared = {name: given.pop(name) for name in names & given.keys()}
            print(function(root, out, Options(dry_run=dry_run, **shared), **given), end="\n\n")
            if not dry_run:
                info(Path(out))

        super().__init__(importer.name, run, about=importer.about, without="options")
        self.importer = importer

    def targets(self) -> list[Callable[..., object]]:
        """The importer and `Options`."""
        from ubrain.data.importers.recording import Options

        function = self.importer.load()
        if self.importer.package:
            said = (inspect.getdoc(function) or "").split("\n\n")[0]
            self.help = f"{said}\n\n{self.importer.about}"
        if "test_fraction" not in parameters(function):
            self.without.append("test_fraction")
        return [function, Options]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options; one sentence if another package's importer cannot be used."""
        try:
            return super().get_params(ctx)
        except (Exception, SystemExit) as error:
            if not self.importer.package or isinstance(error, UbrainError):
                raise
            raise UbrainError(
                f"import {self.name}: {self.importer.target[:200]} of the package"
                f" {self.importer.package} cannot be used ({type(error).__name__}: {error}); the"
                " other importers are not affected"
            ) from error


class ImporterGroup(Group):
    """Importers of this package, and of others, which are looked for when somebody asks."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return [*self.commands, *of_other_packages()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name in self.commands or cmd_name not in (others := of_other_packages()):
            return self.commands.get(cmd_name)
        return ImportCommand(others[cmd_name])


importers = ImporterGroup("import", help="Bring recordings into a crowd file.")
app.add_command(importers)


@importers.add(
    "arrays",
    "data.importers.arrays:import_arrays data.importers.recording:Options",
    without="subjects follow_links unusual",
)
def import_arrays(out: str, dry_run: bool, **given: Any) -> None:
    """Anybody's recordings: a folder or array of images, and an array of responses."""
    from ubrain.data.importers.arrays import import_arrays

    print(import_arrays(out=out, dry_run=dry_run, **given), end="\n\n")
    if not dry_run:
        info(Path(out))


for importer in built_in():
    importers.add_command(ImportCommand(importer))

rulers = Group("verify", help="Compute numbers that others have published, and compare.")
app.add_command(rulers)


@rulers.add("nsd-alexnet")
def verify_nsd(crowd: Path, weights: str = "hub", encoding: str = "none") -> None:
    """Brain-Score's values of AlexNet on NSD. Exit code 1 if yours differ.

    The crowd file is of eight subjects (--test special515) or of 1, 2, 5 and 7 (shared1000), from
    `ubrain import nsd --dtype float32 --areas V1v,V1d,V2v,V2d,hV4,ventral`, or on fsaverage
    `--space fsaverage --areas Kastner2015:V1v,Kastner2015:V1d,...,ventral`.

    Parameters
    ----------
    crowd : crowd file (.h5) of NSD.
    weights : torchvision's alexnet-owt-7be5be79.pth; hub: its cache or a download; random: for a
        rehearsal.
    encoding : of the images: none, as imported, or jpeg, as Brain-Score's seem to be.
    """
    from ubrain.report import verify

    _verify(crowd, verify.nsd_alexnet, weights=weights, encoding=encoding)


@rulers.add("things-alexnet")
def verify_things(crowd: Path, weights: str = "hub", encoding: str = "none") -> None:
    """Brain-Score's values of AlexNet on THINGS-fMRI. Exit code 1 if yours differ.

    Parameters
    ----------
    crowd : crowd file (.h5) of THINGS-fMRI, float32.
    weights : as of nsd-alexnet.
    encoding : as of nsd-alexnet.
    """
    from ubrain.report import verify

    _verify(crowd, verify.things_alexnet, weights=weights, encoding=encoding)


@rulers.add("ube")
def verify_ube(
    crowd: Path, checkpoint: str, device: str = "auto", weights: str | None = None
) -> None:
    """Median r of the authors' own encoder on NSD. Exit code 1 if yours differs.

    Parameters
    ----------
    crowd : crowd file (.h5) from `ubrain import ube`.
    checkpoint : folder of the authors' encoder, from `ubrain checkpoint import`.
    device : auto, cpu, cuda, cuda:1, mps.
    weights : of the backbone: a .safetensors file; default: what the checkpoint names.
    """
    from ubrain.report import verify

    _verify(crowd, verify.ube, checkpoint=checkpoint, device=device, weights=weights)


@rulers.add("algonauts")
def verify_algonauts(
    crowd: Path,
    checkpoint: str,
    subjects: Sequence[str] | None = None,
    device: str = "auto",
    weights: str | None = None,
) -> None:
    """Noise-normalised r² of an encoder, as the Algonauts 2023 challenge defines it.

    Parameters
    ----------
    crowd : crowd file (.h5); its test images are what is scored.
    checkpoint : checkpoint folder, or owner/name on the Hugging Face hub.
    subjects : names separated by commas; default: all that both have.
    device : auto, cpu, cuda, cuda:1, mps.
    weights : of the backbone: a .safetensors file; default: what the checkpoint names.
    """
    from ubrain.crowd import Crowd
    from ubrain.report import verify

    with Crowd(crowd) as opened:
        table = verify.algonauts(opened, checkpoint, subjects, device, weights)
    print(table.to_string(na_rep="", float_format="{:.3f}".format))
    print(verify.ALGONAUTS_CARE)


@rulers.add("rdm")
def verify_rdm(
    crowd: Path, weights: str = "hub", alpha: float = 0.1, subjects: Sequence[str] | None = None
) -> None:
    """Patterns from RDMs predicted by AlexNet, each image from all others; scored as in Algonauts
    2019.

    Parameters
    ----------
    crowd : crowd file (.h5) from `ubrain import rdm`.
    weights : as of nsd-alexnet.
    alpha : penalty of ridge, in units of the mean diagonal of the kernel.
    subjects : names separated by commas; default: all.
    """
    from ubrain.crowd import Crowd
    from ubrain.report import verify

    with Crowd(crowd) as opened:
        table = verify.rdm(opened, weights, alpha, subjects)
    print(table.to_string(float_format="{:.3f}".format))


def _verify(path: Path, ruler: Callable[..., Any], **given: Any) -> None:
    from ubrain.crowd import Crowd

    with Crowd(path) as crowd:
        verdict = ruler(crowd, **given)
    print(verdict.text())
    sys.exit(not verdict.passed)


checkpoints = Group("checkpoint", help="Look into, convert and pass on trained encoders.")
app.add_command(checkpoints)


@checkpoints.add("show", "exchange.released:show", arguments="path")
def show_checkpoint(path: str) -> None:
    """Print what is inside a checkpoint or a published file; nothing of it is executed.

    Parameters
    ----------
    path : checkpoint folder, or a file of torch.save.
    """
    from ubrain.exchange.released import show

    print(show(path))


@checkpoints.add(
    "import", "exchange.released:import_released", arguments="file", without="subjects backbone"
)
def import_checkpoint(
    out: str,
    subjects: str | None = None,
    backbone: str | None = None,
    levels: tuple[int, ...] | None = None,
    image_size: int | None = None,
    **given: Any,
) -> None:
    """Convert an encoder that its authors published; nothing of the file is executed.

    Parameters
    ----------
    out : checkpoint folder to write.
    subjects : NAME=VOXELS,... in order, or one NAME; default: the 8 of NSD.
    backbone : timm model, if it is no DINOv2 with registers.
    levels : with --backbone: its levels from 0, separated by commas.
    image_size : with --backbone: side of its images.
    """
    from ubrain.config import BackboneConfig
    from ubrain.exchange.released import import_released, parse_subjects

    if backbone is not None:
        chosen = BackboneConfig(backbone, image_size=image_size)
        given["backbone"] = replace(chosen, levels=levels) if levels else chosen
    if subjects:
        given["subjects"] = parse_subjects(subjects)
    print("\n".join([*import_released(out=out, **given), f"checkpoint: {out}"]))


@checkpoints.add("drop", "exchange.hub:drop", arguments="folder")
def drop_subjects(folder: str, subjects: Sequence[str], out: str) -> None:
    """Copy a checkpoint without some of its subjects.

    Parameters
    ----------
    folder : checkpoint folder.
    subjects : subjects to leave out, separated by commas.
    out : checkpoint folder to write.
    """
    from ubrain.errors import some
    from ubrain.exchange import hub

    left = hub.drop(folder, subjects, out)
    print(f"{out}: encoder of {some(left) or 'no subject, the shared weights only'}")


@checkpoints.add(
    "push",
    "exchange.hub:push_to_hub",
    arguments="folder repo_id",
    names="repo_id=name",
    without="private token",
)
def push_checkpoint(folder: str, repo_id: str, public: bool = False) -> None:
    """Upload a checkpoint to the Hugging Face hub, private unless told otherwise.

    Parameters
    ----------
    folder : checkpoint folder.
    repo_id : owner/name on the Hugging Face hub.
    public : for everybody; see what the owners of the data allow.
    """
    from ubrain.exchange import hub

    print(hub.push_to_hub(folder, repo_id, private=not public))


class Terminated(KeyboardInterrupt):
    """Somebody asked this process to end, as a queue does when its time is over."""


def main() -> None:
    """Entry point: an error of the user is one line, and exit code 1 (2: of the command line)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("papermill", "traitlets", "himalaya", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its lines itself
    warnings.filterwarnings("ignore", category=FutureWarning)
    for stream in (sys.stdout, sys.stderr):  # not all know "×", nor all names of files
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("WORLD_SIZE", "1") == "1":  # one of several may wait for the others, in C
        signal.signal(signal.SIGTERM, _terminate)
    code, message = 1, ""
    try:
        sys.exit(app.main(prog_name="ubrain", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        command = (
            error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        )
        message = error.format_message() + (f" See `{command} --help`." if command else "")
        code = error.exit_code
    except click.Abort as error:
        message = "stopped; nothing half-written is left, the same command continues"
        if isinstance(error.__cause__, KeyboardInterrupt):
            code = 143 if isinstance(error.__cause__, Terminated) else 130
    except Exception as error:
        message = _in_words(error)
        if not message:
            raise
    finally:
        # Python takes its time to end; who asks for it then is not told that the work has failed.
        # What is registered last is done first.
        atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    if message:
        print(f"ubrain: {cut(message, MOST)}", file=sys.stderr, flush=True)
    if code > 128:  # without waiting for threads and sockets that dead kernels have left
        os._exit(code)
    sys.exit(code)


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


def _in_words(error: Exception) -> str:
    """What an error says to a user; nothing if it is none of the input, the disk or its rights."""
    from safetensors import SafetensorError

    if isinstance(error, UbrainError | SafetensorError):
        return str(error)
    if not isinstance(error, OSError):
        return ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "; free some space, the same command continues" if full else ""
    return f"{error.strerror or error}: {error.filename or 'while writing'}{advice}"


if __name__ == "__main__":
    main()
