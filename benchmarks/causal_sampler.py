"""Sampling whole batches: the native sampler, a cached one in eager PyTorch, and the loops that peers run.

"eager" is a cached sampler as one would write it in PyTorch for grey images: rows of the vertical stack by
convolutions, then the features of each pixel by matrix products over those of its left neighbours. The loops run the
whole net, as users write it, once for every draw: "naive" on whole images, "rows" on those down to the pixel. They
would take minutes, so their figures are extrapolated: a pass over the images (for "rows": one for each number of rows)
is timed, and multiplied by how many there are in a batch. The choice of a level is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, random
from ..models import Autoregressive, GatedPixelCNN, PixelCNNPlusPlus
from ..nn import Compiled
from ..ops import weight_to_dense
from .cases import Case, Function, Inputs, Problem, Tensors, Work
from .pixelcnn import Eager, EagerGated, EagerPlusPlus


def work_of(compiled: Compiled, batch: int) -> Work:
    """Products of the stages, for every place that they are computed for; weights once, and the levels."""
    program = compiled.program
    places = [-(-program.height // s.row_every) * -(-program.width // s.column_every) for s in program.stages]
    products = sum(s.depth * s.outputs * n for s, n in zip(program.stages, places, strict=True))
    return Work(
        sum(t.nbytes for t in compiled.tensors) + 8 * batch * program.height * program.width, 2 * batch * products
    )


class CachedGated:
    """GatedPixelCNN for grey images, without conditions."""

    def __init__(self, model: GatedPixelCNN) -> None:
        self.model, self.kernels, self.products = model, [], []
        for layer in model.layers:
            vertical, horizontal = layer.vertical, layer.horizontal
            rows, columns = zip(*vertical.taps, strict=True)
            top, reach = -min(rows), max(columns)
            size = (top + max(rows) + 1, 2 * reach + 1)
            kernel = weight_to_dense(vertical.weight.detach(), vertical.taps, size, centre=(top, reach))
            self.kernels.append((kernel, vertical.bias))
            beside = [layer.skip] if layer.out is None else [layer.out, layer.skip]
            self.products.append(
                (
                    layer.link.weight[0],
                    layer.link.bias + horizontal.bias,
                    horizontal.weight.flatten(0, 1),
                    torch.cat([conv.weight[0] for conv in beside], 1),
                    torch.cat([conv.bias for conv in beside]),
                )
            )

    @torch.no_grad()
    def __call__(self, x: Tensor, known: Tensor) -> Tensors:
        model, (batch, _, height, width) = self.model, x.shape
        hidden, count, scale = model.last.weight.shape[1], len(self.kernels), 2 / (model.levels - 1)
        image = torch.zeros(batch, 1, height + 3, width + 6)  # three rows above, three columns beside
        above = [torch.zeros(batch, hidden, 2, width + 2) for _ in range(count - 1)]
        levels = torch.zeros(batch, 1, height, width, dtype=torch.int64)
        last, head = model.last, model.head
        for r in range(height):
            starts = []
            rows = image[:, :, r : r + 3]
            for i, (kernel, bias) in enumerate(self.kernels):
                link, link_bias = self.products[i][:2]
                v = F.conv2d(rows, kernel, bias)[:, :, 0]  # [B, 2 hidden, W]
                starts.append(
                    torch.addmm(link_bias, v.transpose(1, 2).flatten(0, 1), link).unflatten(0, (batch, width))
                )
                if i + 1 < count:
                    a, b = v.chunk(2, 1)
                    rows = above[i]
                    rows[:, :, 0] = rows[:, :, 1]
                    rows[:, :, 1, 1:-1] = a.tanh() * b.sigmoid()
            before = [torch.zeros(batch, hidden) for _ in range(count - 1)]
            for c in range(width):
                seen, total, h = image[:, 0, r + 3, c : c + 3], None, None
                for i, (_, _, weight, both, both_bias) in enumerate(self.products):
                    a, b = torch.addmm(starts[i][:, c], seen, weight).chunk(2, 1)
                    y = torch.addmm(both_bias, a.tanh() * b.sigmoid(), both)
                    skip = y[:, -hidden:]
                    total = skip if total is None else total + skip
                    if i + 1 < count:
                        h = y[:, :hidden] if h is None else h + y[:, :hidden]
                        seen = torch.cat([before[i], h], 1)
                        before[i] = h
                logits = F.linear(F.relu(torch.addmm(last.bias, F.relu(total), last.weight[0])), head.weight, head.bias)
                place = r * width + c
                levels[:, 0, r, c] = drawn = random.categorical(logits[:, None], generator=0, offset=place)[:, 0]
                image[:, 0, r + 3, c + 3] = drawn * scale - 1
        return (levels.double(),)


def loop(model: Autoregressive, eager_of: type[Eager], levels: Tensor, by_rows: bool) -> Function:
    """A pass over whole images, or one for each number of rows; dense or cropped kernels and layout as is fastest.

    Raises ValueError unless its likelihood of some images is the model's."""

    def form(crop: bool, last: bool) -> Function:
        net = eager_of(model, crop, last, fixed=True).eval()
        loss, wanted = net(levels), model(levels)
        if not torch.allclose(loss, wanted, rtol=1e-4):
            raise ValueError(f"expected the model's likelihood {wanted.item()}, got {loss.item()}")

        def call(x: Tensor, known: Tensor) -> Tensors:
            scaled = x.float().to(memory_format=net.format)
            heights = range(1, x.shape[2] + 1) if by_rows else [x.shape[2]]
            return tuple(net.parameters_of(scaled[:, :, :height]) for height in heights)

        return call

    @torch.no_grad()
    def seconds(function: Function) -> float:
        function(levels[:, :, :8], levels[:, :, :8])
        start = time.perf_counter()
        function(levels, levels)
        return time.perf_counter() - start

    with torch.no_grad():
        return min((form(crop, last) for crop in (False, True) for last in (False, True)), key=seconds)


