"""Layer-wise relevance propagation: each pixel's share of the score, by the rules of MambaLRP.

Source: Jafari et al., "MambaLRP: explaining selective state space sequence models" (NeurIPS 2024);
for attention and norms Ali et al., "XAI for transformers: better explanations through conservative
propagation" (ICML 2022). The relevance of a pixel is input times gradient, R = x * df/dx. The
forward pass of the network is unchanged; its gradient is changed for operations that would violate
the conservation of relevance:

- scan: delta, B and C are treated as constants, so that the scan is linear in its input;
- gate, and any product of two tensors that depend on the image: each factor gets half of the
  relevance;
- SiLU, GELU and similar functions, f(x) = x s(x): s(x) is treated as a constant, so that they are
  locally linear;
- norms: the divisor is treated as a constant, the subtracted mean is not;
- attention: the weights are treated as constants; so are sigmoids, the gates of
  squeeze-and-excitation, and the weights of the logsumexp of classes.

All other operations are linear, or piecewise linear without a constant (ReLU, pooling), and keep
their gradient. The modified network is linear in pixels and additive constants (biases of layers
and norms, position embeddings, class token), so the score is the sum of the relevance of both. The
relevance of biases is not distributed to pixels. `conservation_error` is |score - pixels - biases|
divided by the largest of the three; it is a rounding error if every operation has a rule. Without
additive constants, the relevance of the pixels sums to the score. Pixels of value 0 after
the normalisation have no relevance: those of its mean colour, or black ones if it has no mean.

Linear layers and convolutions use the basic rule (LRP-0), with which neighbouring pixels can have
opposite signs; smooth a map before looking for regions. The paper's pictures of Vim also use the
gamma rule for these layers, which assigns nearly all relevance to biases in networks with many.

Cost: one forward and one backward pass per batch, without gradients of parameters. Supported are
networks whose operations all have rules: VMamba, Vim, U-Mamba, ViT, Swin, ConvNeXt, ResNet,
MobileNet, EfficientNet and similar networks. If the conservation error is too large, the error
message names the operations without a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustcli.core.errors import UsageError
from robustcli.explanation.network import Attribution, ExplainedNetwork, batched

TOLERANCE = 0.01
"""Networks with at least this conservation error are refused; in float32 it is below 1e-3."""


def relevance(
    explained: ExplainedNetwork,
    pixels: Tensor,
    targets: Tensor,
    *,
    batch_size: int,
    seeds: Sequence[int] = (),
) -> Attribution:
    """The signed relevance of each pixel, summed over channels: maps (N, H, W).

    The checks are `conservation_error` and `bias_relevance`, the relevance of additive constants in
    the unit of the score.

    Raises:
        UsageError: The network has an operation without a rule.
    """
    parts = batched(len(pixels), batch_size)
    return _joined([_relevance(explained, pixels[part], targets[part]) for part in parts])


def _joined(parts: Sequence[Attribution]) -> Attribution:
    checks = {name: torch.cat([part.checks[name] for part in parts]) for name in parts[0].checks}
    return Attribution(torch.cat([part.maps for part in parts]), checks)


def _relevance(explained: ExplainedNetwork, pixels: Tensor, targets: Tensor) -> Attribution:
    """The result for one batch."""
    pixels = pixels.detach().requires_grad_(True)
    rules = ConservingRules(len(pixels))
    with torch.enable_grad():
        with rules:
            scores = explained.score(pixels, targets)
        if not scores.requires_grad:
            raise _without_rule(
                explained, "According to the rules, its score does not depend on the pixels."
            )
        (gradient,) = torch.autograd.grad(scores.sum(), pixels)
    biases = rules.biases.to(scores)
    maps = (pixels * gradient).detach().sum(1)  # (N, H, W)
    scores, sums = scores.detach(), maps.flatten(1).sum(1)
    scale = torch.stack((scores, sums, biases)).abs().amax(0)
    errors = (scores - sums - biases).abs() / scale.clamp(min=torch.finfo(scale.dtype).tiny)
    worst = float(errors.max())
    if worst < TOLERANCE or not errors.isfinite().all():  # the caller checks maps for NaN
        return Attribution(maps, {"conservation_error": errors, "bias_relevance": biases})
    if len(pixels) > 1:  # a network may reorder the batch, by which constants are counted
        pairs = zip(pixels, targets, strict=True)
        return _joined([_relevance(explained, x[None], target[None]) for x, target in pairs])
    unknown = ", ".join(f"`{name}`" for name in sorted(rules.unknown))
    raise _without_rule(
        explained,
        f"The sum of relevance and biases differs from the score by {worst:.0%}."
        + (f" No rule is defined for {unknown}." if unknown else ""),
    )


def _without_rule(explained: ExplainedNetwork, why: str) -> UsageError:
    return UsageError(
        f"`--method relevance` cannot be used with this network (`{explained.family}`).",
        why,
        "Use `--method integrated-gradients`, `--method occlusion` or `--method grad-cam`.",
    )


class ConservingRules(TorchFunctionMode):
    """While active, changes the gradients of torch functions so that they conserve relevance.

    The values of the functions are unchanged, and networks and parameters are not modified: only
    the recorded gradient of calls inside the context differs. A tensor that requires a gradient is
    assumed to depend on the image, so parameters must not require gradients.

    Args:
        images: Number of images per batch.
    """

    def __init__(self, images: int) -> None:
        super().__init__()
        self.biases = torch.zeros(images)  # relevance of constants, set by the backward pass
        self.unknown: set[str] = set()  # functions without a rule
        # Result and argument of the last sigmoid. The argument replaces the logit of the result,
        # for segmenters that return probabilities, whose score is a logit.
        self.last_sigmoid: tuple[Tensor | None, Tensor | None] = (None, None)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Calls the rule of `func`, or `func` if it has no rule."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func)).strip("_")
        name = _ALIASES.get(name, name)
        if name == "logit" and args and args[0] is self.last_sigmoid[0]:
            return self.last_sigmoid[1]
        if not _depends((*args, *kwargs.values())):
            return func(*args, **kwargs)
        rule = _RULES.get(name)
        if rule is not None:
            return rule(self, func, *args, **kwargs)
        if name not in _LINEAR:
            self.unknown.add(name)
        return func(*args, **kwargs)

    def counted(self, y: Tensor, constant: Tensor | float) -> Tensor:
        """Registers that `constant` was added to `y`: the backward pass sums its relevance.

        Args:
            y: The sum. Along its first dimension, each image has the same number of consecutive
                rows.
            constant: The added constant, broadcastable to `y`.

        Returns:
            `y`.
        """
        offset = torch.as_tensor(constant).to(y)
        offset = offset.reshape((1,) * (y.ndim - offset.ndim) + offset.shape)
        repeated = [d for d in range(1, y.ndim) if offset.shape[d] == 1]

        def count(gradient: Tensor) -> None:
            images = len(self.biases)
            if gradient.ndim and len(gradient) % images == 0:  # else: conservation error
                summed = gradient.sum(repeated, keepdim=True) if repeated else gradient
                counts = (summed * offset).reshape(images, -1).sum(1)
                self.biases = self.biases.to(counts) + counts

        y.register_hook(count)
        return y


def _depends(values: Sequence[Any]) -> bool:
    return any(
        value.requires_grad if isinstance(value, Tensor)
        else isinstance(value, list | tuple) and _depends(value)
        for value in values
    )  # fmt: skip


def _constant(value: object) -> bool:
    return not (isinstance(value, Tensor) and value.requires_grad)


# --- The rules, each with the signature of the function that it replaces --------------------------

Func = Callable[..., Any]
_Rule = Callable[..., Any]


def _scan(rules: ConservingRules, func: Func, x: Tensor, delta: Tensor, A: Tensor, B: Tensor,
          C: Tensor, D: Tensor | None = None, *args: Any, **options: Any) -> Any:  # fmt: skip
    """Linear in x. A gate z is not supported; no network of the package passes one to the scan."""
    return func(x, delta.detach(), A, B.detach(), C.detach(), D, *args, **options)


def _product(rules: ConservingRules, func: Func, x: Any, y: Any, **options: Any) -> Any:
    """If both factors depend on the image, each gets half of the relevance of the product."""
    product: Tensor = func(x, y, **options)
    if not (_constant(x) or _constant(y)):
        product.register_hook(lambda gradient: gradient / 2)
    return product


def _quotient(rules: ConservingRules, func: Func, x: Any, y: Any, **options: Any) -> Any:
    return func(x, y if _constant(y) else y.detach(), **options)


def _sum(rules: ConservingRules, func: Func, x: Any, y: Any, **options: Any) -> Any:
    """Counts the relevance of an added or subtracted constant."""
    total = func(x, y, **options)
    if not (_constant(x) or _constant(y)):
        return total
    backward = func.__name__ in ("__rsub__", "rsub")  # y - x
    minus = "sub" in func.__name__
    constant, negative = (x, minus and backward) if _constant(x) else (y, minus and not backward)
    return rules.counted(total, (-1 if negative else 1) * options.get("alpha", 1) * constant)


def _sum_of_product(rules: ConservingRules, func: Func, x: Any, factor: Any, other_factor: Any,
                    *, value: float = 1) -> Any:  # fmt: skip
    return _sum(rules, torch.add, x, _product(rules, torch.mul, factor, other_factor), alpha=value)


def _concatenation(
    rules: ConservingRules, func: Func, tensors: Sequence[Tensor], *args: Any, **options: Any
) -> Tensor:
    """Counts the relevance of constant parts."""
    joined: Tensor = func(tensors, *args, **options)
    parts = [torch.zeros_like(t) if t.requires_grad else t for t in tensors]
    if all(t.requires_grad for t in tensors):
        return joined
    return rules.counted(joined, func(parts, *args, **options))


def _linear(
    rules: ConservingRules, func: Func, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    y: Tensor = func(x, weight, bias)
    return y if bias is None else rules.counted(y, bias)


def _convolution(rules: ConservingRules, func: Func, x: Tensor, weight: Tensor,
                 bias: Tensor | None = None, *args: Any, **options: Any) -> Tensor:  # fmt: skip
    y: Tensor = func(x, weight, bias, *args, **options)
    return y if bias is None else rules.counted(y, bias.view(-1, *(1,) * (y.ndim - 2)))


def _locally_linear(
    rules: ConservingRules, func: Func, x: Tensor, *args: Any, **options: Any
) -> Tensor:
    """Treats a function f with f(0) = 0 as x times the constant f(x) / x."""
    y: Tensor = _LocallyLinear.apply(x, func, args, _not_in_place(options))
    return y


class _LocallyLinear(torch.autograd.Function):
    """A function f of x whose gradient treats f(x) / x as a constant."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, func: Func, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Tensor:
        y: Tensor = func(x, *args, **options)
        ctx.save_for_backward(torch.where(x == 0, 0.5, y / x))  # at 0: SiLU and GELU
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None, None


