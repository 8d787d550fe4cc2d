//! What a pickle may refer to: each name, and what it stands for here.

use safetensors::tensor::Dtype;

use super::Fault;
use crate::json::shortened;

/// Something that a pickle refers to by module and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`, a table here as any other.
    OrderedDict,
    /// A tensor of a storage, an offset, a shape and strides.
    RebuildTensor,
    /// That, with a format of its own.
    RebuildTensorOfType,
    /// A tensor, as it was handed over.
    RebuildParameter,
    /// A class of storages, all of whose numbers have this format.
    Storage(Dtype),
    /// Bytes whose format their tensors say.
    UntypedStorage,
    /// A format.
    Format(Dtype),
}

/// The names that tables of tensors are written with by torch 0.4 to 2.11.
const NAMES: [(&str, &str, Global); 30] = [
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch._utils", "_rebuild_tensor", Global::RebuildTensor),
    ("torch._utils", "_rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils", "_rebuild_tensor_v3", Global::RebuildTensorOfType),
    ("torch._utils", "_rebuild_parameter", Global::RebuildParameter),
    ("torch", "DoubleStorage", Global::Storage(Dtype::F64)),
    ("torch", "FloatStorage", Global::Storage(Dtype::F32)),
    ("torch", "HalfStorage", Global::Storage(Dtype::F16)),
    ("torch", "BFloat16Storage", Global::Storage(Dtype::BF16)),
    ("torch", "LongStorage", Global::Storage(Dtype::I64)),
    ("torch", "IntStorage", Global::Storage(Dtype::I32)),
    ("torch", "ShortStorage", Global::Storage(Dtype::I16)),
    ("torch", "CharStorage", Global::Storage(Dtype::I8)),
    ("torch", "ByteStorage", Global::Storage(Dtype::U8)),
    ("torch", "BoolStorage", Global::Storage(Dtype::BOOL)),
    ("torch.storage", "UntypedStorage", Global::UntypedStorage),
    ("torch", "float64", Global::Format(Dtype::F64)),
    ("torch", "float32", Global::Format(Dtype::F32)),
    ("torch", "float16", Global::Format(Dtype::F16)),
    ("torch", "bfloat16", Global::Format(Dtype::BF16)),
    ("torch", "int64", Global::Format(Dtype::I64)),
    ("torch", "int32", Global::Format(Dtype::I32)),
    ("torch", "int16", Global::Format(Dtype::I16)),
    ("torch", "int8", Global::Format(Dtype::I8)),
    ("torch", "uint64", Global::Format(Dtype::U64)),
    ("torch", "uint32", Global::Format(Dtype::U32)),
    ("torch", "uint16", Global::Format(Dtype::U16)),
    ("torch", "uint8", Global::Format(Dtype::U8)),
    ("torch", "float8_e4m3fn", Global::Format(Dtype::F8_E4M3)),
    ("torch", "float8_e5m2", Global::Format(Dtype::F8_E5M2)),
];

impl Global {
    /// What `module` has under `name`.
    pub(super) fn of(module: &str, name: &str) -> Result<Self, Fault> {
        let known = NAMES.into_iter().find(|known| (known.0, known.1) == (module, name));
        known.map(|(_, _, global)| global).ok_or_else(|| {
            Fault::new(
                "what the pickle refers to",
                "OrderedDict, or what torch rebuilds tensors with",
                format!("'{}.{}'", shortened(module), shortened(name)),
            )
        })
    }
}
