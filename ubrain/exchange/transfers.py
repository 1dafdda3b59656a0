"""New subjects of a crowd file on a trained encoder, as a checkpoint."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from ubrain import checkpoint
from ubrain import transfer as new_voxels
from ubrain.config import TransferConfig
from ubrain.crowd import Crowd
from ubrain.errors import UbrainError
from ubrain.exchange import hub
from ubrain.exchange.readouts import ReadoutPredictor
from ubrain.features import Source, choose_source
from ubrain.model import UniversalEncoder
from ubrain.parallel import choose_device
from ubrain.paths import atomic, check_out, open_regular
from ubrain.predict import correlate
from ubrain.progress import log
from ubrain.readout import LinearReadout
from ubrain.resume import work
from ubrain.transfer import Fitted, _check, images_of

PARTS = "transfer"  # folder of what a killed transfer leaves


def transfer(
    folder: str | Path,
    crowd: Crowd,
    out: str | Path,
    subjects: Sequence[str] | None = None,
    method: str = "ours",
    n_images: int | None = None,
    config: TransferConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    weights: str | Path | None = None,
) -> pd.DataFrame:
    """Give the subjects of a crowd file embeddings on a trained encoder, and write a checkpoint of
    them.

    The checkpoint has the encoder's shared weights (and adapters), bit for bit, and the new
    subjects; the old ones were needed for matching only. A call that was killed is continued by the
    same call: finished subjects are kept in `out`.

    Parameters
    ----------
    folder : checkpoint folder, or `owner/name` on the Hugging Face hub.
    out : checkpoint folder to write.
    subjects : by default all of the crowd file.
    weights : of the backbone, if not those that the checkpoint names: a .safetensors file.
    n_images : so many train and val images of each subject, drawn at random; by default all.

    Returns
    -------
    One row per subject: images, voxels, what was chosen, the mean r on held-out images, and the
    median r on test images (NaN if there are none).

    Raises
    ------
    UbrainError
        If anything asked for is not there or does not fit, or `out` holds something else.
    """
    folder, out, config = hub.fetch(folder), Path(out), config or TransferConfig()
    check_out(out, folder=True)
    if out.resolve() == folder.resolve():
        raise UbrainError(
            f"{out} is the checkpoint that is transferred from; choose another folder"
        )
    names = list(crowd.subjects if subjects is None else subjects)
    rows = {name: images_of(crowd, name, n_images, seed) for name in names}
    settings = {
        "checkpoint": _digest(folder / checkpoint.WEIGHTS),
        "crowd": crowd.fingerprint,
        "method": method,
        "images": n_images,
        "seed": seed,
        "config": json.loads(json.dumps(asdict(config))),
    }
    if weights is not None:
        settings["weights"] = _digest(Path(weights))
    if crowd.scheme:
        settings["split_scheme"] = crowd.scheme
    _check_out(out, settings, names)
    known = checkpoint.describe(folder)
    same = _trained_on(folder, known.facts["settings"], crowd)
    encoder, source = open_encoder(folder, crowd, device, weights)
    for name in names:
        _check(method, name, len(rows[name]), sum(map(len, encoder.embeddings.values())))
        trained = same and name in known.subjects
        if trained and method != "refit":
            raise UbrainError(
                f"{folder} was trained on subject {name!r} of this crowd file; it needs no"
                " transfer, and matching would find its own voxels; method 'refit' fits it anew"
                " from the others"
            )
        if method == "refit" and not trained:
            raise UbrainError(
                f"{folder} was not trained on subject {name!r} of this crowd file; use method"
                " 'ours', since 'refit' is for subjects that it was trained on"
            )
    with work(out / PARTS, settings, f"the transfer to {out}") as kept:
        _check_out(out, settings, names)  # another process may have finished meanwhile
        parts = {
            name: _fit_or_resume(encoder, source, name, rows[name], settings, config, kept)
            for name in names
        }
        new = checkpoint.load(folder, source.adapters, subjects=[])
        for name, fitted in parts.items():
            new.add_subject(name, len(fitted.embeddings))
            new.subject(name).data = fitted.embeddings.cpu()
        table = _report(new.to(choose_device(device)), source, parts, rows)
        readouts = {name: fitted.readout for name, fitted in parts.items()}
        _write(new, folder, crowd, table, settings, out, readouts)
    return table


def open_encoder(
    folder: str | Path, crowd: Crowd, device: str = "auto", weights: str | Path | None = None
) -> tuple[UniversalEncoder, Source]:
    """An encoder from a checkpoint folder, and the source of its tokens of a crowd's images."""
    config, where = checkpoint.backbone_config(folder), choose_device(device)
    if weights is not None:
        config = replace(config, weights=str(weights))
    source = choose_source(crowd, config, where)
    return checkpoint.load(folder, source.adapters).to(where), source