def _piecewise(rules: ConservingRules, func: Func, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """Keeps the gradient; not in place, because the input may be used elsewhere."""
    y: Tensor = func(x, *args, **_not_in_place(options))
    return y


def _not_in_place(options: dict[str, Any]) -> dict[str, Any]:
    return {name: False if name == "inplace" else value for name, value in options.items()}


def _without_gradient(rules: ConservingRules, func: Func, *args: Any, **options: Any) -> Tensor:
    y: Tensor = func(*args, **options)
    return y.detach()


def _sigmoid(rules: ConservingRules, func: Func, x: Tensor, *args: Any, **options: Any) -> Tensor:
    y = _without_gradient(rules, func, x, *args, **options)
    rules.last_sigmoid = (y, x)
    return y


def _logsumexp(
    rules: ConservingRules, func: Func, x: Tensor, dim: Any, keepdim: bool = False
) -> Tensor:
    """The mean of x with the softmax as constant weights, plus the rest as a constant.

    Segmenters of several classes compare the foreground with the background by it.
    """
    values = x.detach()
    total, weights = func(values, dim, keepdim), values.softmax(dim)
    mean = (weights * x).sum(dim, keepdim)
    rest = total - mean.detach()
    return rules.counted(mean + rest, rest)


def _attention(rules: ConservingRules, func: Func, query: Tensor, key: Tensor, value: Tensor,
               *args: Any, **options: Any) -> Tensor:  # fmt: skip
    y: Tensor = func(query.detach(), key.detach(), value, *args, **options)
    return y


def _heads(rules: ConservingRules, func: Func, query: Tensor, key: Tensor, value: Tensor,
           *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """`nn.MultiheadAttention`, (L, N, C): with constant weights, an affine map of `value`."""
    query, key = query.detach(), key.detach()
    y, weights = func(query, key, value, *args, **options)
    constant, _ = func(query, key, torch.zeros_like(value), *args, **options)
    return rules.counted(y.transpose(0, 1), constant.transpose(0, 1)).transpose(0, 1), weights


def _layer_norm(
    rules: ConservingRules, func: Func, x: Tensor, shape: Sequence[int],
    weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    dims = tuple(range(-len(shape), 0))
    y = _scaled(x - x.mean(dims, keepdim=True), dims, eps)
    y = y if weight is None else y * weight
    return y if bias is None else rules.counted(y + bias, bias)


def _rms_norm(
    rules: ConservingRules, func: Func, x: Tensor, shape: Sequence[int],
    weight: Tensor | None = None, eps: float | None = None,
) -> Tensor:  # fmt: skip
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = _scaled(x, tuple(range(-len(shape), 0)), eps)
    return y if weight is None else y * weight


def _group_norm(
    rules: ConservingRules, func: Func, x: Tensor, groups: int,
    weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    grouped = x.unflatten(1, (groups, -1)).flatten(2)  # (N, groups, the rest)
    y = _scaled(grouped - grouped.mean(-1, keepdim=True), (-1,), eps).view_as(x)
    trailing = (1,) * (x.ndim - 2)
    y = y if weight is None else y * weight.view(-1, *trailing)
    if bias is None:
        return y
    bias = bias.view(-1, *trailing)
    return rules.counted(y + bias, bias)


def _instance_norm(
    rules: ConservingRules, func: Func, x: Tensor, running_mean: Tensor | None = None,
    running_var: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, *_: Any,
) -> Tensor:  # fmt: skip
    if use_input_stats:
        return _group_norm(rules, func, x, x.shape[1], weight, bias, eps)
    return _batch_norm(rules, func, x, running_mean, running_var, weight, bias, False, 0.0, eps)


def _batch_norm(
    rules: ConservingRules, func: Func, x: Tensor, mean: Tensor | None, var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5, *_: Any,
) -> Tensor:  # fmt: skip
    """In eval mode, an affine map per channel; explained networks are in eval mode."""
    assert mean is not None, "a norm in eval mode has running statistics"
    assert var is not None, "a norm in eval mode has running statistics"
    scale = (var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    scale, shift = (t.view(-1, *(1,) * (x.ndim - 2)) for t in (scale, shift))
    return rules.counted(x * scale + shift, shift)


def _scaled(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """`x` divided by its root mean square along `dims`, which is treated as a constant."""
    return x * (x.detach().square().mean(dims, keepdim=True) + eps).rsqrt()


_CONSTANTS = ("softmax", "hardsigmoid", "norm", "var", "std", "sqrt", "rsqrt")
_RULES: Mapping[str, _Rule] = {
    "selective_scan": _scan, "ss2d_scan": _scan,
    "mul": _product, "matmul": _product, "bmm": _product,
    "div": _quotient, "add": _sum, "sub": _sum, "cat": _concatenation,
    "addcmul": _sum_of_product,
    "linear": _linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution),
    **dict.fromkeys(("silu", "gelu", "hardswish", "mish", "relu6", "hardtanh"), _locally_linear),
    **dict.fromkeys(("relu", "leaky_relu"), _piecewise),
    **dict.fromkeys(_CONSTANTS, _without_gradient),
    "sigmoid": _sigmoid, "logsumexp": _logsumexp,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _heads,
    "layer_norm": _layer_norm, "rms_norm": _rms_norm, "group_norm": _group_norm,
    "instance_norm": _instance_norm, "batch_norm": _batch_norm,
}  # fmt: skip
_ALIASES = {
    "imul": "mul", "rmul": "mul", "multiply": "mul", "rmatmul": "matmul",
    "truediv": "div", "itruediv": "div", "divide": "div", "true_divide": "div",
    "iadd": "add", "radd": "add", "isub": "sub", "rsub": "sub", "subtract": "sub",
    "concat": "cat", "concatenate": "cat",
}  # fmt: skip
_LINEAR = frozenset(
    {
        *("get", "getitem", "size", "dim", "numel", "stride", "len", "is_floating_point"),
        *("permute", "transpose", "reshape", "view", "flatten", "unflatten", "squeeze", "expand"),
        *("unsqueeze", "movedim", "swapaxes", "view_as", "expand_as", "contiguous", "clone"),
        *("to", "float", "double", "type_as", "detach", "is_contiguous", "new_zeros", "zeros_like"),
        *("chunk", "split", "tensor_split", "unbind", "stack", "flip", "roll", "pad", "repeat"),
        *("narrow", "select", "index_select", "gather", "where", "masked_fill", "unfold"),
        *("mean", "sum", "neg", "dropout", "dropout2d", "interpolate", "pixel_shuffle"),
        *("avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "adaptive_max_pool2d", "prelu"),
    }
)
"""Names of functions that conserve relevance without a rule: linear, or piecewise linear without a
constant. Only used in messages; the conservation error detects other functions that violate it.
"""
