//! Descriptions of one product for cuBLASLt: the operation, the matrices, and what an algorithm may
//! ask for. Each is made and destroyed here; none needs a device.
//!
//! cuBLASLt thinks in columns: a row-major matrix `[rows, columns]` is for it a column-major one of
//! `columns` × `rows`. So `output = input · weightᵀ` is asked for as `outputᵀ = weight · inputᵀ`,
//! where the first factor is stored transposed and the second as it is.

use std::ffi::{c_int, c_void};

use super::api::{self, Api, LtError, Opaque, check};

/// The format of a matrix's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum DataType {
    F16,
    Bf16,
    F32,
}

impl DataType {
    fn number(self) -> c_int {
        match self {
            Self::F16 => api::data_type::F16,
            Self::Bf16 => api::data_type::BF16,
            Self::F32 => api::data_type::F32,
        }
    }
}

/// A function that is applied to each element, on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Function {
    Identity,
    Relu,
    /// In its approximation with tanh.
    Gelu,
}

/// What product is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Specification {
    pub(crate) data_type: DataType,
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) function: Function,
    /// Where `outputs` numbers of the same type are. To choose an algorithm, only the alignment of
    /// the address counts.
    pub(crate) bias: Option<u64>,
}

/// A function that destroys what it is given.
type Destroy = unsafe extern "system" fn(Opaque) -> u32;

/// A descriptor of any kind, destroyed when dropped.
#[derive(Debug)]
struct Descriptor {
    raw: Opaque,
    destroy: Destroy,
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: created once, by the function that belongs to this one, and destroyed once.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

/// A function that sets an attribute of one kind of descriptor.
type Set = unsafe extern "system" fn(Opaque, c_int, *const c_void, usize) -> u32;

impl Descriptor {
    /// Sets an attribute by a function for this kind of descriptor.
    fn set<T: Copy>(
        &self,
        (call, set): (&'static str, Set),
        attribute: c_int,
        value: T,
    ) -> Result<(), LtError> {
        let from = (&raw const value).cast::<c_void>();
        // SAFETY: reads as many bytes as `value` has, before it returns; the library refuses a size
        // that is not the attribute's. The descriptor is live, and nobody else has it meanwhile:
        // descriptors stay on the thread that made them.
        check(call, unsafe { set(self.raw, attribute, from, size_of::<T>()) })
    }
}

/// The description of a product, for choosing an algorithm or running one.
#[derive(Debug)]
pub(crate) struct Product {
    operation: Descriptor,
    weight: Descriptor,
    input: Descriptor,
    output: Descriptor,
}

impl Product {
    pub(super) fn new(api: &Api, wanted: &Specification) -> Result<Self, LtError> {
        let Specification { data_type, rows, inputs, outputs, .. } = *wanted;
        Ok(Self {
            operation: operation(api, wanted)?,
            weight: layout(api, data_type, inputs, outputs)?,
            input: layout(api, data_type, inputs, rows)?,
            output: layout(api, data_type, outputs, rows)?,
        })
    }

    pub(super) fn operation(&self) -> Opaque {
        self.operation.raw
    }

    /// Of A.
    pub(super) fn weight(&self) -> Opaque {
        self.weight.raw
    }

    /// Of B.
    pub(super) fn input(&self) -> Opaque {
        self.input.raw
    }

