"""The training loop, the same on every device and in each of several processes.

An epoch is a pass over all rows in an order that follows from the seed and the epoch; so does what is random within it,
and the learning rate follows from the step. A checkpoint at an epoch's end therefore needs no state of any generator:
weights, AdamW's state, the losses so far and the best epoch's weights are all that the next epoch depends on.
"""

# ruff: noqa: TID253  only a fit imports this module
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from treadle.errors import UserError
from treadle.models.predictor import FitTask
from treadle.models.torch import file as torch_file
from treadle.models.torch.device import Device, open_device, reproducible
from treadle.models.torch.net import (
    Encoder,
    NetInputs,
    Whole,
    learn_encoder,
    learn_head,
    make_net,
    vector_lengths,
)
from treadle.models.torch.params import Settings, settings_of
from treadle.models.torch.weights import start_from
from treadle.models.torch.workers import Group, group_of

if TYPE_CHECKING:
    from treadle.models.predictor import Floats

_LOSS_NAMES = {"squared": "rmse", "absolute": "mae"}
_VALID_ROWS = 4096


def fit_net(task: FitTask) -> tuple[Whole, int]:
    """The trained network on the CPU, and how many epochs it holds.

    Raises:
        UserError: The device is not there, module or weights do not fit, or a loss became infinite.
    """
    settings = settings_of(task.train, task.device)
    device = open_device(task.device)
    with reproducible(settings, device):
        whole = _prepare(task, settings)
        torch_file.to_onnx(
            whole, len(task.schema.features)
        )  # refuse what can't be served before the long work
        with group_of(task, device.collective) as group:
            rounds = _Fit(task, settings, device, group, whole).run()
        return whole.cpu().eval(), rounds


