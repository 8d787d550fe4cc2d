//! Where a model's weights lie: one region, whose every offset is known before anything is read.
//!
//! - [`WeightPlan`] has the places that a [`Lower`](crate::Lower) named.
//! - [`RegionWriter`] hands them out, one after the other, while a model is loaded; [`Stored`] is
//!   one of them, to be read once all are written.
//! - [`load_weights`] does both for whoever loads, and finds every place used. [`Weights`] are then
//!   found by their numbers.
//!
//! The choice behind it: a place is asked for with its size, and both sides must say the same.
//! So what is loaded is what was planned, to the byte, or loading fails.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use vecmill_memory::{HostBlock, LeaseError, Plan, Pool, Region, Source};

use crate::error::BackendError;
use crate::graph::WeightId;

/// What places in a region start at multiples of: what matrix multiplication on GPUs wants.
pub const WEIGHT_ALIGNMENT: usize = 256;

/// Where each stored form of each weight lies, in the order of their loading.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WeightPlan {
    places: Vec<Range<usize>>,
    bytes: usize,
    mapped_bytes: usize,
}

impl WeightPlan {
    /// A place for `bytes` bytes, behind those before.
    pub fn place(&mut self, bytes: usize) {
        let place = self.bytes..self.bytes.saturating_add(bytes);
        self.bytes = place.end.checked_next_multiple_of(WEIGHT_ALIGNMENT).unwrap_or(place.end);
        self.places.push(place);
    }

    /// `bytes` bytes that are read where the model's file is mapped: they take no place, but
    /// memory as they are read.
    pub fn mapped(&mut self, bytes: usize) {
        self.mapped_bytes = self.mapped_bytes.saturating_add(bytes);
    }

    /// The region's bytes.
    pub fn region_bytes(&self) -> usize {
        self.bytes
    }

    /// What is read where the model's file is mapped.
    pub fn mapped_bytes(&self) -> usize {
        self.mapped_bytes
    }

    /// The same in whole granules.
    pub(crate) fn mapped_granules(&self) -> usize {
        granules(self.mapped_bytes)
    }

    /// What the weights take of a pool's budget, in whole granules.
    pub fn reserved_bytes(&self) -> usize {
        granules(self.bytes).saturating_add(self.mapped_granules())
    }
}

fn granules(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(Plan::GRANULE).unwrap_or(bytes)
}

/// What was loaded, by the number of the [weight that stands for it](crate::graph::Op::weight).
#[derive(Debug)]
pub struct Weights<W>(Vec<Option<W>>);

impl<W> Weights<W> {
    /// Room for so many weights.
    pub fn new(count: usize) -> Self {
        Self((0..count).map(|_| None).collect())
    }

    /// Keeps what was loaded.
    pub fn keep(&mut self, weight: WeightId, loaded: W) {
        self.0[weight.index()] = Some(loaded);
    }

    /// What was loaded.
    ///
    /// # Errors
    /// When nothing was.
    pub fn get(&self, weight: WeightId) -> Result<&W, BackendError> {
        let loaded = self.0.get(weight.index()).and_then(Option::as_ref);
        loaded.ok_or_else(|| {
            let reason = "its weights were not loaded: please report this".into();
            BackendError { operation: "a step", reason }
        })
    }
}

/// A region that is being filled.
#[derive(Debug)]
pub struct RegionWriter<M> {
    region: Region<M>,
    places: std::vec::IntoIter<Range<usize>>,
    written: Arc<OnceLock<Region<M>>>,
}

/// A stored form of a weight. It stays there as long as this lives.
#[derive(Debug)]
pub struct Stored<M> {
    region: Arc<OnceLock<Region<M>>>,
    bytes: Range<usize>,
}

impl<M> RegionWriter<M> {
    fn new(region: Region<M>, plan: &WeightPlan) -> Self {
        let places = plan.places.clone().into_iter();
        Self { region, places, written: Arc::default() }
    }

    /// The next place, which must have been planned for `bytes` bytes. Whoever asks writes it.
    ///
    /// # Errors
    /// When something else was planned.
    pub fn place(&mut self, bytes: usize) -> Result<Stored<M>, BackendError> {
        let planned = self.places.next();
        let Some(place) = planned.clone().filter(|place| place.len() == bytes) else {
            let planned = planned.map_or("none".to_owned(), |place| format!("{}", place.len()));
            return Err(defect(&format!("a weight takes {bytes} bytes and not {planned}")));
        };
        Ok(Stored { region: Arc::clone(&self.written), bytes: place })
    }

