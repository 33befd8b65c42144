"""Exports a sparsified model as a plain, smaller or hardware-sparse model."""

import copy
import warnings
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
    to_sparse_semi_structured,
)

from bbnet.sparsity.copies import check_hooks
from bbnet.sparsity.gate import is_gated
from bbnet.sparsity.hooks import remove_hooks
from bbnet.sparsity.plain.flow import Chain, Kept
from bbnet.sparsity.plain.structure import find_chains
from bbnet.sparsity.plain.trace import without_history
from bbnet.sparsity.slab import Side, connections, is_transposed, stored_side, unwrap
from bbnet.sparsity.sparsifier import Sparsifier

SEMI_STRUCTURED_DTYPES = (torch.float16, torch.bfloat16, torch.int8)
SEMI_STRUCTURED_CAPABILITY = (8, 0)


def export(model: nn.Module, *, remove_units: bool = False, semi_structured: bool = False) -> nn.Module:
    """Returns a plain copy of `model` in evaluation mode, with zeros as pruned weights, no hooks, and equal outputs.

    Args:
        model: a sparsified model, or one loaded from disk with zeros in its weights. It is not changed. A model wrapped
            by torch.compile or DistributedDataParallel is exported without the wrapper.
        remove_units: whether to remove hidden units that lost all incoming or all outgoing connections. The constant
            output of such a unit is added to the biases of its readers. Units are kept where this would not be exact,
            outside the patterns of `find_slabs`, and where modules are shared, called twice or hooked. Every layer
            keeps at least one unit.
        semi_structured: whether to store weights of Linear layers with at most 2 non-zeros in every 4 consecutive
            inputs in torch's 2:4 format, for inference on CUDA devices. If device, dtype or shape do not allow this,
            weights stay dense with a warning. Removing units shifts the inputs, so few such weights remain after it.
    Returns: the copy; its parameters are leaves without gradients.
    Raises: ValueError if activations are gated, or a pruned weight of a model in training is not 0.
    """
    gated = [name for name, module in unwrap(model).named_modules() if is_gated(module)]
    if gated:
        raise ValueError(
            f"cannot export a model with gates: the units at {', '.join(gated)} are gated, and their weights are dense"
        )
    for sparsifier in check_hooks(unwrap(model)):
        sparsifier.check_masks()
        schedule = sparsifier.schedule
        if sparsifier.step < schedule.freeze_step:
            warnings.warn(
                f"the sparse phase is at step {sparsifier.step} of {schedule.total_steps}: its masks change until step "
                f"{schedule.freeze_step}, so that the density may not be the budget {schedule.budget} yet",
                stacklevel=2,
            )
    exported = _copy(unwrap(model)).eval()
    remove_hooks(exported)
    if remove_units:
        _remove_units(exported)
    if semi_structured:
        left_dense = _make_semi_structured(exported)
        if left_dense:
            warnings.warn(left_dense, stacklevel=2)
    return exported


def _copy(model: nn.Module) -> nn.Module:
    """Returns a deepcopy, without a sparsifier that the model may hold as an attribute."""
    holders = [
        (name, key)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Sparsifier)
    ]
    held = {id(vars(model.get_submodule(name))[key]): model for name, key in holders}
    copied = copy.deepcopy(model, without_history(model) | held)
    for name, key in holders:
        setattr(copied.get_submodule(name), key, None)
    return copied


@torch.no_grad()
def _remove_units(model: nn.Module) -> None:
    """Removes units repeatedly, since removing one may leave others before and after it without connections."""
    chains = [chain for chain in find_chains(model) if _can_shrink(model, chain)]
    while sum(_shrink(model, chain) for chain in chains):
        pass


def _can_shrink(model: nn.Module, chain: Chain) -> bool:
    names = (chain.producer, chain.norm, *chain.activation_modules, *chain.consumers)
    modules = [model.get_submodule(name) for name in names if name is not None]
    norm = model.get_submodule(chain.norm) if chain.norm else None
    # With other norms, or batch norm without running statistics, a unit depends on other units or on the batch.
    independent = norm is None or (isinstance(norm, _BatchNorm) and norm.running_mean is not None)
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    return chain.exclusive and chain.kept > Kept.NOTHING and independent and not hooked


