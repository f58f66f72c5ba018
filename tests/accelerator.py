"""An accelerator that is really the CPU, for testing where there is none: `torch.device('pretend')`.

Its tensors say that they lie there. They do not meet tensors of the CPU, other than single numbers, they have no
`.numpy()`, and they take no random generator of the CPU; all else is computed on the CPU, so that values are the same.
Importing this module makes the device.
"""
import contextlib
from collections import Counter
from functools import cache

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = 'pretend'
CALLS = Counter()   # operator -> how often it ran on the device


class Module:
    "What the program asks of `torch.cuda`, for this device; it has no memory of its own to count."
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    get_device_name = staticmethod(lambda device=None: 'A pretended accelerator')
    is_bf16_supported = staticmethod(lambda including_emulation=True: True)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    device = contextlib.nullcontext
    set_device = synchronize = reset_peak_memory_stats = manual_seed_all = staticmethod(lambda *args: None)
    memory_allocated = memory_reserved = max_memory_allocated = staticmethod(lambda *args: 0)
    mem_get_info = staticmethod(lambda *args: (2**34, 2**34))
    get_rng_state = staticmethod(lambda *args: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, *args: torch.set_rng_state(state))
    _is_in_bad_fork = staticmethod(lambda: False)


torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
DEVICE = torch.device(NAME, 0)
REFUSED = {torch.Tensor.numpy: 'has no memory that numpy could see: take .cpu() first'}


class Pretended(torch.Tensor):
    "A tensor that says it lies on the device; `raw` is the one of the CPU behind it."
    @staticmethod
    def __new__(cls, raw):
        raw = raw.raw if isinstance(raw, Pretended) else raw
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=DEVICE,
            storage_size=2**50)   # nothing lies there, so there is no end to run into
        tensor.raw = raw
        return tensor

    def __repr__(self):
        return f'{NAME}({self.raw})'

    def as_subclass(self, cls):
        return Pretended(self.raw) if cls is torch.Tensor else kind(cls)(self.raw)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in REFUSED:
            raise TypeError(f'a tensor on {NAME} {REFUSED[function]}')
        if function is torch.Tensor.tolist:
            return args[0].raw.tolist()
        if function is torch.Tensor.new_tensor:
            return Pretended(args[0].raw.new_tensor(*args[1:], **{**kwargs, 'device': 'cpu'}))
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], listed(args[1]), *args[2:])
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return compute(operator, args, kwargs or {})


class Besides(type(torch.Tensor)):
    "Of classes of device tensors that are also some class of torchvision, and a key like it in torchvision's tables."
    def __eq__(cls, other):
        return other is cls or other is cls.besides

    def __hash__(cls):
        return hash(cls.besides)


@cache
def kind(cls: type) -> type:
    return cls if issubclass(cls, Pretended) else Besides(cls.__name__, (Pretended, cls), dict(besides=cls))


def listed(index):
    "An index whose lists are tensors of the CPU, as a real device reads them."
    if isinstance(index, tuple):
        return tuple(map(listed, index))
    return torch.tensor(index) if isinstance(index, list) else index


def is_ours(value) -> bool:
    return isinstance(value, Pretended)


INDEX = {'aten::index', 'aten::index_put_', 'aten::index_put', 'aten::_index_put_impl_'}   # with indices of the CPU


def check(name: str, leaves: list):
    "Raise `RuntimeError` where an operator is given what a real device would refuse."
    tensors = [value for value in leaves if isinstance(value, torch.Tensor)]
    if not any(map(is_ours, tensors)):
        return
    others = [tensor for tensor in tensors if not is_ours(tensor) and tensor.ndim]
    if others and name not in INDEX | {'aten::copy_'}:
        raise RuntimeError(f'{name}: tensors on {NAME} and on {others[0].device}: {[tuple(t.shape) for t in tensors]}')
    if any(isinstance(value, torch.Generator) for value in leaves):
        raise RuntimeError(f'{name}: a generator of the CPU for a tensor on {NAME}')


def copy_across(operator, args, kwargs):
    "Copy a tensor to a device, or to another precision where it lies."
    to = kwargs.get('device')
    ours = is_ours(args[0]) if to is None else torch.device(to).type == NAME
    raw = args[0].raw if is_ours(args[0]) else args[0]
    options = {key: value for key, value in kwargs.items() if key not in ('device', 'pin_memory')}
    copy = operator(raw, **options)
    return Pretended(copy) if ours else copy


def follow_growth(tensors: list[Pretended]):
    "An operator that writes into what it is given may have made it larger."
    for tensor in tensors:
        if tensor.shape != tensor.raw.shape:
            raw = tensor.raw
            with no_dispatch():
                torch.ops.aten.as_strided_.default(tensor, raw.shape, raw.stride(), raw.storage_offset())


def compute(operator, args, kwargs):
    "Do on the CPU what was asked of the device."
    name = operator._schema.name
    CALLS[name] += 1
    if name == 'aten::_to_copy':
        return copy_across(operator, args, kwargs)
    leaves = tree_leaves((args, kwargs))
    check(name, leaves)
    ours = [value for value in leaves if is_ours(value)]
    device = kwargs.get('device')
    here = bool(ours) if device is None else torch.device(device).type == NAME
    raw_args, raw_kwargs = tree_map(lambda value: value.raw if is_ours(value) else value, (args, kwargs))
    if device is not None:
        raw_kwargs['device'] = torch.device('cpu')
    result = operator(*raw_args, **raw_kwargs)
    if torch.Tag.inplace_view not in operator.tags:
        follow_growth(ours)
    known = {id(tensor.raw): tensor for tensor in ours}

    def wrap(value):
        if not here or not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else Pretended(value)

    wrapped = tree_map(wrap, result)
    if ours and torch.Tag.inplace_view in operator.tags:
        return return_and_correct_aliasing(operator, args, kwargs, wrapped)
    return wrapped


make_tensor = torch.tensor
torch.tensor = lambda *args, device=None, **options: make_tensor(*args, **options).to(device)   # made here, then moved

library = torch.library.Library('_', 'IMPL')
library.fallback(lambda operator, *args, **kwargs: compute(operator, args, kwargs), 'PrivateUse1')
library.fallback(torch.library.fallthrough_kernel, 'AutocastPrivateUse1')
