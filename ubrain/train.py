"""Training: one visible loop, for one subject or a crowd, in one process or several.

`fit` is the loop. What is drawn when (`Plan`) is a function of seed and epoch only, never of the
process that happens to compute it; where a training stands (`State`) is written after every epoch,
so a killed training goes on as if nothing had happened.
"""

import csv
import io
import json
import math
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ubrain import checkpoint
from ubrain.batches import Batch, Plan, prepared
from ubrain.config import EncoderConfig, TrainingConfig, as_settings
from ubrain.errors import UbrainError
from ubrain.kernels import Replayed
from ubrain.model import UniversalEncoder
from ubrain.optim import BETA2, EmbeddingAdam, Rate
from ubrain.parallel import Group, autocast, choose_device, keep_freed_memory, launched
from ubrain.paths import atomic, write_text
from ubrain.predict import Predictor, correlate, pairs
from ubrain.progress import log, track
from ubrain.resume import empty, locked, refuse_others, remove_partials, work
from ubrain.scores import correlation

if TYPE_CHECKING:
    from ubrain.crowd import Crowd
    from ubrain.features import Source

# Of model and training together: raise it when the same settings no longer give the same encoder,
# so that no trained encoder outlives the code that made it: caches of encoders are keyed by it, and
# `tests/test_train.py` notices.
VERSION = 1
WORK, STATE, LOG = "training", "state.json", "log.csv"  # folder of an unfinished training, files
LEAST_VAL_IMAGES = 5  # fewer say nothing about a correlation


def loss_of(predicted: Tensor, measured: Tensor, config: TrainingConfig) -> Tensor:
    """mse_weight · MSE − cosine_weight · mean over images of the cosine across voxels; (B, V)."""
    cosine = F.cosine_similarity(predicted, measured, dim=1).mean()
    return config.mse_weight * F.mse_loss(predicted, measured) - config.cosine_weight * cosine


def fit(
    source: "Source",
    subjects: Sequence[str],
    encoder_config: EncoderConfig,
    config: TrainingConfig,
    seed: int = 0,
    out: str | Path | None = None,
    tensorboard: bool = False,
) -> UniversalEncoder:
    """Train an encoder on one subject or on a crowd.

    Every epoch shows each training image of each subject once; a batch has images of one subject
    and random voxels of it. A step has one batch, or (`batches: mixed`) one of each subject whose
    images are among its `batch_images`. The weights of the epoch with the best validation score are
    returned; the score is the 75th percentile of correlations on the val images. Same seed: same
    weights, on a CPU.

    Parameters
    ----------
    source : the crowd, and its features or a backbone.
    encoder_config : sizes; `widths` and `n_tokens` are taken from the source.
    out : folder for checkpoints, the log and the finished encoder. An unfinished training with the
        same settings is continued, a finished one is loaded. Several processes need one that all of
        them see.

    Returns
    -------
    The encoder of all subjects; in several processes, all but the first return that of the subjects
    they own.

    Raises
    ------
    UbrainError
        If a subject has no training images, or too few val images, an option is unknown, or `out`
        holds a training with other settings.
    """
    keep_freed_memory()
    encoder_config = replace(encoder_config, widths=source.widths, n_tokens=source.n_tokens)
    settings = settings_of(source, subjects, encoder_config, config, seed)
    device = choose_device(config.device)
    if out is not None and (Path(out) / checkpoint.CONFIG).exists():
        return finished(Path(out), settings, source).to(device)
    with unfinished(out, settings, device) as (folder, group):
        plan = Plan(source.crowd, tuple(subjects), config, seed)
        trainee = Trainee(source, plan, encoder_config, group, folder)
        encoder, embeddings = trainee.encoder, trainee.embeddings
        state = trainee.resume() or State(rate=config.learning_rate)
        logs = tensorboard and out is not None and group.first
        board = tensorboard_of(folder, state) if logs else None
        epochs = range(state.epoch, plan.epochs)
        label = f"training on {len(subjects)} subject(s)"
        for epoch in track(epochs, len(epochs), label) if group.first else epochs:
            if config.schedule == "plateau" and state.rate < config.min_learning_rate:
                break
            rates, steps, losses = plan.rates(epoch, state.rate), plan.steps(epoch), list[Tensor]()
            trainee.announce(steps, rates)
            encoder.train()
            mine = [[batch for batch in step if batch.subject in trainee.own] for step in steps]
            ready = prepared(source, chain.from_iterable(mine), device)
            for rate, step, own in zip(rates, steps, mine, strict=True):
                for batch, voxels, read, target, which in islice(ready, len(own)):
                    torch.manual_seed(batch.seed)  # of dropout and of image shifts
                    embedding = embeddings[batch.subject].read(voxels)
                    images = source.ready(read, config.image_shift)
                    share = torch.full((), batch.share, device=device)
                    inputs = [images, embedding, target, share, *([] if which is None else [which])]
                    loss, gradient = trainee.differentiate(*inputs)
                    embeddings[batch.subject].step(voxels, embedding, gradient)
                    losses.append(loss)
                trainee.step(rate, step)
            # here, and nowhere else in an epoch, a GPU is waited for
            values: list[float] = torch.stack(losses).tolist() if losses else []
            all_losses = list(chain.from_iterable(group.gather(values)))
            shares = math.fsum(batch.share for batch in chain.from_iterable(steps))
            mean = math.fsum(all_losses) / shares  # fsum: the same for any order
            if not math.isfinite(mean):
                why = damaged(source, subjects) or "try a lower learning rate"
                raise UbrainError(f"the loss became {mean} in epoch {epoch + 1}; {why}")
            state = state.after(mean, trainee.validate(), rates[0].learning_rate, config)
            trainee.save(state)
            if board:
                show(board, state.history[-1])
        if board:
            board.close()
        return trainee.finish(state, settings)