def _shrink(model: nn.Module, chain: Chain) -> int:
    """Removes the units of a chain that no reader needs; returns their number."""
    producer = model.get_submodule(chain.producer)
    consumers = [model.get_submodule(name) for name in chain.consumers]
    constant = _unconnected(producer, "in")
    outputs = _outputs_of_no_input(model, chain)
    needed = torch.zeros_like(constant)
    for consumer in consumers:
        passes_on = chain.kept == Kept.CONSTANTS and not _pads_with_zeros(consumer)
        foldable = constant & ((outputs == 0) | passes_on)
        needed |= ~(_unconnected(consumer, "out") | foldable)
    needed[0] |= ~needed.any()
    kept, removed = needed.nonzero().flatten(), (~needed).nonzero().flatten()
    if len(removed):
        for consumer in consumers:
            _fold(consumer, outputs, removed)
            _keep_inputs(consumer, kept)
        _keep_outputs(producer, kept)
        if chain.norm is not None:
            _keep_channels(model.get_submodule(chain.norm), kept)
    return len(removed)


def _unconnected(layer: nn.Module, side: Side) -> Tensor:
    """Returns which units, bool [units], have only connections of 0."""
    return (connections(layer.weight, stored_side(layer, side)) == 0).flatten(1).all(1)


def _outputs_of_no_input(model: nn.Module, chain: Chain) -> Tensor:
    """Returns the outputs, [units], of a chain for inputs of 0."""
    producer = model.get_submodule(chain.producer)
    weight, bias = producer.weight, producer.bias
    units = len(connections(weight, stored_side(producer, "in")))
    values = weight.new_zeros(units) if bias is None else bias.detach().clone()
    values = values.reshape(1, -1, *(1 for _ in weight.shape[2:]))
    if chain.norm is not None:
        values = model.get_submodule(chain.norm)(values)
    return (values if chain.activation is None else chain.activation(model, values)).flatten()


def _pads_with_zeros(layer: nn.Module) -> bool:
    """Returns whether the layer pads with zeros, so that a constant input is not constant at the borders."""
    if getattr(layer, "padding_mode", None) != "zeros":
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same" and max(layer.kernel_size) > 1
    return any(layer.padding)


def _fold(consumer: nn.Module, outputs: Tensor, removed: Tensor) -> None:
    """Adds the contribution of the `removed` inputs, which have the constant values `outputs`, to the bias."""
    weight, bias = consumer.weight, consumer.bias
    wide = torch.promote_types(weight.dtype, torch.float32)
    columns = connections(weight, stored_side(consumer, "in"))[:, removed].to(wide).sum(2)
    shift = columns @ outputs[removed].to(wide)
    if bool(shift.any()):
        shifted = shift if bias is None else bias.to(wide) + shift
        trained = (weight if bias is None else bias).requires_grad
        consumer.bias = nn.Parameter(shifted.to(weight.dtype), requires_grad=trained)


def _keep_outputs(layer: nn.Module, kept: Tensor) -> None:
    _keep(layer, "weight", kept, axis=int(is_transposed(layer)))
    _keep(layer, "bias", kept)
    _set_width(layer, ("out_features", "out_channels", "nf"), len(kept))


def _keep_inputs(layer: nn.Module, kept: Tensor) -> None:
    _keep(layer, "weight", kept, axis=int(not is_transposed(layer)))
    _set_width(layer, ("in_features", "in_channels", "nx"), len(kept))


def _set_width(layer: nn.Module, names: tuple[str, ...], width: int) -> None:
    """Sets the one of the attributes that a layer has: of a Linear, a convolution or a Conv1D of transformers."""
    for name in names:
        if hasattr(layer, name):
            setattr(layer, name, width)


