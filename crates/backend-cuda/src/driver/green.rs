//! Parts of a GPU: some of its multiprocessors, as a green context.
//!
//! - A `Split` is how one device is divided, in the smallest groups that it allows; a [`Part`] takes
//!   as many of them as it needs, and gives them back when it is dropped.
//!
//! The choice behind it: the driver divides a device into equal groups only, and resources of
//! different divisions overlap. So a device is divided once, and unequal parts are made of several
//! groups. Only the streams of a part belong to its green context: what is current on threads stays
//! the primary context, of which the green one shares memory and kernels, because a green context
//! may be current on one thread only.

use std::collections::BTreeMap;
use std::ffi::c_uint;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cudarc::driver::sys;

use super::DriverError;
use super::api::Api;
use super::check;
use crate::error::Unavailable;

/// `CU_DEV_RESOURCE_TYPE_SM`
const MULTIPROCESSORS: c_uint = 1;
/// `CU_GREEN_CTX_DEFAULT_STREAM`, which is required.
const DEFAULT_STREAM: c_uint = 1;

/// The functions for green contexts, which drivers have from CUDA 12.5 on.
#[derive(Debug, Clone, Copy)]
struct Functions {
    resource: unsafe extern "system" fn(sys::CUdevice, *mut sys::CUdevResource, c_uint) -> u32,
    split: unsafe extern "system" fn(
        *mut sys::CUdevResource,
        *mut c_uint,
        *const sys::CUdevResource,
        *mut sys::CUdevResource,
        c_uint,
        c_uint,
    ) -> u32,
    describe: unsafe extern "system" fn(
        *mut sys::CUdevResourceDesc,
        *mut sys::CUdevResource,
        c_uint,
    ) -> u32,
    create: unsafe extern "system" fn(
        *mut sys::CUgreenCtx,
        sys::CUdevResourceDesc,
        sys::CUdevice,
        c_uint,
    ) -> u32,
    destroy: unsafe extern "system" fn(sys::CUgreenCtx) -> u32,
    stream: unsafe extern "system" fn(*mut sys::CUstream, sys::CUgreenCtx, c_uint, i32) -> u32,
}

impl Functions {
    fn of(api: &Api) -> Option<Self> {
        Some(Self {
            resource: api.green_resource?,
            split: api.green_split?,
            describe: api.green_describe?,
            create: api.green_create?,
            destroy: api.green_destroy?,
            stream: api.green_stream?,
        })
    }
}

/// A device, divided.
struct Split {
    /// Equal groups of multiprocessors, and what was left over.
    groups: Vec<sys::CUdevResource>,
    rest: sys::CUdevResource,
    /// Which groups a part has, and behind them the rest.
    taken: Mutex<Vec<bool>>,
}

// SAFETY: resources are descriptions that the driver reads, of no thread; what changes has a lock.
unsafe impl Send for Split {}
// SAFETY: as above.
unsafe impl Sync for Split {}

/// Some multiprocessors of a device. The streams that are made in it must be gone before it.
pub(crate) struct Part {
    functions: Functions,
    handle: sys::CUgreenCtx,
    multiprocessors: u32,
    split: Arc<Split>,
    groups: Vec<usize>,
}

// SAFETY: the driver looks the handle up by itself; it is current on no thread.
unsafe impl Send for Part {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Part {}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part").field("multiprocessors", &self.multiprocessors).finish()
    }
}

impl Part {
    /// At least `wanted` multiprocessors of `device` that no other part has. `least` is how many
    /// the device's generation keeps together.
    pub(super) fn new(
        api: &Api,
        device: sys::CUdevice,
        wanted: u32,
        least: u32,
    ) -> Result<Self, Unavailable> {
        let functions = Functions::of(api).ok_or_else(|| Unavailable::TooOld {
            needed: (12, 5),
            reason: "it can't divide a GPU into parts".into(),
        })?;
        let split = Split::of(functions, device, least)?;
        let groups = split.take(wanted)?;
        let mut resources: Vec<_> = groups.iter().map(|&group| split.resource(group)).collect();
        let multiprocessors = resources.iter().map(multiprocessors).sum();
        // From here on dropping it frees the groups.
        let mut part =
            Self { functions, handle: std::ptr::null_mut(), multiprocessors, split, groups };
        let mut description = std::ptr::null_mut();
        let count = c_uint::try_from(resources.len()).unwrap_or(c_uint::MAX);
        let describe = functions.describe;
        // SAFETY: writes one pointer, to which `description` has room, and reads `count` resources
        // of one division, which `resources` has.
        let result = unsafe { describe(&raw mut description, resources.as_mut_ptr(), count) };
        check("cuDevResourceGenerateDesc", result)?;
        let create = functions.create;
        // SAFETY: writes one pointer, to which there is room; the description was just made.
        let result = unsafe { create(&raw mut part.handle, description, device, DEFAULT_STREAM) };
        check("cuGreenCtxCreate", result)?;
        Ok(part)
    }

