//! This machine's processor, in single precision.

use std::time::Duration;

use vecmill_backend_cpu::CpuBackend;
use vecmill_model::{DType, Model};

use super::{MemoryBudget, Opened, Terms, format_name};
use crate::builder::Builder;
use crate::error::StartError;
use crate::info;
use crate::machine::{self, Memory};

/// Tokens of a batch from which on the CPU gets no faster; more would only take more memory.
const CPU_BATCH_TOKENS: usize = 2048;

/// How long practising may take: nothing is compiled here, only times are learned.
const WARM_UP: Duration = Duration::from_millis(500);

const NAME: &str = "cpu";

impl Builder {
    pub(super) fn open_cpu(&self, model: &Model) -> Result<Opened, StartError> {
        if self.dtype.is_some_and(|format| format != DType::F32) {
            return Err(StartError::Setting {
                setting: "dtype",
                reason: "the CPU computes in float32: expected auto or float32".into(),
            });
        }
        let memory = machine::memory();
        let terms = self.cpu_terms_in(memory.as_ref())?;
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
        let info = cpu_info(self.cpu_threads);
        let hardware = info.description.clone();
        self.load(model, info, &hardware, CpuBackend::new(self.cpu_threads)?, terms)
    }

    pub(super) fn cpu_terms(&self) -> Result<Terms, StartError> {
        self.cpu_terms_in(machine::memory().as_ref())
    }

    fn cpu_terms_in(&self, memory: Option<&Memory>) -> Result<Terms, StartError> {
        let usable = memory.map_or(usize::MAX, Memory::usable_bytes);
        let left = usable.saturating_sub(self.set_aside);
        let budget_bytes = match self.memory_budget {
            None => left,
            Some(budget) => {
                let bytes = budget.of(memory.map(|memory| memory.limit_bytes))?;
                if matches!(budget, MemoryBudget::Percent(_)) { bytes.min(left) } else { bytes }
            }
        };
        let (batch_tokens, warm_up) = (CPU_BATCH_TOKENS, WARM_UP);
        Ok(Terms { budget_bytes, batch_tokens, warm_up, free_memory: None })
    }
}

/// What the CPU is.
pub(crate) fn cpu_info(threads: usize) -> info::DeviceSummary {
    let plural = if threads == 1 { "" } else { "s" };
    let instructions = CpuBackend::detected_instructions();
    info::DeviceSummary {
        name: NAME.into(),
        description: format!("{threads} thread{plural}, {instructions}"),
        dtype: format_name(DType::F32).into(),
    }
}