def _keep_channels(norm: _BatchNorm, kept: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        _keep(norm, name, kept)
    norm.num_features = len(kept)


def _keep(module: nn.Module, name: str, kept: Tensor, axis: int = 0) -> None:
    """Reduces a parameter or buffer to the entries `kept` along an axis, in the same memory format."""
    old = getattr(module, name)
    if old is None:
        return
    new = old.detach().index_select(axis, kept).contiguous(memory_format=_memory_format(old))
    setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if channels_last is None or tensor.is_contiguous():
        return torch.contiguous_format
    return channels_last


def _make_semi_structured(model: nn.Module) -> str | None:
    """Stores 2:4 weights in torch's 2:4 format; returns the reason if some or all of them stay dense."""
    layers = [module for module in model.modules() if _is_two_of_four(module)]
    if not layers:
        return "no Linear layer has a 2:4 weight (at most 2 non-zeros in every 4 inputs); all weights stay dense"
    obstacles: Counter[str] = Counter()
    for layer in layers:
        obstacle = _obstacle(layer.weight)
        if obstacle is None:
            sparse = to_sparse_semi_structured(layer.weight.detach().contiguous())
            layer.weight = nn.Parameter(sparse, requires_grad=False)
        else:
            obstacles[obstacle] += 1
    _avoid_fused_transformers(model)
    if not obstacles:
        return None
    reasons = "; ".join(f"{count} because {reason}" for reason, count in obstacles.items())
    return f"{obstacles.total()} of {len(layers)} Linear layers with 2:4 weights stay dense: {reasons}"


def _is_two_of_four(module: nn.Module) -> bool:
    """Returns whether `module` is a Linear outside attention with at most 2 non-zeros in every 4 inputs."""
    if not isinstance(module, nn.Linear) or isinstance(module, NonDynamicallyQuantizableLinear):
        return False
    weight = module._parameters.get("weight")
    if weight is None or weight.shape[1] % 4:
        return False
    return bool(((weight.reshape(len(weight), -1, 4) != 0).sum(2) <= 2).all())


def _obstacle(weight: Tensor) -> str | None:
    """Returns why torch has no 2:4 format for a weight, or None (see torch.sparse.semi_structured)."""
    if weight.device.type != "cuda":
        return f"2:4 weights need a CUDA device, not {weight.device.type}"
    capability = torch.cuda.get_device_capability(weight.device)
    if capability < SEMI_STRUCTURED_CAPABILITY:
        return "2:4 weights need a CUDA device of capability {}.{}, not {}.{}".format(
            *SEMI_STRUCTURED_CAPABILITY, *capability
        )
    if weight.dtype not in SEMI_STRUCTURED_DTYPES:
        allowed = ", ".join(map(str, SEMI_STRUCTURED_DTYPES))
        return f"2:4 weights must be of dtype {allowed}, not {weight.dtype}"
    forced = SparseSemiStructuredTensor._FORCE_CUTLASS
    if not forced and not torch.backends.cusparselt.is_available():
        return "this build of torch has no cuSPARSELt"
    backend = SparseSemiStructuredTensorCUTLASS if forced else SparseSemiStructuredTensorCUSPARSELT
    limits = backend._DTYPE_SHAPE_CONSTRAINTS[weight.dtype]
    if weight.shape[0] % limits.sparse_min_rows or weight.shape[1] % limits.sparse_min_cols:
        return f"their shape is not a multiple of [{limits.sparse_min_rows}, {limits.sparse_min_cols}]"
    return None


def _avoid_fused_transformers(model: nn.Module) -> None:
    """Disables the fused kernel of encoder layers in evaluation mode, since it cannot read 2:4 weights."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and _holds_semi_structured(module):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder) and _holds_semi_structured(module):
            module.use_nested_tensor = False


def _holds_semi_structured(module: nn.Module) -> bool:
    return any(isinstance(parameter, SparseSemiStructuredTensor) for parameter in module.parameters())
