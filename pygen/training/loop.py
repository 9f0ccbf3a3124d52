"""The training loop: AdamW, a schedule, clipped gradients, mixed precision, an average of the weights."""

from __future__ import annotations

import copy
from typing import Any, Generic

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .. import ranks
from ..data import Dataset
from ..models.model import M
from .batches import Batches
from .options import Options


class Trainer(Generic[M]):
    """A run of `options.steps` steps. Its state after a step depends on the options, the data and the first weights.

    All randomness of a step comes from torch's global streams, which are seeded for that step: nothing of them needs
    saving. `initialize` comes first, then each `advance` does a step; `averaged` is the result, in eval mode; `state`
    and `restore` carry a run over to another process, which then continues it to the same bits (with the same number of
    threads and processes).

    In a process group (`torchrun`) every process calls the same methods, and takes its part of every batch.
    """

    def __init__(self, model: M, data: Dataset, options: Options, *, device: torch.device | str = "cpu") -> None:
        world = ranks.world()
        if options.batch_size % world:
            raise ValueError(f"expected a batch size divisible by the {world} processes, got {options.batch_size}")
        self.options = options
        self.device = torch.device(device)
        self.model = model.to(self.device).train()
        self.averaged = copy.deepcopy(model).eval()
        self.step = 0
        self.batches = Batches(data, options, labels=model.num_classes is not None)
        # Walking a model to find these takes longer than using them.
        self._weights, self._means = list(self.model.parameters()), list(self.averaged.parameters())
        self._buffers = list(zip(self.averaged.buffers(), self.model.buffers(), strict=True))
        self.optimizer = torch.optim.AdamW(
            self._weights, lr=options.lr, betas=(0.9, 0.99), weight_decay=options.weight_decay, fused=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "float16")
        self._loss = self._in_step() if world > 1 else self.model

    def _in_step(self) -> DistributedDataParallel:
        """The model as all processes train it together."""
        cuda = self.device.type == "cuda"
        parallel = DistributedDataParallel(self.model, device_ids=[self.device.index] if cuda else None)
        # After its first pass DDP rearranges the gradients that it sums together, and with them the order of sums over
        # more than two processes. With a pass beforehand every step finds the final order, a resumed run's first too.
        self._forward(parallel, 0).backward()
        self.optimizer.zero_grad()
        return parallel

    def _forward(self, model: torch.nn.Module, step: int) -> Tensor:
        options = self.options
        torch.manual_seed(options.seed_of("step", step, ranks.rank()))
        batch = [part.to(self.device, non_blocking=True) for part in self.batches[step]]
        dtype = getattr(torch, options.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            loss: Tensor = model(*batch)
        return loss

    def initialize(self) -> None:
        """Lets the model look at the first batch, whole in every process, before the first step."""
        self.model.initialize(*[part.to(self.device) for part in self.batches.first()])
        self.averaged.load_state_dict(self.model.state_dict())

    def advance(self) -> Tensor:
        """Does a step and returns its loss, on the device: only reading it waits for the step's end.

        A gradient that is not finite makes the loss NaN, unless float16's scaling takes care of it.
        """
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = options.rate(self.step)
        self.optimizer.zero_grad()
        loss = self._forward(self._loss, self.step)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._weights, options.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        get_ema_multi_avg_fn(options.decay(self.step))(self._means, self._weights, 0)
        for mean, now in self._buffers:
            mean.copy_(now)
        self.step += 1
        loss = loss.detach()
        return loss if self.scaler.is_enabled() else torch.where(norm.isfinite(), loss, torch.nan)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `restore` needs: tensors, and what JSON can hold."""
        names = [name for name, _ in self.model.named_parameters()]
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{key}.{names[i]}": tensor for key, tensor in moments.items()}
        return tensors, {"step": self.step, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Continues where another trainer, of the same model and options, was when it gave its `state`."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}

        self.model.load_state_dict(part("model"))
        self.averaged.load_state_dict(part("averaged"))
        moments = {key: part(key) for key in ("step", "exp_avg", "exp_avg_sq")}
        state = self.optimizer.state_dict()
        state["state"] = {
            i: {key: of[name] for key, of in moments.items()}
            for i, (name, _) in enumerate(self.model.named_parameters())
            if name in moments["step"]
        }
        self.optimizer.load_state_dict(state)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(values["scaler"])
        self.step = values["step"]
