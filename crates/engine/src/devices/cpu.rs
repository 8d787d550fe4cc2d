//! This machine's processor, in single precision.

use std::time::Duration;

use vecmill_backend_cpu::{CpuBackend, CpuLowering};
use vecmill_encoder::Fit;
use vecmill_model::DType;

use super::inventory::Found;
use super::{Kind, Opened, Opening, Terms, format_name};
use crate::error::StartError;
use crate::info::DeviceSummary;
use crate::machine::{self, Limiter, Memory};
use crate::settings::{MemoryBudget, Settings};

/// Tokens of a batch from which on the CPU gets no faster; more would only take more memory.
const CPU_BATCH_TOKENS: usize = 2048;

/// How long practising may take: nothing is compiled here, only times are learned.
const WARM_UP: Duration = Duration::from_millis(500);

const NAME: &str = "cpu";

/// The kind.
pub(crate) struct Cpu;

impl Kind for Cpu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forms(&self) -> &'static str {
        NAME
    }

    fn knows(&self, which: &str) -> bool {
        which.is_empty()
    }

    fn open(&self, opening: &Opening<'_>, _: &str, _: &[&str]) -> Result<Vec<Opened>, StartError> {
        self.open_usable(opening)
    }

    fn open_usable(&self, opening: &Opening<'_>) -> Result<Vec<Opened>, StartError> {
        let settings = opening.settings;
        if settings.dtype.is_some_and(|format| format != DType::F32) {
            return Err(StartError::Setting {
                setting: "dtype",
                reason: "the CPU computes in float32: expected auto or float32".into(),
            });
        }
        let memory = machine::memory();
        let terms = terms(settings, memory.as_ref())?;
        if let Some(memory) = memory.filter(|memory| memory.free_bytes < terms.budget_bytes) {
            let (limit_bytes, limited_by) = (memory.limit_bytes, &memory.limited_by);
            tracing::warn!(
                budget_bytes = terms.budget_bytes,
                free_bytes = memory.free_bytes,
                limit_bytes,
                %limited_by,
                "the memory budget is more than this process can have: batches may fail, or the \
                 system may end it; lower --memory-budget"
            );
        }
        let summary = summary(settings.cpu_threads);
        let hardware = summary.description.clone();
        let backend = CpuBackend::new(settings.cpu_threads)?;
        Ok(vec![opening.onto(backend, summary, &hardware, terms)?])
    }

    fn find(&self) -> Result<Vec<Found>, String> {
        let DeviceSummary { name, description, .. } = summary(machine::threads());
        let memory = machine::memory();
        Ok(vec![Found {
            name,
            description,
            processor: machine::processor(),
            memory_bytes: memory.as_ref().map(|memory| memory.limit_bytes),
            free_memory_bytes: memory.as_ref().map(|memory| memory.free_bytes),
            memory_limited_by: memory
                .map(|memory| memory.limited_by)
                .filter(|limiter| *limiter != Limiter::Machine),
            state: None,
        }])
    }

    fn fit(&self, opening: &Opening<'_>, _: DType, in_flight: usize) -> Result<Fit, StartError> {
        let terms = terms(opening.settings, machine::memory().as_ref())?;
        opening.fit(CpuLowering::new(opening.settings.cpu_threads), &terms, in_flight)
    }
}

/// What it gives and takes, where so much memory is.
fn terms(settings: &Settings, memory: Option<&Memory>) -> Result<Terms, StartError> {
    let usable = memory.map_or(usize::MAX, Memory::usable_bytes);
    let left = usable.saturating_sub(settings.set_aside);
    let budget_bytes = match settings.memory_budget {
        None => left,
        Some(budget) => {
            let bytes = budget.of(memory.map(|memory| memory.limit_bytes))?;
            if matches!(budget, MemoryBudget::Percent(_)) { bytes.min(left) } else { bytes }
        }
    };
    let (batch_tokens, warm_up) = (CPU_BATCH_TOKENS, WARM_UP);
    Ok(Terms { budget_bytes, batch_tokens, warm_up, free_memory: None })
}

/// What the CPU is.
fn summary(threads: usize) -> DeviceSummary {
    let plural = if threads == 1 { "" } else { "s" };
    let instructions = CpuBackend::detected_instructions();
    DeviceSummary {
        name: NAME.into(),
        description: format!("{threads} thread{plural}, {instructions}"),
        dtype: format_name(DType::F32).into(),
    }
}
