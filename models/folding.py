"""Batch norms folded into the convolutions before them: the same function, a pass over the activations less each.

The engines fold once when they take a network over; it can be trained no more after that.
"""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
Convolution = nn.Conv2d | nn.ConvTranspose2d


def has_batch_norms(model: nn.Module) -> bool:
    """Whether there may be anything to fold."""
    return any(isinstance(module, BatchNorm) for module in model.modules())


def fold_batch_norms(model: nn.Module, run: Callable[[], object]) -> int:
    """Fold each batch norm that is all that reads a convolution of `model`; returns how many.

    run: calls `model` once on any input. What feeds what is seen there rather than guessed from the order in which
    modules stand. What follows inside a batch norm module (timm's activation) stays.
    """
    watch = _Watch(model)
    with torch.inference_mode(), watch:
        run()
    pairs = watch.pairs()
    for convolution, norm in pairs:
        _fold(convolution, norm)
        _replace(model, norm, _what_follows(norm))
    return len(pairs)


class _Watch(TorchFunctionMode):
    """Sees which batch norm reads which convolution's output, and how often each output is read.

    In this thread alone: others may run layers at the same time that `model` shares with theirs.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._thread = threading.get_ident()
        self._readings: Counter[int] = Counter()
        self._calls: Counter[nn.Module] = Counter()
        self._outputs: dict[int, tuple[Tensor, Convolution]] = {}
        """By id; holding the tensors keeps their ids from being used again."""
        self._inputs: list[tuple[int, BatchNorm]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> "_Watch":
        for module in self._model.modules():
            if isinstance(module, Convolution):
                self._hooks.append(module.register_forward_hook(self._convolved))
            elif isinstance(module, BatchNorm):
                self._hooks.append(module.register_forward_pre_hook(self._normalises))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):  # not a question for the shape
            self._readings.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._outputs)
        return result

    def pairs(self) -> list[tuple[Convolution, BatchNorm]]:
        """Each convolution with the batch norm that alone reads it, where both ran once and statistics are fixed."""
        found = []
        for read, norm in self._inputs:
            convolution = self._outputs[read][1]
            once = self._readings[read] == self._calls[convolution] == self._calls[norm] == 1
            if once and norm.running_mean is not None and not norm.training:
                found.append((convolution, norm))
        return found

    def _convolved(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if threading.get_ident() != self._thread:
            return
        self._calls[module] += 1
        self._outputs[id(output)] = output, module  # type: ignore[assignment]

    def _normalises(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if threading.get_ident() != self._thread:
            return
        self._calls[module] += 1
        if id(inputs[0]) in self._outputs:
            self._inputs.append((id(inputs[0]), module))  # type: ignore[arg-type]


def _fold(convolution: Convolution, norm: BatchNorm) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
            transpose=isinstance(convolution, nn.ConvTranspose2d),
        )
    convolution.weight, convolution.bias = weight.requires_grad_(False), bias.requires_grad_(False)


def _what_follows(norm: nn.Module) -> nn.Module:
    """What a batch norm module does after normalising: nothing in torch, dropout and activation in timm."""
    children = list(norm.children())
    return nn.Sequential(*children) if children else nn.Identity()


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` stands in `model`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)
