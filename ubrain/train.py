"""Training: batches from the crowd, loss, schedule, validation, resume. One subject or a crowd is the same call."""

import csv
import io
import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ubrain import checkpoint, scores
from ubrain.backbone import Backbone, Features
from ubrain.config import EncoderConfig, TrainingConfig
from ubrain.data.crowd import Crowd
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.paths import atomic, write_text
from ubrain.progress import log, track

STATE, LOG = "training.pt", "log.csv"
STOP_BELOW_IMAGES = 5  # fewer val images than this say nothing about a correlation


@dataclass(frozen=True)
class Source:
    """Where tokens come from: cached features (default), or images through a backbone that may have adapters."""

    crowd: Crowd
    features: Features | None = None
    backbone: Backbone | None = None

    def tokens(self, rows: NDArray[np.int64], device: torch.device, shift: int = 0) -> list[Tensor]:
        """Tokens of images, given as rows of the crowd file: one (B, P, D) per level.

        `shift` moves every image by up to so many pixels in x and y (edges repeated), where images are read.
        """
        if self.features is not None:
            tokens = torch.from_numpy(self.features.read(rows)).to(device).float()
            return self.features.levels(tokens)
        assert self.backbone is not None
        images = self.backbone.preprocess([self.crowd.image(self.crowd.image_ids[row]) for row in rows])
        return self.backbone(_shifted(images, shift) if shift else images)

    @property
    def maker(self) -> Features | Backbone:
        """What makes the tokens; it knows their sizes and the config of the backbone."""
        maker = self.features or self.backbone
        if maker is None:
            raise UbrainError("training needs cached features or a backbone")
        return maker

    @property
    def adapters(self) -> nn.Module | None:
        """Adapters that are trained together with the encoder, if any."""
        return self.backbone.adapters if self.backbone is not None else None


@dataclass
class Batch:
    """Images of one subject, and the voxels drawn for this step."""

    subject: str
    rows: NDArray[np.int64]
    voxels: NDArray[np.int64]


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UbrainError(f"device {name!r} is not available: {error}") from error


def loss_of(predicted: Tensor, measured: Tensor, config: TrainingConfig) -> Tensor:
    """mse_weight · MSE − cosine_weight · mean over images of the cosine similarity over voxels; both (B, V)."""
    cosine = F.cosine_similarity(predicted, measured, dim=1).mean()
    return config.mse_weight * F.mse_loss(predicted, measured) - config.cosine_weight * cosine


def fit(
    source: Source,
    subjects: Sequence[str],
    encoder_config: EncoderConfig,
    config: TrainingConfig,
    seed: int = 0,
    out: str | Path | None = None,
    tensorboard: bool = False,
) -> UniversalEncoder:
    """Train an encoder on one subject or on a crowd.

    Every epoch shows each training image of each subject once; a step has images of one subject and a random set of
    its voxels. The weights of the epoch with the best validation score are returned; the score is the 75th percentile,
    over all voxels of all subjects, of the correlation on the val images. Same seed and device: same weights.

    Parameters
    ----------
    source : the crowd, and its features or a backbone.
    encoder_config : sizes; `widths` and `n_tokens` are taken from the source.
    out : folder for checkpoints, the log and the finished encoder. If it holds an unfinished training with the same
        settings, that is continued; if a finished one, it is loaded.

    Raises
    ------
    UbrainError
        If a subject has no training images, or too few val images, or `out` holds a training with other settings.
    """
    encoder_config = replace(encoder_config, widths=source.maker.widths, n_tokens=source.maker.n_tokens)
    _check_options(config)
    for name in subjects:
        n_val = len(source.crowd[name].image_rows("val"))
        if n_val < STOP_BELOW_IMAGES or not len(source.crowd[name].image_rows("train")):
            raise UbrainError(f"subject {name!r} has {n_val} val images; training needs at least {STOP_BELOW_IMAGES}, "
                              f"and images to train on")  # fmt: skip
    settings = {"crowd": source.crowd.fingerprint, "subjects": list(subjects), "seed": seed,
                "backbone": asdict(source.maker.config), "encoder": asdict(encoder_config),
                "training": asdict(config)}  # fmt: skip
    folder = Path(out) if out is not None else None
    if folder and (folder / checkpoint.CONFIG).exists():
        return _finished(folder, settings, source).to(choose_device(config.device))
    training = _Training(source, list(subjects), encoder_config, config, seed, folder, settings, tensorboard)
    return training.run()