def case(
    name: str,
    model_of: Callable[..., Autoregressive],
    eager_of: type[Eager],
    shape: tuple[int, int, int, int],
    *,
    others: bool = True,
    by_completion: bool = False,
    **of_case: Any,
) -> Case:
    """others: whether there are arms beside the native one. by_completion: judged by some pixels among known ones: of a
    mixture, a level in some ten thousand is another one for rounding, and with it all that follow."""

    def build(device: torch.device) -> Problem:
        torch.manual_seed(0)
        model = model_of(shape[1:]).to(device).eval()
        levels = torch.randint(model.levels, shape, device=device)
        model.initialize(levels)
        with torch.no_grad():  # sharper than at the start: levels are no longer alike
            for parameter in model.parameters():
                parameter.mul_(1.5 if parameter.dim() > 1 else 1)
        compiled = model.program()

        def ours(x: Tensor, known: Tensor) -> Tensors:
            drawn, _ = ops.causal_sampler(compiled.program, compiled.tensors, x, known, generator=0)
            return (drawn.double(),)

        x = torch.zeros(shape, dtype=torch.int64, device=device)
        inputs = Inputs((x, x.bool()))
        proof, tolerance = None, 0.1
        if by_completion:
            known = torch.rand(shape[0], 1, *shape[2:], device=device) < 15 / 16
            known[:, :, shape[2] // 4 :] = True
            proof, tolerance = Inputs((levels, known.expand(shape))), 0.2
        work = {"fwd": work_of(compiled, shape[0])}
        if not others:
            return Problem(inputs, ours, {}, ours, work, tolerance=tolerance, proof=proof)
        passes = compiled.program.groups * shape[3]
        peers = {
            "naive": partial(loop, model, eager_of, levels, by_rows=False),
            "rows": partial(loop, model, eager_of, levels, by_rows=True),
        }
        repeats = {"naive": passes * shape[2], "rows": passes}
        eager: dict[str, Function] = {"cached": CachedGated(model)} if isinstance(model, GatedPixelCNN) else {}
        return Problem(inputs, ours, eager, ours, work, peers, tolerance=tolerance, repeats=repeats, proof=proof)

    name = f"{name}-{'x'.join(map(str, shape))}"
    return Case("causal_sampler", name, build, modes=("fwd",), draws=True, compiles=False, **of_case)


_gated = partial(GatedPixelCNN, hidden=64, layers=6)  # seven gated layers

CASES = (
    case("gated-64", _gated, EagerGated, (1, 1, 28, 28), quick=True),
    case("gated-64", _gated, EagerGated, (16, 1, 28, 28)),
    case("gated-64", _gated, EagerGated, (64, 1, 28, 28)),
    case("plusplus-64", partial(PixelCNNPlusPlus, hidden=64), EagerPlusPlus, (16, 3, 32, 32), by_completion=True),
    case("plusplus-160", PixelCNNPlusPlus, EagerPlusPlus, (16, 3, 32, 32), by_completion=True, others=False),
)
