//! [`TensorMap`], by which Hopper's copy engine (TMA) finds boxes of a matrix in device memory.

use std::marker::PhantomData;

use cudarc::driver::sys;

use super::DriverError;
use super::{Context, DeviceSpan, check};

/// The elements of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TensorElement {
    F16,
    Bf16,
    /// Copied as the byte that it is.
    E4m3,
}

impl TensorElement {
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::E4m3 => 1,
        }
    }
}

/// A description of a row-major matrix without gaps, and of the boxes that are copied of it, 64 or
/// 128 bytes wide and swizzled by as many; what lies outside of the matrix reads as zero and is not
/// written. A kernel takes it by value, so it need not outlive the launch; like the span that it
/// is made from, it borrows the block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct TensorMap<'block> {
    /// The driver's type, which has 128 bytes and the alignment that the driver wants.
    map: sys::CUtensorMap,
    block: PhantomData<&'block ()>,
}

impl<'block> TensorMap<'block> {
    /// Describes the matrix `[rows, columns]` at the start of `span`. Its rows are multiples of 16
    /// bytes, as is its address; a box has at most 256 rows, and columns of 32, 64 or 128 bytes.
    pub(crate) fn new(
        context: &Context,
        span: DeviceSpan<'block>,
        element: TensorElement,
        (rows, columns): (usize, usize),
        (box_rows, box_columns): (u32, u32),
    ) -> Result<Self, DriverError> {
        use sys::CUtensorMapSwizzle as Swizzle;
        use sys::{CUtensorMapDataType as Type, CUtensorMapInterleave as Interleave};
        use sys::{CUtensorMapFloatOOBfill as Fill, CUtensorMapL2promotion as Promotion};
        const CALL: &str = "cuTensorMapEncodeTiled";
        let api = context.bind()?;
        let sizes = [columns as u64, rows as u64];
        let row_bytes = sizes[0].saturating_mul(element.bytes().into());
        if row_bytes.saturating_mul(sizes[1]) > span.bytes() as u64 {
            return Err(DriverError::invalid(CALL));
        }
        let data_type = match element {
            TensorElement::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            TensorElement::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            TensorElement::E4m3 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        };
        let swizzle = match box_columns.saturating_mul(element.bytes()) {
            32 => Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            64 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            128 => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            _ => return Err(DriverError::invalid(CALL)),
        };
        let (box_sizes, steps) = ([box_columns, box_rows], [1, 1]);
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: writes one map, to which `map` has room at its alignment. Of two dimensions the
        // driver reads two sizes, one distance (that of rows), two box sizes and two steps, which
        // is what the arrays have; it checks their values and does not read the matrix. The address
        // is a span's, in which the matrix lies: see above.
        let result = unsafe {
            (api.tensor_map_encode)(
                &raw mut map,
                data_type,
                2,
                span.address() as *mut _,
                sizes.as_ptr(),
                &raw const row_bytes,
                box_sizes.as_ptr(),
                steps.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(CALL, result)?;
        Ok(Self { map, block: PhantomData })
    }
}