class _Training:
    def __init__(
        self, source: Source, subjects: list[str], encoder_config: EncoderConfig, config: TrainingConfig, seed: int,
        folder: Path | None, settings: dict[str, Any], tensorboard: bool,
    ) -> None:  # fmt: skip
        self.source, self.subjects, self.config, self.seed = source, subjects, config, seed
        self.folder, self.settings, self.tensorboard = folder, _plain(settings), tensorboard
        self.device = choose_device(config.device)
        self.steps_per_epoch = sum(1 for _ in self._batches(0))
        self.epochs = max(config.epochs, -(-config.min_steps // self.steps_per_epoch))
        torch.manual_seed(seed)
        self.encoder = UniversalEncoder(encoder_config, {n: source.crowd[n].n_voxels for n in subjects}).to(self.device)
        self.parameters = list(self.encoder.parameters())
        if source.backbone is not None:
            source.backbone.to(self.device)
            self.parameters += [p for p in source.backbone.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(self.parameters, lr=config.learning_rate, amsgrad=config.schedule == "plateau")
        self.scheduler = self._make_scheduler()
        self.epoch, self.history = 0, list[dict[str, float]]()
        self.best: dict[str, Tensor] = {}
        self.best_score = -np.inf

    def _make_scheduler(self) -> Any:
        c = self.config
        if c.schedule == "plateau":
            return torch.optim.lr_scheduler.ReduceLROnPlateau(
                self.optimiser, mode="max", patience=c.patience, factor=c.factor, threshold=c.threshold,
                threshold_mode="abs",
            )  # fmt: skip
        steps = self.epochs * self.steps_per_epoch
        return torch.optim.lr_scheduler.OneCycleLR(self.optimiser, c.learning_rate, total_steps=steps, pct_start=0.2)

    def run(self) -> UniversalEncoder:
        self._resume()
        epochs = range(self.epoch, self.epochs)
        for epoch in track(epochs, len(epochs), f"training on {len(self.subjects)} subject(s)"):
            self.epoch = epoch
            rate = float(self.optimiser.param_groups[0]["lr"])
            if rate < self.config.min_learning_rate and self.config.schedule == "plateau":
                break
            loss = self._train_epoch()
            score = self._validate()
            if self.config.schedule == "plateau":
                self.scheduler.step(score)
            if score > self.best_score or not self.best:
                self.best_score = score
                state = checkpoint.state_of(self.encoder, self.source.adapters)
                self.best = {k: v.detach().cpu().clone() for k, v in state.items()}
            self.history.append({"epoch": self.epoch + 1, "loss": loss, "val_r75": score, "learning_rate": rate})
            self._save()
        checkpoint.load_state(self.encoder, self.source.adapters, self.best)
        if self.folder:
            checkpoint.save(
                self.encoder, self.folder, self.source.adapters, settings=self.settings, val_r75=self.best_score
            )  # fmt: skip
            (self.folder / STATE).unlink(missing_ok=True)
        return self.encoder.eval()

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """The steps of an epoch, in an order that depends on the seed and the epoch only."""
        rng = np.random.default_rng([self.seed, epoch])
        size, batches = self.config.batch_images, []
        for name in self.subjects:
            rows = rng.permutation(self.source.crowd[name].image_rows("train"))
            parts = np.array_split(rows, max(1, round(len(rows) / size)))
            batches += [(name, np.sort(part)) for part in parts]
        for i in rng.permutation(len(batches)):
            name, rows = batches[i]
            n_voxels = self.source.crowd[name].n_voxels
            some = min(self.config.voxels_per_step, n_voxels)
            yield Batch(name, rows, np.sort(rng.choice(n_voxels, some, replace=False)))

    def _train_epoch(self) -> float:
        torch.manual_seed(self.seed * 100_003 + self.epoch)  # dropout of an epoch does not depend on what came before
        self.encoder.train()
        losses = []
        for batch in self._batches(self.epoch):
            measured = self.source.crowd[batch.subject].responses_to(batch.rows, batch.voxels)
            target = torch.from_numpy(measured).to(self.device)
            with self._autocast():
                tokens = self.source.tokens(batch.rows, self.device, self.config.image_shift)
                predicted = self.encoder(tokens, batch.subject, torch.from_numpy(batch.voxels).to(self.device))
            loss = loss_of(predicted.float(), target, self.config)
            if not torch.isfinite(loss):
                raise UbrainError(f"the loss became {loss.item()} in epoch {self.epoch + 1}; try a lower learning rate")
            self.optimiser.zero_grad(set_to_none=True)  # embeddings of other subjects get no step at all
            loss.backward()
            self.optimiser.step()
            if self.config.schedule == "one-cycle":
                self.scheduler.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def _validate(self) -> float:
        r = []
        for name in self.subjects:
            subject = self.source.crowd[name]
            rows = subject.image_rows("val")
            predicted = predict(self.encoder, self.source, name, rows, precision=self.config.precision)
            r.append(scores.correlation(predicted, subject.responses_to(rows)))
        return float(np.nanpercentile(np.nan_to_num(np.concatenate(r), nan=0.0), 75))

    def _autocast(self) -> torch.autocast:
        return _autocast(self.device, self.config.precision)

    def _save(self) -> None:
        """After every epoch: everything that a killed training needs to go on as if nothing had happened."""
        if not self.folder:
            return
        state = {
            "settings": json.dumps(self.settings), "epoch": self.epoch + 1, "history": self.history,
            "weights": checkpoint.state_of(self.encoder, self.source.adapters),
            "best": self.best, "best_score": self.best_score,
            "optimiser": self.optimiser.state_dict(), "scheduler": self.scheduler.state_dict(),
        }  # fmt: skip
        with atomic(self.folder / STATE) as partial:
            torch.save(state, partial)
        text = io.StringIO()
        writer = csv.DictWriter(text, self.history[0])
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.folder / LOG, text.getvalue())
        if self.tensorboard:
            _to_tensorboard(self.folder, self.history[-1])

    def _resume(self) -> None:
        if not self.folder or not (self.folder / STATE).exists():
            return
        try:
            state = torch.load(self.folder / STATE, map_location=self.device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise UbrainError(f"{self.folder / STATE} cannot be read: {error}; delete the folder to start anew") from error
        _same_settings(json.loads(state["settings"]), self.settings, self.folder)
        checkpoint.load_state(self.encoder, self.source.adapters, state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.epoch, self.history = state["epoch"], state["history"]
        self.best, self.best_score = state["best"], state["best_score"]
        log.info("continuing %s after epoch %d", self.folder, self.epoch)


@torch.inference_mode()
def predict(
    encoder: UniversalEncoder, source: Source, subject: str, rows: NDArray[np.int64], batch: int = 32,
    precision: str = "fp32",
) -> NDArray[np.float32]:  # fmt: skip
    """Predicted responses of all voxels of a subject to images.

    Parameters
    ----------
    rows : rows of the images in the crowd file.
    batch : images at a time.

    Returns
    -------
    (n_images, n_voxels) float32
    """
    was_training = encoder.training
    encoder.eval()
    device = encoder.position.device
    out = np.empty((len(rows), len(encoder.subject(subject))), np.float32)
    step = max(1, (64 << 20) // (4 * out.shape[1] * max(encoder.config.n_tokens, 4 * encoder.config.channels)))
    for start in range(0, len(rows), min(batch, step)):
        block = slice(start, start + min(batch, step))
        with _autocast(device, precision):
            out[block] = encoder(source.tokens(rows[block], device), subject).float().cpu().numpy()
    encoder.train(was_training)
    return out


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _shifted(images: Tensor, most: int) -> Tensor:
    """Each image moved by up to `most` pixels in x and y, edges repeated: (B, 3, H, W)."""
    padded = F.pad(images, (most,) * 4, mode="replicate")
    height, width = images.shape[2:]
    moves = torch.randint(0, 2 * most + 1, (len(images), 2)).tolist()
    return torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, moves, strict=True)])


def _check_options(config: TrainingConfig) -> None:
    for value, known, what in ((config.schedule, ("plateau", "one-cycle"), "schedule"),
                               (config.precision, ("fp32", "bf16"), "precision")):  # fmt: skip
        if value not in known:
            raise UbrainError(f"unknown {what} {value!r}: expected one of {', '.join(known)}")


def _finished(folder: Path, settings: dict[str, Any], source: Source) -> UniversalEncoder:
    facts = json.loads((folder / checkpoint.CONFIG).read_text(encoding="utf-8")).get("facts", {})
    _same_settings(facts.get("settings", {}), _plain(settings), folder)
    log.info("%s holds this training, finished; loading it", folder)
    return checkpoint.load(folder, source.adapters)


def _same_settings(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    different = [key for key in wanted if found.get(key) != wanted[key]]
    if different:
        raise UbrainError(f"{folder} holds a training with other settings ({', '.join(different)}); choose another folder")


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON: tuples are lists."""
    return json.loads(json.dumps(settings))


def _to_tensorboard(folder: Path, row: dict[str, float]) -> None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UbrainError("the TensorBoard log needs `pip install ubrain[log]`") from error
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for name in ("loss", "val_r75", "learning_rate"):
            writer.add_scalar(name, row[name], int(row["epoch"]))