    /// How many it has.
    pub(crate) fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// A stream that runs on these multiprocessors only.
    pub(super) fn stream(&self) -> Result<sys::CUstream, DriverError> {
        let mut handle = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let create = self.functions.stream;
        // SAFETY: writes one pointer, to which `handle` has room; the green context is live.
        let result = unsafe { create(&raw mut handle, self.handle, flags, 0) };
        check("cuGreenCtxStreamCreate", result).map(|()| handle)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            let destroy = self.functions.destroy;
            // SAFETY: made once and destroyed once; its streams held the context that holds this.
            let _ = unsafe { destroy(self.handle) };
        }
        let mut taken = self.split.taken();
        for &group in &self.groups {
            taken[group] = false;
        }
    }
}

impl Split {
    /// The division of `device` that its parts share.
    fn of(
        functions: Functions,
        device: sys::CUdevice,
        least: u32,
    ) -> Result<Arc<Self>, DriverError> {
        static SPLITS: Mutex<BTreeMap<sys::CUdevice, Weak<Split>>> = Mutex::new(BTreeMap::new());
        let mut splits = SPLITS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(split) = splits.get(&device).and_then(Weak::upgrade) {
            return Ok(split);
        }
        let split = Arc::new(Self::new(functions, device, least)?);
        splits.insert(device, Arc::downgrade(&split));
        Ok(split)
    }

    fn new(functions: Functions, device: sys::CUdevice, least: u32) -> Result<Self, DriverError> {
        let mut whole = nothing();
        let resource = functions.resource;
        // SAFETY: writes one resource, to which `whole` has room.
        let result = unsafe { resource(device, &raw mut whole, MULTIPROCESSORS) };
        check("cuDeviceGetDevResource", result)?;
        const CALL: &str = "cuDevSmResourceSplitByCount";
        let (split, mut count) = (functions.split, 0);
        let none = std::ptr::null_mut();
        // SAFETY: without an array for results it writes their number only.
        let result = unsafe { split(none, &raw mut count, &raw const whole, none, 0, least) };
        check(CALL, result)?;
        let mut groups = vec![nothing(); count as usize];
        let mut rest = nothing();
        let results = groups.as_mut_ptr();
        // SAFETY: writes at most `count` resources, which `groups` has room for, how many they
        // are, and one more.
        let result =
            unsafe { split(results, &raw mut count, &raw const whole, &raw mut rest, 0, least) };
        check(CALL, result)?;
        groups.truncate(count as usize);
        let taken = Mutex::new(vec![false; groups.len() + 1]);
        Ok(Self { groups, rest, taken })
    }

    fn resource(&self, group: usize) -> sys::CUdevResource {
        self.groups.get(group).copied().unwrap_or(self.rest)
    }

    /// Marks groups for `wanted` multiprocessors as taken.
    fn take(&self, wanted: u32) -> Result<Vec<usize>, Unavailable> {
        let mut taken = self.taken();
        let sizes: Vec<u32> = (0..taken.len())
            .map(|group| if taken[group] { 0 } else { multiprocessors(&self.resource(group)) })
            .collect();
        let chosen = choose(&sizes, wanted).ok_or(Unavailable::NoPart {
            wanted,
            left: sizes.iter().sum(),
            each: self.groups.first().map_or(0, multiprocessors),
        })?;
        for &group in &chosen {
            taken[group] = true;
        }
        Ok(chosen)
    }

    fn taken(&self) -> MutexGuard<'_, Vec<bool>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first groups that have `wanted` multiprocessors together; those of size 0 are not free.
fn choose(sizes: &[u32], wanted: u32) -> Option<Vec<usize>> {
    let (mut chosen, mut sum) = (Vec::new(), 0);
    for (group, &size) in sizes.iter().enumerate().filter(|(_, size)| **size > 0) {
        if sum >= wanted {
            break;
        }
        chosen.push(group);
        sum += size;
    }
    (sum >= wanted && !chosen.is_empty()).then_some(chosen)
}

fn nothing() -> sys::CUdevResource {
    // SAFETY: a resource is numbers and bytes, for which all zeros is a value: type "invalid".
    unsafe { MaybeUninit::<sys::CUdevResource>::zeroed().assume_init() }
}

fn multiprocessors(resource: &sys::CUdevResource) -> u32 {
    if resource.type_ as u32 != MULTIPROCESSORS {
        return 0;
    }
    // SAFETY: the type says that this member of the union was written; a count has any bits.
    unsafe { resource.__bindgen_anon_1.sm.smCount }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_made_of_free_groups_and_the_rest_comes_last() {
        let mut h200 = vec![8; 16];
        h200.push(4);
        assert_eq!(choose(&h200, 16), Some(vec![0, 1]));
        assert_eq!(choose(&h200, 20), Some(vec![0, 1, 2]), "at least as many as asked for");
        assert_eq!(choose(&h200, 132).map(|groups| groups.len()), Some(17));
        assert_eq!(choose(&h200, 133), None);
        h200[..6].fill(0);
        assert_eq!(choose(&h200, 84), Some((6..17).collect()));
        assert_eq!(choose(&[0, 0], 1), None);
    }
}
