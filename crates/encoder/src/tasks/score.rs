//! A score for each label of a sequence, or of two texts in one: the head of a model that classifies.
//! What is applied to scores is not computed here, because requests may want them as they are.

use super::{Head, Task, of_sequences};
use vecmill_model::{Model, Pooling, Task as Purpose};

pub(super) const TASK: Task = Task { find, tail: of_sequences };

fn find(model: &Model, _: Option<Pooling>) -> Option<Head> {
    match &model.task {
        Purpose::Classify(head) => {
            Some(Head { pooling: head.pooling.into(), layers: head.layers.clone() })
        }
        _ => None,
    }
}