    /// The memory that places are ranges of.
    pub fn memory(&self) -> &M {
        self.region.block()
    }

    /// The same, for writing.
    pub fn memory_mut(&mut self) -> &mut M {
        self.region.block_mut()
    }

    /// From now on places can be read.
    fn finish(mut self) -> Result<(), BackendError> {
        if let Some(place) = self.places.next() {
            return Err(defect(&format!("no weight takes a place of {} bytes", place.len())));
        }
        // Nobody else sets it: this is its only writer.
        let _ = self.written.set(self.region);
        Ok(())
    }
}

impl RegionWriter<HostBlock> {
    /// The next place, for `count` numbers, which `fill` writes; they are zero before.
    ///
    /// # Errors
    /// As for [`place`](Self::place).
    pub fn floats(
        &mut self,
        count: usize,
        fill: impl FnOnce(&mut [f32]),
    ) -> Result<Stored<HostBlock>, BackendError> {
        let place = self.place(count * size_of::<f32>())?;
        fill(bytemuck::cast_slice_mut(&mut self.memory_mut().bytes_mut()[place.range()]));
        Ok(place)
    }
}

impl Stored<HostBlock> {
    /// Its numbers; none before all of the region is written.
    pub fn floats(&self) -> &[f32] {
        self.memory().map_or(&[], |block| bytemuck::cast_slice(&block.bytes()[self.range()]))
    }
}

impl<M> Stored<M> {
    /// Where it lies in the region's memory.
    pub fn range(&self) -> Range<usize> {
        self.bytes.clone()
    }

    /// The region's memory; `None` before all of it is written.
    pub fn memory(&self) -> Option<&M> {
        self.region.get().map(Region::block)
    }
}

fn defect(what: &str) -> BackendError {
    let reason = format!("{what}, as was planned: please report this");
    BackendError { operation: "load", reason }
}

/// Takes the region that `plan` is for from `pool` and has `load` fill it.
///
/// # Errors
/// When the pool does not have that much, loading fails, or takes other places than were planned.
pub fn load_weights<S: Source, T, E: From<LeaseError> + From<BackendError>>(
    pool: &Pool<S>,
    plan: &WeightPlan,
    load: impl FnOnce(&mut RegionWriter<S::Block>) -> Result<T, E>,
) -> Result<T, E> {
    let mut writer = RegionWriter::new(pool.region(plan.region_bytes())?, plan);
    let loaded = load(&mut writer)?;
    writer.finish()?;
    Ok(loaded)
}

#[cfg(test)]
mod tests {
    use vecmill_memory::HostSource;

    use super::*;
    use crate::encoder::LoadError;

    fn plan() -> WeightPlan {
        let mut plan = WeightPlan::default();
        [100, 300, 256].into_iter().for_each(|bytes| plan.place(bytes));
        plan.mapped(5000);
        plan
    }

    fn filled(sizes: &[usize]) -> Result<Vec<Stored<HostBlock>>, LoadError> {
        let pool = Pool::new(HostSource, 4 * Plan::GRANULE);
        load_weights(&pool, &plan(), |writer| {
            let places = sizes.iter().map(|&bytes| {
                let place = writer.place(bytes)?;
                writer.memory_mut().bytes_mut()[place.range()].fill(1);
                assert!(place.memory().is_none(), "it is not written yet");
                Ok(place)
            });
            places.collect()
        })
    }

    #[test]
    fn places_lie_behind_each_other_and_are_read_when_all_are_written() {
        assert_eq!((plan().region_bytes(), plan().mapped_bytes()), (256 + 512 + 256, 5000));
        assert_eq!(plan().reserved_bytes(), 2 * Plan::GRANULE);
        let places = filled(&[100, 300, 256]).unwrap();
        let ranges: Vec<_> = places.iter().map(Stored::range).collect();
        assert_eq!(ranges, [0..100, 256..556, 768..1024]);
        for place in places {
            assert!(place.memory().unwrap().bytes()[place.range()].iter().all(|&byte| byte == 1));
        }
    }

    #[test]
    fn what_was_not_planned_is_not_loaded() {
        for (sizes, said) in [
            (&[100, 301][..], "takes 301 bytes and not 300"),
            (&[100, 300, 256, 1], "takes 1 bytes and not none"),
            (&[100, 300], "no weight takes a place of 256 bytes"),
        ] {
            let error = filled(sizes).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