def _prepare(task: FitTask, settings: Settings) -> Whole:
    encoder = learn_encoder(task.schema, task.x, settings.bins)
    head = learn_head(task.train.task, task.y)
    outputs = len(task.classes) if task.train.task == "multiclass" else 1

    def assemble(encoder: Encoder, head: dict[str, Tensor], vectors: tuple[int, ...] = ()) -> Whole:
        vectors = vectors or vector_lengths(encoder.levels, settings.embedding)
        net = make_net(task, NetInputs(encoder.width, encoder.levels, vectors, outputs), settings)
        return Whole(task.train.task, encoder, net, head)

    if task.init is None:
        return assemble(encoder, head)
    return start_from(task.init, task.schema, encoder, head, assemble)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Encoded rows on the device."""

    numbers: Tensor
    codes: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def pick(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.numbers[rows], self.codes[rows], self.y[rows]


def _encoded(whole: Whole, x: Floats, y: Floats, device: Device) -> _Rows:
    labels = y if whole.task != "regression" else (y - whole.shift.item()) / whole.stretch.item()
    kind = torch.int64 if whole.task == "multiclass" else torch.float32
    with torch.no_grad():
        numbers, codes = whole.encoder(torch.from_numpy(np.ascontiguousarray(x)))
    return _Rows(
        numbers.to(device.name), codes.to(device.name), torch.from_numpy(labels).to(kind).to(device.name)
    )


class _Fit:
    """One training: the rows, the net, and what it has so far."""

    def __init__(self, task: FitTask, settings: Settings, device: Device, group: Group, whole: Whole) -> None:
        self.task, self.settings, self.device, self.group = task, settings, device, group
        self.rows = _encoded(whole, task.x, task.y, device)
        self.valid = None
        if task.x_valid is not None and task.y_valid is not None:
            self.valid = _encoded(whole, task.x_valid, task.y_valid, device)
        self.stretch = float(whole.stretch)
        self.net = whole.net.to(device.name)
        self.run_net = torch.compile(self.net) if settings.compile else self.net
        self.optimizer = _adamw(self.net, settings)
        self.history: dict[str, list[float]] = {}
        self.best: dict[str, Tensor] = {}
        self.epoch = 0
        self.steps = math.ceil(len(self.rows) / settings.batch_size)

    def run(self) -> int:
        """Trains; the net then holds the weights of the best epoch, or of the last without early stopping."""
        self._restore()
        while self.epoch < self.task.train.rounds and not self._has_stopped():
            self._one_epoch()
            over = self.epoch == self.task.train.rounds or self._has_stopped()
            if self.group.rank == 0 and (over or self.epoch % self.task.train.checkpoint_every == 0):
                self.task.checkpoints.save(self.epoch, self._pack())
        if not self.task.train.early_stopping or not self.best:
            return self.epoch
        self.net.load_state_dict(self.best)
        return self._best() + 1

    def _one_epoch(self) -> None:
        seed = np.random.SeedSequence([self.task.train.seed, self.epoch, self.group.rank])
        self.device.seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
        order = np.random.default_rng([self.task.train.seed, self.epoch]).permutation(len(self.rows))
        self.net.train()
        total = torch.zeros((), dtype=torch.float32, device=self.device.name)
        for step in range(self.steps):
            self._set_rate(self.epoch * self.steps + step)
            total += self._step(order[step * self.settings.batch_size :][: self.settings.batch_size])
            self.device.sync()
        self.group.add(total)
        self._share_buffers()
        losses = {"train": float(total) / len(self.rows)}
        if self.valid is not None:
            found = torch.tensor(self._valid_loss(self.valid), dtype=torch.float64, device=self.device.name)
            self.group.share(found)
            losses["valid"] = float(found)
        self._take_down(losses)

    def _step(self, batch: Any) -> Tensor:
        """One step of the optimizer on the rows at some positions; the sum of this process's losses."""
        self.optimizer.zero_grad(set_to_none=False)
        total = torch.zeros((), dtype=torch.float32, device=self.device.name)
        for rows, weights in self._parts(batch):
            numbers, codes, y = self.rows.pick(rows)
            with self.device.autocast(self.settings.precision):
                logits = self.run_net(numbers, codes)
            loss = (self._losses(logits.to(torch.float32), y) * weights).sum()
            (loss / len(batch)).backward()
            total += loss.detach()
        self._add_gradients()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.clip)
        self.optimizer.step()
        return total

    def _parts(self, batch: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's parts of a batch, filled up with rows of weight 0: some devices compile for each shape."""
        parts = self.group.size * self.settings.accumulate
        size = math.ceil(self.settings.batch_size / parts)
        first = self.group.rank * self.settings.accumulate
        for part in range(first, first + self.settings.accumulate):
            own = batch[part * size : (part + 1) * size]
            rows = torch.from_numpy(np.resize(own if len(own) else batch[:1], size))
            weights = (torch.arange(size) < len(own)).to(torch.float32)
            yield rows.to(self.device.name), weights.to(self.device.name)

    def _losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """(n,) the loss of each row."""
        if self.task.train.task == "multiclass":
            return nn.functional.cross_entropy(logits, y, reduction="none")
        if self.task.train.task == "binary":
            return nn.functional.binary_cross_entropy_with_logits(logits.squeeze(1), y, reduction="none")
        gap = logits.squeeze(1) - y
        if self.settings.loss == "squared":
            return gap * gap
        if self.settings.loss == "absolute":
            return gap.abs()
        return nn.functional.huber_loss(logits.squeeze(1), y, reduction="none")

    def _add_gradients(self) -> None:
        """Sums the gradients over the group, all in one message."""
        if self.group.size == 1:
            return
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.group.add(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _share_buffers(self) -> None:
        for buffer in self.net.buffers():
            self.group.share(buffer)

    def _valid_loss(self, valid: _Rows) -> float:
        self.net.eval()
        total = torch.zeros((), dtype=torch.float32, device=self.device.name)
        with torch.no_grad():
            for start in range(0, len(valid), _VALID_ROWS):
                rows = torch.arange(start, start + _VALID_ROWS)
                weights = (rows < len(valid)).to(torch.float32).to(self.device.name)
                numbers, codes, y = valid.pick(rows.clamp(max=len(valid) - 1).to(self.device.name))
                with self.device.autocast(self.settings.precision):
                    logits = self.run_net(numbers, codes)
                total += (self._losses(logits.to(torch.float32), y) * weights).sum()
                self.device.sync()
        return float(total) / len(valid)

    def _set_rate(self, step: int) -> None:
        rate = rate_at(self.settings, step, self.steps * self.task.train.rounds)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _take_down(self, losses: dict[str, float]) -> None:
        """Reports an epoch's losses, in units of the label, and keeps the weights if they are the best."""
        name = _LOSS_NAMES.get(self.settings.loss, self.settings.loss)
        told = {}
        for part, loss in losses.items():
            if not math.isfinite(loss):
                raise UserError(
                    f"the {part} loss became {loss} in epoch {self.epoch}: lower params.learning_rate"
                )
            if self.settings.loss == "squared":
                loss = math.sqrt(loss)
            told[f"{part}_{name}"] = loss * self.stretch if name in ("rmse", "mae") else loss
        for key, value in told.items():
            self.history.setdefault(key, []).append(value)
        if self.task.train.early_stopping and self.valid is not None and self._best() == self.epoch:
            self.best = {key: tensor.detach().clone() for key, tensor in self.net.state_dict().items()}
        if self.group.rank == 0:
            self.task.report(self.epoch, told)
        self.epoch += 1

    def _valid(self) -> list[float]:
        return next((values for name, values in self.history.items() if name.startswith("valid_")), [])

    def _best(self) -> int:
        """The first epoch with the lowest loss on the newest rows."""
        losses = self._valid()
        return losses.index(min(losses))

    def _has_stopped(self) -> bool:
        stopping, losses = self.task.train.early_stopping, self._valid()
        return bool(stopping and losses and len(losses) - 1 - self._best() >= stopping.rounds)

    def _pack(self) -> bytes:
        tensors = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adamw.{number}.{name}": tensor for name, tensor in state.items()}
        return torch_file.pack_checkpoint({"epoch": self.epoch, "history": self.history}, tensors)

    def _restore(self) -> None:
        found = self.task.checkpoints.latest()
        if found is None:
            return
        state, tensors = torch_file.unpack_checkpoint(found[1])
        self.epoch, self.history = state["epoch"], state["history"]
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "best": {}, "adamw": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        self.net.load_state_dict(parts["net"])
        self.best = {name: tensor.to(self.device.name) for name, tensor in parts["best"].items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in parts["adamw"].items():
            number, _, name = key.partition(".")
            moments.setdefault(int(number), {})[name] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        for epoch in range(self.epoch if self.group.rank == 0 else 0):
            self.task.report(epoch, {name: values[epoch] for name, values in self.history.items()})


def _adamw(net: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW that decays matrices, and leaves biases and scales alone."""
    trained = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate)


def rate_at(settings: Settings, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0, of so many in all."""
    top, rising = settings.learning_rate, max(1, round(settings.warmup * steps)) if settings.warmup else 0
    first, last = (top / 25, top / 10_000) if settings.schedule == "one_cycle" else (0.0, 0.0)
    if step < rising:
        return first + (top - first) * (step + 1) / rising
    if settings.schedule == "constant":
        return top
    done = (step - rising) / max(1, steps - rising)
    return last + (top - last) * (1 + math.cos(math.pi * done)) / 2