def _trained_on(folder: Path, settings: dict[str, Any], crowd: Crowd) -> bool:
    """Whether an encoder was trained on this crowd file; with the same splits then, since test
    images of another scheme may be among those that it was trained on.
    """
    theirs = str(settings.get("split_scheme", ""))
    if theirs and theirs not in crowd.schemes:
        return False
    same: bool = settings.get("crowd") == crowd.with_scheme(theirs).fingerprint
    if same and theirs != crowd.scheme:
        which = f"scheme {theirs!r}" if theirs else "the file itself"
        raise UbrainError(
            f"{folder} was trained on this crowd file with the splits of {which}; transfer with the"
            " same, or it is tested on images that it was trained on"
        )
    return same


def _check_out(out: Path, settings: dict[str, Any], names: Sequence[str]) -> None:
    if not (out / checkpoint.CONFIG).exists():
        return
    found = checkpoint.describe(out)
    if found.facts.get("transfer") != settings or list(found.subjects) != list(names):
        raise UbrainError(
            f"{out} holds another encoder, or a transfer with other settings; choose another folder"
        )


def _fit_or_resume(
    encoder: UniversalEncoder,
    source: Source,
    subject: str,
    rows: NDArray[np.int64],
    settings: dict[str, Any],
    config: TransferConfig,
    kept: Path,
) -> Fitted:
    """The embeddings of a subject, from a call that was killed if it got so far."""
    path = kept / f"{subject}.safetensors"
    if path.exists():
        log.info("%s was finished before", subject)
        with safe_open(path, framework="pt") as file:
            told = json.loads(file.metadata()["fitted"])
            parts = {name: file.get_tensor(name) for name in told["readout"]}
            readout = LinearReadout(**parts) if parts else None
            embeddings = file.get_tensor("embeddings")
            return Fitted(embeddings, told["chosen"], told["validation"], readout)
    log.info(
        "transfer of %s: %d voxels, %d images, %s",
        subject,
        source.crowd[subject].n_voxels,
        len(rows),
        settings["method"],
    )
    fitted = new_voxels.fit(
        encoder, source, subject, rows, settings["method"], config, settings["seed"]
    )
    parts = {} if fitted.readout is None else fitted.readout.state_dict()
    told = {
        "chosen": fitted.chosen,
        "validation": fitted.validation,
        "readout": list(parts),
    }
    tensors = {
        name: t.cpu().contiguous() for name, t in {"embeddings": fitted.embeddings, **parts}.items()
    }
    with atomic(path) as partial:
        save_file(tensors, partial, {"fitted": json.dumps(told)})
    return fitted


def _report(
    encoder: UniversalEncoder,
    source: Source,
    parts: dict[str, Fitted],
    images: dict[str, NDArray[np.int64]],
) -> pd.DataFrame:
    rows = []
    for name, fitted in parts.items():
        test = source.crowd[name].image_rows("test")
        r = (
            np.nan_to_num(
                correlate(ReadoutPredictor(fitted.readout, encoder, name), source, name, test)
            )
            if len(test)
            else np.array([np.nan])
        )
        rows.append(
            {
                "subject": name,
                "images": len(images[name]),
                "voxels": len(fitted.embeddings),
                "chosen": fitted.chosen,
                "held_out_r": fitted.validation,
                "test_r": float(np.median(r)),
            }
        )
    return pd.DataFrame(rows)


def _write(
    encoder: UniversalEncoder,
    folder: Path,
    crowd: Crowd,
    table: pd.DataFrame,
    settings: dict[str, Any],
    out: Path,
    readouts: dict[str, LinearReadout | None],
) -> None:
    """The checkpoint of the new subjects, with its card."""
    tested = table.set_index("subject")["test_r"].dropna().to_dict()
    training = checkpoint.describe(folder).facts["settings"] | {"crowd": crowd.fingerprint}
    training.pop("split_scheme", None)
    training |= {"split_scheme": crowd.scheme} if crowd.scheme else {}
    checkpoint.save(
        encoder,
        out,
        like=folder,
        readouts=readouts,
        transfer=settings,
        scores={"median test r": tested},
        val_r75=None,  # of the subjects that are not in it
        settings=training,
        **checkpoint.recorded(crowd, table["subject"]),
    )
    hub.write_card(out)


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
