//! ERNIE (Sun et al., arXiv:1907.12412; 3.0, arXiv:2107.02137): BERT whose tokens may have a task's row,
//! always that of task 0.

use super::super::keys::{Rule, row};
use super::super::{Architecture, Config, ModelError, TensorView, Weight};
use super::{Family, Tensors, bert};

pub(super) const FAMILY: Family = Family {
    name: "ERNIE",
    model_types: &["ernie"],
    prefixes: &["ernie."],
    rules: &[
        bert::PADDING,
        row(
            &["use_task_id", "task_type_vocab_size"],
            Rule::Unread("the table of tasks is among the weights where it counts"),
        ),
    ],
    read,
    ..bert::FAMILY
};

fn read(config: &Config, tensors: &Tensors<'_>) -> Result<Architecture, ModelError> {
    let mut architecture = bert::read(config, tensors)?;
    let task = tensors.first_row("embeddings.task_type_embeddings", config.embedding)?;
    if let (Some(types), Some(task)) = (&mut architecture.embedding.types, task) {
        // Each token gets both, so one table has their sums.
        let mut sums = types.to_f32().into_owned();
        for row in sums.chunks_mut(task.len()) {
            row.iter_mut().zip(&task).for_each(|(number, of_task)| *number += of_task);
        }
        let shape = [config.token_types, config.embedding];
        *types = Weight::Tensor(TensorView::from_f32("embeddings.types_and_task", &shape, sums)?);
    }
    Ok(architecture)
}