@dataclass(frozen=True)
class State:
    """Where a training stands.

    Attributes
    ----------
    epoch : epochs that are done.
    rate : learning rate of the plateau schedule.
    best_epoch, best_score : the epoch, from 1, with the highest validation score.
    plateau, stale : last score that counted as progress, and epochs since.
    history : one row per epoch: epoch, loss, val_r75, learning_rate.
    """

    epoch: int = 0
    rate: float = 0.0
    best_epoch: int = 0
    best_score: float = -math.inf
    plateau: float = -math.inf
    stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def after(
        self, loss: float, score: float, learning_rate: float, config: TrainingConfig
    ) -> "State":
        """The state one epoch later.

        The plateau schedule lowers its rate after more than `patience` epochs without progress.
        """
        epoch, stale, plateau, rate = self.epoch + 1, self.stale + 1, self.plateau, self.rate
        if score > plateau + config.threshold:
            plateau, stale = score, 0
        if stale > config.patience:
            rate, stale = rate * config.factor, 0
        best = (self.best_epoch, self.best_score)
        best = (epoch, score) if score > self.best_score else best
        row = {"epoch": epoch, "loss": loss, "val_r75": score, "learning_rate": learning_rate}
        return State(epoch, rate, *best, plateau, stale, [*self.history, row])


