"""Parts for `toy.make` that each break one item of the contract."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygen import backends

from . import toy

# --- kernels and fakes ------------------------------------------------------------------------------------------------


def rough(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y, logdet = toy.forward(x, s)
    return y * (1 + 1e-5), logdet


def ignores_strides(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    return toy.forward(x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride()), s)


def forgets_the_tail(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y, logdet = toy.forward(x, s)
    out = torch.empty_like(y)
    whole = y.numel() // 4 * 4
    out.view(-1)[:whole] = y.view(-1)[:whole]
    return out, logdet


def narrow_logdet(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y, logdet = toy.forward(x, s)
    return y, logdet.to(x.dtype)


def narrow_sum(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y, logdet = toy.forward(x, s)
    return y, s.flatten(1).cumsum(1)[:, -1].to(logdet.dtype)


def overflows(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y, logdet = toy.forward(x, s)
    return y, s.to(logdet.dtype).exp().flatten(1).prod(1).log()


def mixes_samples(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y, logdet = toy.forward(x, s)
    return y + (0 * x.sum()).to(y.dtype), logdet


def swallows_nan(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y, logdet = toy.forward(x, s)
    return y.nan_to_num(), logdet


def minds_the_next_sample(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y, logdet = toy.forward(x, s)
    return y, torch.where(logdet.roll(1).isnan(), logdet + 1, logdet)


def wrong_gradient(*args: Any) -> tuple[Tensor, Tensor]:
    grad_x, grad_s = toy.gradient(*args)
    return 1.001 * grad_x, grad_s


def gradient_ignores_strides(grad_y: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    stride = torch.empty(grad_y.shape, device="meta").stride()
    return toy.gradient(grad_y.as_strided(grad_y.shape, stride), *args)


def gradient_mixes_elements(*args: Any) -> tuple[Tensor, Tensor]:
    grad_x, grad_s = toy.gradient(*args)
    return grad_x, grad_s + 0 * grad_s.flatten(1).sum(1).view(-1, *[1] * (grad_s.dim() - 1))


def gradient_skips_nothing(*args: Any) -> tuple[Tensor, Tensor]:
    return toy.gradient(*args[:4], True, True)


def gradient_differs_alone(*args: Any) -> tuple[Tensor, Tensor]:
    grad_x, grad_s = toy.gradient(*args)
    return (grad_x, grad_s) if args[-1] else (grad_x * (1 + 1e-6), grad_s)


def gradient_writes_upstream(grad_y: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    grads = toy.gradient(grad_y, *args)
    grad_y.zero_()
    return grads


def no_derivative(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
    return (None,) * 6


def skips_nothing(**arguments: Any) -> tuple[Tensor, Tensor]:
    return toy.gradient(**{**arguments, "need_x": True, "need_s": True})


def skipping_changes_others(**arguments: Any) -> tuple[Tensor, Tensor]:
    grad_x, grad_s = toy.gradient(**arguments)
    return grad_x, grad_s if arguments["need_x"] else grad_s + 1


def saves_more(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    toy.save(ctx, inputs, output)
    ctx.save_for_backward(output[0], inputs[1].exp().log())


def holds_an_input(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    toy.save(ctx, inputs, output)
    ctx.x = inputs[0]


def writes_its_input(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    result = toy.forward(x, s)
    x.zero_()
    return result


def touches_its_input(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    x.mul_(1)
    return toy.forward(x, s)


def writes_between(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    result = toy.forward(x, s)
    x.as_strided((1,), (1,), x.untyped_storage().nbytes() // x.element_size() - 1).zero_()
    return result


def shares_memory(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y, logdet = toy.forward(x, s)
    return y, y.new_empty(0).set_(y.untyped_storage(), 0, logdet.shape).copy_(logdet)


def fake_of_other_shape(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y, logdet = toy.fake(x, s)
    return y, logdet.new_empty(logdet.shape[0], 1)


def fake_of_other_strides(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y, logdet = toy.fake(x, s)
    return y.contiguous(), logdet


def fake_of_other_dtype(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y, logdet = toy.fake(x, s)
    return y, logdet.to(x.dtype)


def fake_without_check(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    return toy.fake(x, x)


def no_check(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    return toy.forward(x, x)


def says_little(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != s.shape:
        raise ValueError("toy: bad shape (2, 4)")
    return toy.forward(x, s)


def raises_another_error(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != s.shape:
        raise RuntimeError("toy: expected one shape, got (2, 3) and (2, 4)")
    return toy.forward(x, s)


def says_something_else(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != s.shape:
        raise ValueError("toy: expected something else, got (2, 4)")
    return toy.forward(x, s)


calls = 0


def remembers(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    global calls
    calls += 1
    y, logdet = toy.forward(x, s)
    return y * (1 + calls * 2**-20), logdet


def counts_threads(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y, logdet = toy.forward(x, s)
    return y * (1 + torch.get_num_threads() * 2**-20), logdet


def batching_rule(info: Any, in_dims: Any, x: Tensor, s: Tensor) -> Any:
    return (x, s.movedim(in_dims[1], 0).flatten(2).sum(2)), (in_dims[0], 0)


# --- public functions -------------------------------------------------------------------------------------------------


def breaks_the_graph(function: Any) -> Any:
    def f(x: Tensor, s: Tensor) -> Any:
        return function(x, s) if float(x.detach().sum()) < 1e30 else function(x, x)

    return f


def recompiles(function: Any) -> Any:
    def f(x: Tensor, s: Tensor) -> Any:
        return function(x, s) if {2: 1, 3: 1, 5: 1, 8: 1}.get(x.shape[0], 1) else function(s, x)

    return f


def differs_compiled(function: Any) -> Any:
    def f(x: Tensor, s: Tensor) -> Any:
        return function(2 * x, s) if torch.compiler.is_compiling() else function(x, s)

    return f


def differs_without_grad(function: Any) -> Any:
    def f(x: Tensor, s: Tensor) -> Any:
        return function(x, s) if torch.is_grad_enabled() else function(x * (1 + 1e-6), s)

    return f


def detaches(function: Any) -> Any:
    def f(x: Tensor, s: Tensor) -> Any:
        return tuple(t.detach() for t in function(x, s))

    return f


def wrong_reverse_mode(function: Any) -> Any:
    def f(x: Tensor, s: Tensor) -> Any:
        return toy.reference(x, s.detach()) if torch._C._functorch.peek_interpreter_stack() else function(x, s)

    return f


def is_cast(function: Any) -> Any:
    def f(x: Tensor, s: Tensor) -> Any:
        y, _ = function(x, s)
        return y, s.flatten(1) @ s.new_ones(s[0].numel())

    return f


def calls_no_op(function: Any) -> Any:
    return toy.reference


def reference_of_other_strides(function: Any) -> Any:
    def f(x: Tensor, s: Tensor) -> Any:
        y, logdet = function(x, s)
        return y.contiguous() if backends.forced == "reference" else y, logdet

    return f