    /// Of C and D.
    pub(super) fn output(&self) -> Opaque {
        self.output.raw
    }
}

fn operation(api: &Api, wanted: &Specification) -> Result<Descriptor, LtError> {
    let mut raw = std::ptr::null_mut();
    // SAFETY: writes one pointer, to which `raw` has room.
    let result =
        unsafe { (api.operation_create)(&raw mut raw, api::COMPUTE_F32, api::data_type::F32) };
    check("cublasLtMatmulDescCreate", result)?;
    let operation = Descriptor { raw, destroy: api.operation_destroy };
    let set = ("cublasLtMatmulDescSetAttribute", api.operation_set);
    operation.set(set, api::operation::TRANSPOSE_A, api::TRANSPOSED)?;
    operation.set(
        set,
        api::operation::EPILOGUE,
        epilogue(wanted.function, wanted.bias.is_some()),
    )?;
    if let Some(address) = wanted.bias {
        operation.set(set, api::operation::BIAS_POINTER, address)?;
    }
    Ok(operation)
}

/// A `cublasLtEpilogue_t`.
fn epilogue(function: Function, bias: bool) -> u32 {
    use api::epilogue::{BIAS, DEFAULT, GELU, RELU};
    let function = match function {
        Function::Identity if bias => return BIAS,
        Function::Identity => return DEFAULT,
        Function::Relu => RELU,
        Function::Gelu => GELU,
    };
    if bias { function | BIAS } else { function }
}

/// A column-major matrix without gaps.
fn layout(
    api: &Api,
    data_type: DataType,
    rows: usize,
    columns: usize,
) -> Result<Descriptor, LtError> {
    const CALL: &str = "cublasLtMatrixLayoutCreate";
    let refused = LtError { call: CALL, status: api::status::INVALID_VALUE };
    let stride = i64::try_from(rows).map_err(|_| refused)?;
    let mut raw = std::ptr::null_mut();
    // SAFETY: writes one pointer, to which `raw` has room.
    let result = unsafe {
        (api.layout_create)(&raw mut raw, data_type.number(), rows as u64, columns as u64, stride)
    };
    check(CALL, result)?;
    Ok(Descriptor { raw, destroy: api.layout_destroy })
}

/// What an algorithm may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) workspace_bytes: usize,
    /// What the weight's address is a multiple of, a small power of two.
    pub(crate) weight_alignment: u32,
    /// What the addresses of input and output are multiples of.
    pub(crate) activation_alignment: u32,
}

/// [`Limits`] for the library.
#[derive(Debug)]
pub(super) struct Preference(Descriptor);

impl Preference {
    pub(super) fn new(api: &Api, limits: &Limits) -> Result<Self, LtError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one pointer, to which `raw` has room.
        let result = unsafe { (api.preference_create)(&raw mut raw) };
        check("cublasLtMatmulPreferenceCreate", result)?;
        let preference = Descriptor { raw, destroy: api.preference_destroy };
        let set = ("cublasLtMatmulPreferenceSetAttribute", api.preference_set);
        let workspace_bytes = limits.workspace_bytes as u64;
        preference.set(set, api::preference::WORKSPACE_BYTES, workspace_bytes)?;
        preference.set(set, api::preference::REDUCTIONS, api::REDUCE_IN_F32)?;
        preference.set(set, api::preference::ALIGNMENT_A, limits.weight_alignment)?;
        for attribute in api::preference::ALIGNMENTS_B_C_D {
            preference.set(set, attribute, limits.activation_alignment)?;
        }
        Ok(Self(preference))
    }

    pub(super) fn raw(&self) -> Opaque {
        self.0.raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(workspace_bytes: usize) -> Limits {
        Limits { workspace_bytes, weight_alignment: 256, activation_alignment: 64 }
    }

    #[test]
    fn epilogues_are_the_librarys_sums_of_bits() {
        assert_eq!(epilogue(Function::Identity, false), 1);
        assert_eq!(epilogue(Function::Identity, true), 4);
        assert_eq!(epilogue(Function::Relu, false), 2);
        assert_eq!(epilogue(Function::Relu, true), 6);
        assert_eq!(epilogue(Function::Gelu, true), 36);
    }

    #[test]
    #[ignore = "needs cuBLASLt"]
    fn the_library_takes_every_attribute() {
        let api = &api::load().unwrap().functions;
        for function in [Function::Identity, Function::Relu, Function::Gelu] {
            for bias in [None, Some(64)] {
                let wanted = Specification {
                    data_type: DataType::F16,
                    rows: 3,
                    inputs: 100,
                    outputs: 7,
                    function,
                    bias,
                };
                Product::new(api, &wanted).unwrap();
            }
        }
        Preference::new(api, &limits(1 << 25)).unwrap();
    }

    #[test]
    #[ignore = "needs cuBLASLt"]
    fn a_wrong_size_is_refused() {
        let api = &api::load().unwrap().functions;
        let preference = Preference::new(api, &limits(0)).unwrap();
        let set = ("set", api.preference_set);
        let error = preference.0.set(set, api::preference::WORKSPACE_BYTES, 0_u32).unwrap_err();
        assert_eq!(error, LtError { call: "set", status: api::status::INVALID_VALUE });
        assert!(error.reason().starts_with("status 7 ("), "{}", error.reason());
    }
}
