//! cuBLASLt, NVIDIA's matrix products: the one module that calls it.
//!
//! - `api` is the table of its functions and numbers.
//! - `descriptors` says what product is wanted and what an algorithm may ask for.
//! - [`MatmulLibrary`] is its handle for one device: it proposes algorithms, checks them, runs them.
//!
//! The choice behind it: everything that the library wants alive during a call is owned or borrowed
//! by that call, and it keeps nothing of ours afterwards but device addresses in work it enqueued.

mod api;
mod descriptors;

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use super::{Context, DeviceSpan, Stream};
use crate::driver::DriverError;
use crate::libraries::{Found, Missing};
pub(crate) use api::{Algorithm, LtError};
use api::{Api, Heuristic, check, status};
use descriptors::Preference;
pub(crate) use descriptors::{DataType, Function, Limits, Product, Specification};

/// Where cuBLASLt is, and of which version.
pub(crate) fn found() -> Result<Found, Missing> {
    let opened = api::load()?;
    let version = u32::try_from(opened.functions.version_number()).unwrap_or(0);
    let version = (version / 10_000, version / 100 % 100);
    Ok(Found { file: opened.file.clone(), version })
}

/// Why a call failed: before it reached the library, or there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MatmulError {
    Driver(DriverError),
    Library(LtError),
}

impl From<DriverError> for MatmulError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

impl From<LtError> for MatmulError {
    fn from(error: LtError) -> Self {
        Self::Library(error)
    }
}

/// An algorithm for a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) algorithm: Algorithm,
    /// What it needs.
    pub(crate) workspace_bytes: usize,
}

/// Where a product's matrices are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) weight: DeviceSpan<'a>,
    pub(crate) input: DeviceSpan<'a>,
    pub(crate) output: DeviceSpan<'a>,
    pub(crate) workspace: DeviceSpan<'a>,
}

/// A `cublasLtHandle_t`, destroyed when dropped.
#[derive(Debug)]
pub(crate) struct MatmulLibrary {
    context: Arc<Context>,
    api: &'static Api,
    handle: api::Opaque,
}

// SAFETY: a handle belongs to a device's context and not to a thread. It is not `Sync`: whoever
// shares it has a lock around it.
unsafe impl Send for MatmulLibrary {}

impl MatmulLibrary {
    /// Opens the library for a device; the outer error says why there is none.
    pub(crate) fn open(context: &Arc<Context>) -> Result<Result<Self, MatmulError>, Missing> {
        Ok(Self::create(context, &api::load()?.functions))
    }

    fn create(context: &Arc<Context>, api: &'static Api) -> Result<Self, MatmulError> {
        context.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one pointer, to which `handle` has room, for the context just bound.
        check("cublasLtCreate", unsafe { (api.create)(&raw mut handle) })?;
        Ok(Self { context: Arc::clone(context), api, handle })
    }

    /// Its version: 130100 is 13.1.0.
    pub(crate) fn version(&self) -> usize {
        self.api.version_number()
    }

    /// The description of a product.
    pub(crate) fn product(&self, wanted: &Specification) -> Result<Product, MatmulError> {
        Ok(Product::new(self.api, wanted)?)
    }

    /// At most `count` algorithms within `limits`, by the library's estimate of their time.
    pub(crate) fn candidates(
        &self,
        product: &Product,
        limits: &Limits,
        count: usize,
    ) -> Result<Vec<Candidate>, MatmulError> {
        const CALL: &str = "cublasLtMatmulAlgoGetHeuristic";
        self.context.bind()?;
        let preference = Preference::new(self.api, limits)?;
        let mut found = vec![Heuristic::EMPTY; count];
        let room = c_int::try_from(count).unwrap_or(c_int::MAX);
        let mut length: c_int = 0;
        // SAFETY: handle and descriptors are live; writes at most `room` results, to which `found`
        // has room, and one number. No address in the descriptors is followed.
        let result = unsafe {
            (self.api.heuristic)(
                self.handle,
                product.operation(),
                product.weight(),
                product.input(),
                product.output(),
                product.output(),
                preference.raw(),
                room,
                found.as_mut_ptr(),
                &raw mut length,
            )
        };
        if result == status::NOT_SUPPORTED {
            return Ok(Vec::new());
        }
        check(CALL, result)?;
        found.truncate(usize::try_from(length).unwrap_or(0));
        Ok(found.iter().filter_map(candidate).collect())
    }

    /// What `algorithm` needs for `product`; `None` if it can't do it.
    pub(crate) fn check(
        &self,
        product: &Product,
        algorithm: &Algorithm,
    ) -> Result<Option<usize>, MatmulError> {
        self.context.bind()?;
        let mut found = Heuristic::EMPTY;
        // SAFETY: handle and descriptors are live; reads one algorithm, which the library made, and
        // writes one result, to which `found` has room. No address is followed.
        let result = unsafe {
            (self.api.check)(
                self.handle,
                product.operation(),
                product.weight(),
                product.input(),
                product.output(),
                product.output(),
                algorithm,
                &raw mut found,
            )
        };
        match result {
            status::SUCCESS => Ok(Some(found.workspace)),
            status::INVALID_VALUE | status::ARCH_MISMATCH | status::NOT_SUPPORTED => Ok(None),
            status => Err(LtError { call: "cublasLtMatmulAlgoCheck", status }.into()),
        }
    }

    /// Runs `algorithm` on `stream`, behind the work so far.
    pub(crate) fn multiply(
        &self,
        stream: &Stream,
        product: &Product,
        operands: &Operands<'_>,
        algorithm: &Algorithm,
    ) -> Result<(), MatmulError> {
        const CALL: &str = "cublasLtMatmul";
        if !Arc::ptr_eq(stream.context(), &self.context) {
            return Err(DriverError::invalid(CALL).into());
        }
        self.context.bind()?;
        let (one, zero): (f32, f32) = (1.0, 0.0);
        // SAFETY: handle, descriptors and stream are live, and of one context. Reads `one`, `zero`
        // and the algorithm before it returns. The other pointers are device addresses, which only
        // the device follows: in the descriptors' matrices and in as much workspace as there is.
        let result = unsafe {
            (self.api.multiply)(
                self.handle,
                product.operation(),
                (&raw const one).cast(),
                pointer(operands.weight),
                product.weight(),
                pointer(operands.input),
                product.input(),
                (&raw const zero).cast(),
                pointer(operands.output),
                product.output(),
                pointer(operands.output),
                product.output(),
                algorithm,
                pointer(operands.workspace),
                operands.workspace.bytes(),
                stream.handle(),
            )
        };
        Ok(check(CALL, result)?)
    }
}

impl Drop for MatmulLibrary {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: created once and destroyed once; work that it enqueued needs no handle.
            let _ = unsafe { (self.api.destroy)(self.handle) };
        }
    }
}

fn candidate(found: &Heuristic) -> Option<Candidate> {
    (found.state == status::SUCCESS)
        .then_some(Candidate { algorithm: found.algorithm, workspace_bytes: found.workspace })
}

fn pointer(span: DeviceSpan<'_>) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(span.address() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_have_the_librarys_layout() {
        assert_eq!(size_of::<Algorithm>(), 64);
        assert_eq!(size_of::<Heuristic>(), 96);
        assert_eq!(std::mem::offset_of!(Heuristic, state), 72);
    }
}