class Trainee:
    """What changes in training, and its way to disk and back.

    Shared weights have one Adam. The embeddings of a subject have one of their own, and live only
    in the process that owns the subject.

    Attributes
    ----------
    own : subjects of this process.
    embeddings : optimiser of the embeddings of each own subject.
    differentiate : from images that the source made ready (B, 3, H, W), or features, embeddings,
        responses (B, V), the batch's share of its step, and which embeddings an image has (B, V) if
        not all: the loss, and the embeddings' gradient; that of the shared weights is added to what
        they have.
    """

    def __init__(
        self,
        source: "Source",
        plan: Plan,
        encoder_config: EncoderConfig,
        group: Group,
        folder: Path,
    ) -> None:
        self.source, self.plan, self.group, self.folder = source, plan, group, folder
        config, self.device = plan.config, group.device
        n, per_step = len(plan.subjects), config.batches_per_step
        if group.size > (n if config.batches == "mixed" else min(per_step, n)):
            needs = f" and batches_per_step (here {per_step}; --batches-per-step)"
            raise UbrainError(
                f"{group.size} processes need at least as many subjects (here {n})"
                + needs * (config.batches != "mixed")
            )
        self.own = group.own({name: plan.batches_of(name) for name in plan.subjects})
        torch.manual_seed(plan.seed)
        self.encoder = UniversalEncoder(encoder_config, {})
        for (
            name
        ) in plan.subjects:  # each draws its start, wherever it lives: the same start for all
            self.encoder.add_subject(name, source.crowd[name].n_voxels)
            if name not in self.own:
                self.encoder.drop_subject(name)
        self.encoder.to(self.device)
        self.parameters = self.encoder.shared_parameters()
        if source.backbone is not None:
            source.backbone.to(self.device)
            self.parameters += [p for p in source.backbone.parameters() if p.requires_grad]
        self.differentiate = Replayed(self._differentiate, self.parameters)
        amsgrad, fused = config.schedule == "plateau", self.device.type in ("cpu", "cuda")
        self.optimiser = torch.optim.Adam(
            self.parameters, lr=config.learning_rate, amsgrad=amsgrad, fused=fused
        )
        subject = self.encoder.subject
        self.embeddings = {name: EmbeddingAdam(subject(name), amsgrad) for name in self.own}

    def announce(self, steps: list[list[Batch]], rates: list[Rate]) -> None:
        """Tell the embeddings' optimisers the learning rates of their coming batches.

        They move drawn rows only, and must know what is to come; see `ubrain.optim`.
        """
        for name, adam in self.embeddings.items():
            mine = [rates[i] for i, step in enumerate(steps) for b in step if b.subject == name]
            adam.plan(mine if self.plan.config.embedding_steps == "own" else rates)

    def _differentiate(
        self,
        images: Tensor,
        embedding: Tensor,
        target: Tensor,
        share: Tensor,
        which: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        embedding = embedding.detach().requires_grad_()
        e = embedding if which is None else embedding[which]  # (V, E) or (B, V, E)
        with autocast(self.device, self.plan.config.precision):
            predicted = self.encoder(self.source.levels(images), e)
        loss = share * loss_of(predicted.float(), target, self.plan.config)
        loss.backward()
        assert embedding.grad is not None
        return loss.detach(), embedding.grad

    def step(self, rate: Rate, step: list[Batch]) -> None:
        """Move the shared weights by the mean gradient of a step's batches, everybody's.

        Embeddings of own subjects that have no batch coast, if they take part in all steps.
        """
        if self.plan.config.embedding_steps == "all":
            for name in {*self.own} - {batch.subject for batch in step}:
                self.embeddings[name].coast()
        if self.group.size > 1 or len(step) > 1:
            self.group.sum_gradients(self.parameters)
            shares = math.fsum(batch.share for batch in step)
            for gradient in (p.grad for p in self.parameters if p.grad is not None):
                gradient /= shares
        for group in self.optimiser.param_groups:
            group["lr"], group["betas"] = rate.learning_rate, (rate.beta1, BETA2)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def validate(self) -> float:
        """75th percentile of the correlation on val images: over all voxels of all subjects; or,
        pooled, over columns, in each of which every image of every subject has a drawn voxel.
        """
        found, pooled = dict[str, Any](), self.plan.config.validation == "pooled"
        for name in self.own:
            rows = self.source.crowd[name].image_rows("val")
            predictor = Predictor(self.encoder, name, precision=self.plan.config.precision)
            if pooled:
                found[name] = pairs(predictor, self.source, name, rows, self.plan.val_voxels(name))
            else:
                found[name] = correlate(predictor, self.source, name, rows)
        everybody = {name: part for some in self.group.gather(found) for name, part in some.items()}
        ordered = [everybody[name] for name in self.plan.subjects]
        r = correlation(*np.concatenate(ordered, 1)) if pooled else np.concatenate(ordered)
        return float(np.percentile(np.nan_to_num(r, nan=0.0), 75))

    def save(self, state: State) -> None:
        """Write everything that a killed training needs.

        The order matters: every process writes its subjects, then the first one the shared weights
        and, last, the state, which makes the epoch valid. The best epoch's files stay.
        """
        for name, adam in self.embeddings.items():
            moments = {"embeddings": adam.embeddings, "steps": adam.steps, **adam.moments}
            write_tensors(self._file(state.epoch, name), moments)
        self.group.wait()
        if self.group.first:
            everything = checkpoint.state_of(self.encoder, self.source.adapters)
            own = checkpoint.EMBEDDINGS
            shared = {n: t for n, t in everything.items() if not n.startswith(own)}
            weights = {"weights": shared, "optimiser": self.optimiser.state_dict()}
            write_tensors(self._file(state.epoch), weights)
            write_text(self.folder / WORK / STATE, json.dumps(asdict(state), indent=1))
            write_log(self.folder, state)
            for path in (self.folder / WORK).glob("[0-9]*.pt"):
                if int(path.stem.partition("-")[0]) not in (state.epoch, state.best_epoch):
                    path.unlink()
        self.group.wait()

    def resume(self) -> State | None:
        """The state that an earlier process left, if any, with everything as it was then."""
        path, state = self.folder / WORK / STATE, None
        if self.group.first and path.exists():
            try:
                state = State(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                raise UbrainError(
                    f"{path} cannot be read: {error}; delete {path.parent} to start anew"
                ) from error
        state = self.group.gather(state)[0]
        if state is not None:
            self.load(state.epoch)
            if self.group.first:
                log.info("continuing %s after epoch %d", self.folder, state.epoch)
        return state

    def load(self, epoch: int) -> None:
        """Everything as it was after an epoch."""
        shared = read_tensors(self._file(epoch), self.device)
        own = {checkpoint.EMBEDDINGS + n: t for n, t in self.encoder.embeddings.items()}
        weights = {**shared["weights"], **own}
        checkpoint.load_state(self.encoder, self.source.adapters, weights)
        self.optimiser.load_state_dict(shared["optimiser"])
        for name, adam in self.embeddings.items():
            moments = read_tensors(self._file(epoch, name), self.device)
            adam.steps = moments.pop("steps")
            adam.embeddings.copy_(moments.pop("embeddings"))
            adam.moments = moments

    def finish(self, state: State, settings: dict[str, Any]) -> UniversalEncoder:
        """The encoder of the best epoch, with all subjects, as a checkpoint."""
        encoder = self.encoder
        self.load(state.best_epoch)
        self.group.wait()  # until every process has loaded its best epoch
        if self.group.first:
            write_log(self.folder, state)
            for name in (n for n in self.plan.subjects if n not in self.own):
                theirs = read_tensors(self._file(state.best_epoch, name), self.device)
                encoder.add_subject(name, len(theirs["embeddings"]))
                encoder.subject(name).data = theirs["embeddings"]
            ordered = {name: encoder.embeddings[name] for name in self.plan.subjects}
            encoder.embeddings = nn.ParameterDict(ordered)
            checkpoint.save(
                encoder,
                self.folder,
                self.source.adapters,
                settings=settings,
                val_r75=state.best_score,
                **checkpoint.recorded(self.source.crowd, self.plan.subjects),
            )
        self.group.wait()
        self.group.close()
        return encoder.eval()

    def _file(self, epoch: int, subject: str = "") -> Path:
        return self.folder / WORK / f"{epoch:05d}{'-' * bool(subject)}{subject}.pt"


def damaged(source: "Source", subjects: Sequence[str]) -> str:
    """Whose training responses are not finite, in words; nothing, if all are."""
    for name in subjects:
        rows = source.crowd[name].image_rows("train")
        for some in np.array_split(rows, -(-len(rows) // 64)):
            if not np.isfinite(source.crowd[name].responses_to(some)).all():
                return f"responses of {name!r} are not finite: {source.crowd.path} is damaged"
    return ""


def settings_of(
    source: "Source",
    subjects: Sequence[str],
    encoder_config: EncoderConfig,
    config: TrainingConfig,
    seed: int,
) -> dict[str, Any]:
    """Check the settings, and give everything that decides the result as plain values."""
    choices = {
        "schedule": ("plateau", "one-cycle"),
        "precision": ("fp32", "bf16"),
        "batches": ("mixed", "one-subject"),
        "voxel_draws": ("per-image", "shared"),
        "embedding_steps": ("all", "own"),
        "validation": ("pooled", "by-subject"),
    }
    for name, known in choices.items():
        if (value := getattr(config, name)) not in known:
            raise UbrainError(f"unknown {name} {value!r}: expected one of {', '.join(known)}")
    if config.schedule == "plateau" and config.learning_rate < config.min_learning_rate:
        raise UbrainError(
            f"learning_rate {config.learning_rate} is below min_learning_rate"
            f" {config.min_learning_rate}"
        )
    for name in ("epochs", "batch_images", "voxels_per_step", "batches_per_step"):
        if (value := getattr(config, name)) < 1:
            raise UbrainError(f"{name} is {value}: expected 1 or more")
    if config.batches_per_step > 1 and (config.batches, config.embedding_steps) != (
        "one-subject",
        "own",
    ):
        raise UbrainError(
            f"batches_per_step is {config.batches_per_step}: only with batches 'one-subject' and"
            " embedding_steps 'own' (recipe ours) can it be more than 1"
        )
    check_images(source.crowd, subjects)
    settings = {
        "crowd": source.crowd.fingerprint,
        "subjects": list(subjects),
        "seed": seed,
        "backbone": as_settings(replace(source.config, checkpointing=False)),  # which saves memory
        "encoder": as_settings(encoder_config),
        "training": as_settings(config),
    }
    if source.images is not None and not source.config.adapter_rank:
        settings["tokens"] = "made anew"  # on a GPU, from rounded images: nearly those of a cache
    if source.crowd.scheme:
        settings["split_scheme"] = source.crowd.scheme
    plain: dict[str, Any] = json.loads(json.dumps(settings))  # as it comes back: tuples are lists
    return plain


def check_images(crowd: "Crowd", subjects: Sequence[str]) -> None:
    """Raise an error unless each subject has images to train on, and enough to validate on."""
    where = f" in split scheme {crowd.scheme!r}" if crowd.scheme else ""
    for name in subjects:
        n_val = len(crowd[name].image_rows("val"))
        if n_val < LEAST_VAL_IMAGES or not len(crowd[name].image_rows("train")):
            raise UbrainError(
                f"subject {name!r} has {n_val} val images{where}; training needs at least"
                f" {LEAST_VAL_IMAGES}, and images to train on"
            )


def finished(folder: Path, settings: dict[str, Any], source: "Source") -> UniversalEncoder:
    """The encoder of a folder, if it was trained with these settings."""
    before = checkpoint.describe(folder).facts.get("settings", {})
    before = {name: before.get(name) for name in settings}
    refuse_others(before, settings, f"the finished training in {folder}", folder)
    if launched()[0] == 0:
        log.info("%s holds this training, finished; loading it", folder)
        # it may have been killed just before, or lie where nothing can be removed
        with suppress(UbrainError, OSError):
            if (folder / WORK).exists():
                with locked(folder / WORK, "it") as place:
                    empty(place)
            tidy(folder)
    return checkpoint.load(folder, source.adapters)


@contextmanager
def unfinished(
    out: str | Path | None, settings: dict[str, Any], device: torch.device
) -> Iterator[tuple[Path, Group]]:
    """The folder of a training that is not finished, and the processes that are at it."""
    if out is None and launched()[1] > 1:
        raise UbrainError("several processes need a folder for what they share; give one as `out`")
    with tempfile.TemporaryDirectory() if out is None else nullcontext(out) as name:
        folder, group = Path(name), Group(device)
        group.check_shared(folder)
        first, *others = group.gather(settings)
        for rank, theirs in enumerate(others, 1):
            if different := [key for key in first if theirs.get(key) != first[key]]:
                raise UbrainError(
                    f"process {rank} was started with other settings than process 0"
                    f" ({', '.join(different)}); give all the same command and the same crowd file"
                )
        refusal = ""
        with ExitStack() as stack:
            try:
                if group.first:
                    what = f"the training in {folder}"
                    stack.enter_context(work(folder / WORK, settings, what))
                    tidy(folder)
                    if (folder / checkpoint.CONFIG).exists():
                        raise UbrainError(
                            f"another process has just finished {what}; the same command loads it"
                        )
            except UbrainError as error:
                refusal = str(error)
            if refusal := group.gather(refusal)[0]:  # nobody waits for a first one that is refused
                raise UbrainError(refusal)
            yield folder, group


def tidy(folder: Path) -> None:
    """Remove what killed trainings left half-written."""
    for place in (folder, folder / checkpoint.VOXELS):
        remove_partials(place)


def write_log(folder: Path, state: State) -> None:
    """The history as a table, `log.csv`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, state.history[0])
    writer.writeheader()
    writer.writerows(state.history)
    write_text(folder / LOG, text.getvalue())


def write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Write tensors for `read_tensors`, all at once or not at all."""
    with atomic(path) as partial:
        try:
            torch.save(tensors, partial)
        except RuntimeError as error:  # all that torch says of a full disk
            raise UbrainError(
                f"{path} cannot be written ({str(error).splitlines()[0]}); if the disk is full,"
                " free some space: the same command continues"
            ) from error


def read_tensors(path: Path, device: torch.device) -> dict[str, Any]:
    """Tensors that this or an earlier process wrote."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UbrainError(
            f"{path} cannot be read: {error}; delete {path.parent} to start anew"
        ) from error


def tensorboard_of(folder: Path, state: State) -> Any:
    """A TensorBoard log that begins with the history: nothing is missing, nothing there twice."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UbrainError("the TensorBoard log needs `pip install ubrain[log]`") from error
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    board = SummaryWriter(str(folder / "tensorboard"))
    for row in state.history:
        show(board, row)
    return board


def show(board: Any, row: dict[str, float]) -> None:
    """Add a row of the history to a TensorBoard log."""
    for name in ("loss", "val_r75", "learning_rate"):
        board.add_scalar(name, row[name], int(row["epoch"]))
    board.flush()
