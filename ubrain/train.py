"""Training: batches from the crowd, loss, schedule, validation, resume. One subject or a crowd is
the same call.
"""

import csv
import io
import json
import math
import pickle
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ubrain import checkpoint
from ubrain.backbone import Source, choose_device
from ubrain.config import BackboneConfig, EncoderConfig, TrainingConfig
from ubrain.crowd import Crowd
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.optim import BETA2, EmbeddingAdam, Rate
from ubrain.parallel import Group, interleave, launched
from ubrain.paths import atomic, write_text
from ubrain.predict import autocast, correlate
from ubrain.progress import log, track

# Of model and training together: raise it when the same settings no longer give the same encoder,
# so that no trained encoder outlives the code that made it (`tests/test_train.py` notices).
VERSION = 1
STATE, STATES, LOG = "training.json", "training", "log.csv"
STOP_BELOW_IMAGES = 5  # fewer val images than this say nothing about a correlation


@dataclass(frozen=True)
class Batch:
    """Images of one subject, the voxels drawn for them, and the seed of everything random in it."""

    subject: str
    rows: NDArray[np.int64]
    voxels: NDArray[np.int64]
    seed: int


def loss_of(predicted: Tensor, measured: Tensor, config: TrainingConfig) -> Tensor:
    """mse_weight · MSE − cosine_weight · mean over images of the cosine similarity over voxels;
    both (B, V).
    """
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

    Every epoch shows each training image of each subject once; a step has images of one subject and
    a random set of its voxels. The weights of the epoch with the best validation score are
    returned; the score is the 75th percentile, over all voxels of all subjects, of the correlation
    on the val images. Same seed and device: same weights.

    Parameters
    ----------
    source : the crowd, and its features or a backbone.
    encoder_config : sizes; `widths` and `n_tokens` are taken from the source.
    out : folder for checkpoints, the log and the finished encoder. If it holds an unfinished
        training with the same settings, that is continued; if a finished one, it is loaded. Several
        processes need one that all of them see.

    Returns
    -------
    The encoder of all subjects; in several processes, all but the first return that of the subjects
    they own.

    Raises
    ------
    UbrainError
        If a subject has no training images, or too few val images, or `out` holds a training with
        other settings.
    """
    encoder_config = replace(
        encoder_config, widths=source.maker.widths, n_tokens=source.maker.n_tokens
    )
    _check_options(config)
    for name in subjects:
        n_val = len(source.crowd[name].image_rows("val"))
        if n_val < STOP_BELOW_IMAGES or not len(source.crowd[name].image_rows("train")):
            raise UbrainError(
                f"subject {name!r} has {n_val} val images; training needs at least"
                f" {STOP_BELOW_IMAGES}, and images to train on"
            )
    settings = {
        "crowd": source.crowd.fingerprint,
        "subjects": list(subjects),
        "seed": seed,
        "backbone": _decisive(source.maker.config),
        "encoder": asdict(encoder_config),
        "training": asdict(config),
    }
    if out is None:
        if launched()[1] > 1:
            raise UbrainError(
                "several processes need a folder for what they share; give one as `out`"
            )
        with tempfile.TemporaryDirectory() as folder:
            return _Training(
                source, list(subjects), encoder_config, config, seed, Path(folder), settings, False
            ).run()
    if (Path(out) / checkpoint.CONFIG).exists():
        return _finished(Path(out), settings, source).to(choose_device(config.device))
    return _Training(
        source, list(subjects), encoder_config, config, seed, Path(out), settings, tensorboard
    ).run()


class _Training:
    """One training, in one process or in several that each own some of the subjects.

    Everything that decides the result (order of batches, voxels, dropout, learning rate) follows
    from the seed, the epoch and the number of the batch, never from the process that happens to
    compute it.
    """

    def __init__(
        self,
        source: Source,
        subjects: list[str],
        encoder_config: EncoderConfig,
        config: TrainingConfig,
        seed: int,
        folder: Path,
        settings: dict[str, Any],
        tensorboard: bool,
    ) -> None:
        self.source, self.subjects, self.config, self.seed = source, subjects, config, seed
        self.folder, self.settings, self.tensorboard = folder, _plain(settings), tensorboard
        self.device = choose_device(config.device)
        self.group = Group(self.device)
        self.plan = _Plan(source.crowd, subjects, config, seed)
        self.own = self._share_out()
        self._make_encoder(encoder_config)
        self.epoch, self.history = 0, list[dict[str, float]]()
        self.best_epoch, self.best_score = 0, -math.inf
        self.rate = config.learning_rate  # of the plateau schedule
        self.plateau, self.stale = (
            -math.inf,
            0,
        )  # last score that counted as progress, and epochs since
        self.board: Any = None  # of TensorBoard

    def _share_out(self) -> list[str]:
        if self.group.size > min(self.config.batches_per_step, len(self.subjects)):
            raise UbrainError(
                f"{self.group.size} processes need at least as many subjects (here"
                f" {len(self.subjects)}) and batches_per_step (here {self.config.batches_per_step};"
                " --batches-per-step)"
            )
        return self.group.own({name: self.plan.batches_of(name) for name in self.subjects})

    def _make_encoder(self, encoder_config: EncoderConfig) -> None:
        torch.manual_seed(self.seed)
        self.encoder = UniversalEncoder(encoder_config, {})
        for name in (
            self.subjects
        ):  # each draws its start, wherever it lives: the same start for any number of processes
            self.encoder.add_subject(name, self.source.crowd[name].n_voxels)
            if name not in self.own:
                self.encoder.drop_subject(name)
        self.encoder.to(self.device)
        self.parameters = self.encoder.shared_parameters()
        if self.source.backbone is not None:
            self.source.backbone.to(self.device)
            self.parameters += [p for p in self.source.backbone.parameters() if p.requires_grad]
        amsgrad = self.config.schedule == "plateau"
        self.optimiser = torch.optim.Adam(
            self.parameters,
            lr=self.config.learning_rate,
            amsgrad=amsgrad,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.embeddings = {
            name: EmbeddingAdam(self.encoder.subject(name), amsgrad) for name in self.own
        }

    def run(self) -> UniversalEncoder:
        self._resume()
        if self.tensorboard and self.group.first:
            self.board = _tensorboard(self.folder, self.history)
        epochs = range(self.epoch, self.plan.epochs)
        label = f"training on {len(self.subjects)} subject(s)"
        for epoch in track(epochs, len(epochs), label) if self.group.first else epochs:
            self.epoch = epoch
            if self.config.schedule == "plateau" and self.rate < self.config.min_learning_rate:
                break
            rates = self.plan.rates(epoch, self.rate)
            row = {
                "epoch": epoch + 1,
                "loss": self._train_epoch(rates),
                "val_r75": self._validate(),
                "learning_rate": rates[0].rate,
            }
            self._judge(row["val_r75"])
            self.history.append(row)
            self._save()
        self._finish()
        self.group.close()
        if self.board:
            self.board.close()
        return self.encoder.eval()

    def _judge(self, score: float) -> None:
        """Keep count of the best epoch, and lower the plateau schedule's rate after `patience`
        epochs without progress.
        """
        self.stale += 1
        if score > self.plateau + self.config.threshold:
            self.plateau, self.stale = score, 0
        if self.stale > self.config.patience:
            self.rate, self.stale = self.rate * self.config.factor, 0
        if score > self.best_score:
            self.best_epoch, self.best_score = self.epoch + 1, score

    def _train_epoch(self, rates: list[Rate]) -> float:
        self.encoder.train()
        steps = self.plan.steps(self.epoch)
        for name in self.own:
            self.embeddings[name].plan(
                [rates[i] for i, step in enumerate(steps) for b in step if b.subject == name]
            )
        losses: list[float] = []
        for rate, step in zip(rates, steps, strict=True):
            losses += [self._gradients(batch) for batch in step if batch.subject in self.own]
            if self.group.size > 1 or len(step) > 1:
                self._average(len(step))
            for group in self.optimiser.param_groups:
                group["lr"], group["betas"] = rate.rate, (rate.beta1, BETA2)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        everybodys = list(chain.from_iterable(self.group.gather(losses)))
        return math.fsum(everybodys) / len(
            everybodys
        )  # fsum: the same for any order, so for any number of processes

    def _average(self, n_batches: int) -> None:
        self.group.sum_gradients(self.parameters)
        for p in self.parameters:
            if p.grad is not None:
                p.grad /= n_batches

    def _gradients(self, batch: "Batch") -> float:
        """Add a batch's gradients to the shared weights', and move its voxels' embeddings. Returns
        the loss.
        """
        torch.manual_seed(batch.seed)  # of dropout and of image shifts
        subject = self.source.crowd[batch.subject]
        voxels = torch.from_numpy(batch.voxels).to(self.device)
        embedding = self.embeddings[batch.subject].read(voxels).requires_grad_()
        with autocast(self.device, self.config.precision):
            tokens = self.source.tokens(batch.rows, self.device, self.config.image_shift)
            predicted = self.encoder.respond(tokens, self.encoder.voxel_terms(embedding))
        target = torch.from_numpy(subject.responses_to(batch.rows, batch.voxels)).to(self.device)
        loss = loss_of(predicted.float(), target, self.config)
        if not torch.isfinite(loss):
            raise UbrainError(
                f"the loss became {loss.item()} in epoch {self.epoch + 1}; try a lower learning"
                " rate"
            )
        loss.backward()
        assert embedding.grad is not None
        self.embeddings[batch.subject].step(voxels, embedding.detach(), embedding.grad)
        return loss.item()

    def _validate(self) -> float:
        r = {}
        for name in self.own:
            rows = self.source.crowd[name].image_rows("val")
            r[name] = correlate(
                self.encoder, self.source, name, rows, precision=self.config.precision
            )
        everybody = {name: values for part in self.group.gather(r) for name, values in part.items()}
        all_r = np.concatenate([everybody[name] for name in self.subjects])
        return float(np.nanpercentile(np.nan_to_num(all_r, nan=0.0), 75))

    def _save(self) -> None:
        """After every epoch: everything that a killed training needs to go on as if nothing had
        happened.

        Each process writes its subjects; the training is at the new epoch from the moment the first
        process has replaced the list of files, when all are written. The best epoch's embeddings
        stay beside the latest.
        """
        epoch = self.epoch + 1
        for name, adam in self.embeddings.items():
            state = {"embeddings": adam.embeddings, "steps": adam.steps, **adam.moments}
            _write(self._file(name, epoch), state)
        self.group.wait()
        if self.group.first:
            shared = {
                n: t
                for n, t in checkpoint.state_of(self.encoder, self.source.adapters).items()
                if not n.startswith("embeddings.")
            }
            _write(
                self._file("", epoch), {"weights": shared, "optimiser": self.optimiser.state_dict()}
            )
            facts = (
                "epoch",
                "history",
                "best_epoch",
                "best_score",
                "rate",
                "plateau",
                "stale",
                "settings",
            )
            write_text(
                self.folder / STATE,
                json.dumps({f: getattr(self, f) for f in facts} | {"epoch": epoch}, indent=1),
            )
            self._write_log()
            self._sweep(keep={epoch, self.best_epoch})
            if self.board:
                _show(self.board, self.history[-1])
        self.group.wait()

    def _file(self, subject: str, epoch: int) -> Path:
        return self.folder / STATES / f"{epoch:05d}{'-' * bool(subject)}{subject}.pt"

    def _sweep(self, keep: set[int]) -> None:
        for path in (self.folder / STATES).glob("*"):
            epoch = path.name.removesuffix(".pt").partition("-")[0]
            if not epoch.isdecimal() or int(epoch) not in keep:
                path.unlink(missing_ok=True)

    def _write_log(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.history[0])
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.folder / LOG, text.getvalue())

    def _resume(self) -> None:
        state = self._found()
        if state is None:
            return
        _same_settings(state["settings"], self.settings, self.folder)
        for fact in ("epoch", "history", "best_epoch", "best_score", "rate", "plateau", "stale"):
            setattr(self, fact, state[fact])
        self._load(self.epoch)
        if self.group.first:
            log.info("continuing %s after epoch %d", self.folder, self.epoch)

    def _found(self) -> dict[str, Any] | None:
        """What the first process finds of an earlier training here; all must mean the same
        training in the same folder.
        """
        self.group.check_shared(self.folder)
        path, state = self.folder / STATE, None
        if self.group.first and path.exists():
            try:
                state = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UbrainError(
                    f"{path} cannot be read: {error}; delete the folder to start anew"
                ) from error
        (state, first), *others = self.group.gather((state, self.settings))
        for rank, (_, settings) in enumerate(others, 1):
            different = [key for key in first if settings[key] != first[key]]
            if different:
                raise UbrainError(
                    f"process {rank} was started with other settings than process 0"
                    f" ({', '.join(different)}); give all the same command and the same crowd file"
                )
        return state

    def _load(self, epoch: int) -> None:
        shared = _read(self._file("", epoch), self.device)
        own = {f"embeddings.{n}": t for n, t in self.encoder.embeddings.items()}
        checkpoint.load_state(self.encoder, self.source.adapters, {**shared["weights"], **own})
        self.optimiser.load_state_dict(shared["optimiser"])
        for name, adam in self.embeddings.items():
            state = _read(self._file(name, epoch), self.device)
            adam.steps = state.pop("steps")
            adam.embeddings.copy_(state.pop("embeddings"))
            adam.moments = state

    def _finish(self) -> None:
        """The encoder of the best epoch, with all subjects, as a checkpoint; the training's own
        files vanish.
        """
        self._load(self.best_epoch)
        self.group.wait()  # until nobody reads the training's own files any more
        if self.group.first:
            self._write_log()
            for name in (n for n in self.subjects if n not in self.own):
                self.encoder.add_subject(name, self.source.crowd[name].n_voxels)
                self.encoder.subject(name).data = _read(
                    self._file(name, self.best_epoch), self.device
                )["embeddings"]
            ordered = nn.ParameterDict(
                {name: self.encoder.embeddings[name] for name in self.subjects}
            )
            self.encoder.embeddings = ordered
            checkpoint.save(
                self.encoder,
                self.folder,
                self.source.adapters,
                settings=self.settings,
                val_r75=self.best_score,
                **checkpoint.recorded(self.source.crowd, self.subjects),
            )
            _tidy(self.folder)
        self.group.wait()


@dataclass(frozen=True)
class _Plan:
    """What is trained when: a function of the seed and the epoch only."""

    crowd: Crowd
    subjects: list[str]
    config: TrainingConfig
    seed: int

    def batches_of(self, subject: str) -> int:
        """Batches of a subject in each epoch."""
        return max(
            1, round(len(self.crowd[subject].image_rows("train")) / self.config.batch_images)
        )

    @cached_property
    def steps_per_epoch(self) -> int:
        return -(-sum(map(self.batches_of, self.subjects)) // self.config.batches_per_step)

    @cached_property
    def epochs(self) -> int:
        return max(self.config.epochs, -(-self.config.min_steps // self.steps_per_epoch))

    def rates(self, epoch: int, plateau: float) -> list[Rate]:
        """Learning rate and β1 of each step of an epoch."""
        if self.config.schedule == "plateau":
            return [Rate(plateau)] * self.steps_per_epoch
        return self._one_cycle[epoch * self.steps_per_epoch :][: self.steps_per_epoch]

    @cached_property
    def _one_cycle(self) -> list[Rate]:
        nobody = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
        n = self.epochs * self.steps_per_epoch
        if n < 10:  # too short for a cycle
            return [Rate(self.config.learning_rate)] * n
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            nobody, self.config.learning_rate, total_steps=n, pct_start=0.2
        )
        rates = []
        for i in range(n):
            group = nobody.param_groups[0]
            rates.append(Rate(float(group["lr"]), float(group["betas"][0])))
            nobody.step()
            if i + 1 < n:
                schedule.step()
        return rates

    def steps(self, epoch: int) -> list[list["Batch"]]:
        """The batches of each step of an epoch: every training image of every subject once."""
        rng = np.random.default_rng([self.seed, epoch])
        drawn = []
        for name in self.subjects:
            rows = rng.permutation(self.crowd[name].image_rows("train"))
            drawn += [(name, np.sort(part)) for part in np.array_split(rows, self.batches_of(name))]
        drawn = [drawn[i] for i in rng.permutation(len(drawn))]
        per_step = self.config.batches_per_step
        if (
            per_step > 1
        ):  # neighbours of different subjects, so that all processes have something to do in a step
            large_first = sorted(
                self.subjects, key=lambda name: -self.batches_of(name)
            )  # the order of `Group.own`
            drawn = interleave(drawn, {name: i for i, name in enumerate(large_first)})
        batches = []
        for i, (name, rows) in enumerate(drawn):
            n_voxels = self.crowd[name].n_voxels
            some = rng.choice(n_voxels, min(self.config.voxels_per_step, n_voxels), replace=False)
            seed = int(np.random.SeedSequence([self.seed, epoch, i]).generate_state(1)[0])
            batches.append(Batch(name, rows, np.sort(some), seed))
        return [batches[i : i + per_step] for i in range(0, len(batches), per_step)]


def _tidy(folder: Path) -> None:
    """Remove what only an unfinished training needs, and what killed ones left half-written."""
    half_written = (*folder.glob(".*.partial"), *(folder / checkpoint.VOXELS).glob(".*.partial"))
    for path in (folder / STATE, *half_written):
        if path.exists():  # a finished training may lie where nothing can be removed
            path.unlink()
    shutil.rmtree(folder / STATES, ignore_errors=True)


def _write(path: Path, state: dict[str, Any]) -> None:
    with atomic(path) as partial:
        try:
            torch.save(state, partial)
        except RuntimeError as error:  # all that torch says of a full disk
            raise UbrainError(
                f"{path} cannot be written ({str(error).splitlines()[0]}); if the disk is full,"
                " free some space: the same command continues"
            ) from error


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UbrainError(
            f"{path} cannot be read: {error}; delete the folder to start anew"
        ) from error


def _check_options(config: TrainingConfig) -> None:
    for value, known, what in (
        (config.schedule, ("plateau", "one-cycle"), "schedule"),
        (config.precision, ("fp32", "bf16"), "precision"),
    ):
        if value not in known:
            raise UbrainError(f"unknown {what} {value!r}: expected one of {', '.join(known)}")
    if config.schedule == "plateau" and config.learning_rate < config.min_learning_rate:
        raise UbrainError(
            f"learning_rate {config.learning_rate} is below min_learning_rate"
            f" {config.min_learning_rate}"
        )
    for name in ("epochs", "batch_images", "voxels_per_step", "batches_per_step"):
        if getattr(config, name) < 1:
            raise UbrainError(f"{name} is {getattr(config, name)}: expected 1 or more")


def _finished(folder: Path, settings: dict[str, Any], source: Source) -> UniversalEncoder:
    _same_settings(checkpoint.describe(folder).facts.get("settings", {}), _plain(settings), folder)
    if launched()[0] == 0:
        log.info("%s holds this training, finished; loading it", folder)
        _tidy(folder)  # it may have been killed just before
    return checkpoint.load(folder, source.adapters)


def _same_settings(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    different = [key for key in wanted if found.get(key) != wanted[key]]
    if different:
        raise UbrainError(
            f"{folder} holds a training with other settings ({', '.join(different)}); choose"
            " another folder"
        )


def _decisive(config: BackboneConfig) -> dict[str, Any]:
    """What of the backbone decides the result: all but how memory is saved."""
    return asdict(replace(config, checkpointing=False))


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON: tuples are lists."""
    return json.loads(json.dumps(settings))


def _tensorboard(folder: Path, history: list[dict[str, float]]) -> Any:
    """A TensorBoard log that begins with the history: one that was cut off is written anew,
    nothing is missing or twice.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UbrainError("the TensorBoard log needs `pip install ubrain[log]`") from error
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    board = SummaryWriter(str(folder / "tensorboard"))
    for row in history:
        _show(board, row)
    return board


def _show(board: Any, row: dict[str, float]) -> None:
    for name in ("loss", "val_r75", "learning_rate"):
        board.add_scalar(name, row[name], int(row["epoch"]))
    board.flush()
