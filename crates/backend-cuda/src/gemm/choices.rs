//! Which algorithm is used for which products.
//!
//! The choice behind it: nothing of a device here, so that what counts as valid and what is
//! remembered is tested anywhere.

use std::collections::HashMap;

use super::{Bucket, Format, Linear, fusable};
use crate::driver::cublaslt::Function;

/// Products that share an algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    format: Format,
    bucket: Bucket,
    inputs: usize,
    outputs: usize,
    bias: bool,
    /// What the library is asked to apply first.
    function: Function,
}

impl Key {
    pub(super) fn of(linear: &Linear<'_>) -> Self {
        Self {
            format: linear.format,
            bucket: Bucket::of(linear.rows),
            inputs: linear.inputs,
            outputs: linear.outputs,
            bias: linear.bias.is_some(),
            function: fusable(linear.activation, linear.format),
        }
    }
}

/// A choice for each kind of product that there was.
#[derive(Debug)]
pub(super) struct Choices<C>(HashMap<Key, C>);

impl<C> Default for Choices<C> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<C: Copy> Choices<C> {
    /// What was chosen before, or else now. A failure to choose is not remembered.
    pub(super) fn get_or_choose<E>(
        &mut self,
        key: Key,
        choose: impl FnOnce() -> Result<C, E>,
    ) -> Result<C, E> {
        if let Some(choice) = self.0.get(&key) {
            return Ok(*choice);
        }
        let choice = choose()?;
        self.keep(key, choice);
        Ok(choice)
    }

    /// How many kinds there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Replaces what was chosen before.
    pub(super) fn keep(&mut self, key: Key, choice: C) {
        self.0.insert(key, choice);
    }
}

/// What is proposed for the most rows of `bucket` and holds for the fewest, too, in its order.
pub(super) fn valid_in<C, E>(
    bucket: Bucket,
    propose: impl FnOnce(usize) -> Result<Vec<C>, E>,
    mut holds: impl FnMut(usize, &C) -> Result<bool, E>,
) -> Result<Vec<C>, E> {
    let mut valid = Vec::new();
    for candidate in propose(bucket.most())? {
        if holds(bucket.fewest(), &candidate)? {
            valid.push(candidate);
        }
    }
    Ok(valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(rows: usize, function: Function) -> Key {
        let (format, bucket) = (Format::F16, Bucket::of(rows));
        let (inputs, outputs, bias) = (384, 1536, true);
        Key { format, bucket, inputs, outputs, bias, function }
    }

    #[test]
    fn a_bucket_is_asked_about_once() {
        let mut choices = Choices::default();
        let mut asked = 0;
        for rows in [113, 120, 117, 121, 128, 113] {
            let choice = choices.get_or_choose(key(rows, Function::Identity), || {
                asked += 1;
                Ok::<_, ()>(asked)
            });
            assert_eq!(choice, Ok(if rows <= 120 { 1 } else { 2 }), "{rows} rows");
        }
    }

    #[test]
    fn functions_are_told_apart_and_failures_forgotten() {
        let mut choices = Choices::default();
        choices.keep(key(5, Function::Relu), 7);
        let identity = key(5, Function::Identity);
        assert_eq!(choices.get_or_choose(identity, || Err("busy")), Err("busy"));
        assert_eq!(choices.get_or_choose(identity, || Ok::<_, &str>(8)), Ok(8));
        assert_eq!(choices.get_or_choose(key(5, Function::Relu), || Err("busy")), Ok(7));
    }

    #[test]
    fn tuning_replaces_an_estimate() {
        let mut choices = Choices::default();
        let key = key(100, Function::Identity);
        choices.keep(key, 1);
        choices.keep(key, 2);
        assert_eq!(choices.get_or_choose(key, || Ok::<_, ()>(3)), Ok(2));
    }

    #[test]
    fn an_algorithm_must_hold_for_both_ends() {
        let bucket = Bucket::of(1000);
        let propose = |rows| {
            assert_eq!(rows, 1024);
            Ok::<_, ()>(vec![1, 2, 3, 4])
        };
        let holds = |rows, candidate: &i32| {
            assert_eq!(rows, 961);
            Ok(candidate % 2 == 0)
        };
        assert_eq!(valid_in(bucket, propose, holds), Ok(vec![2, 4]));
        assert_eq!(valid_in(bucket, |_| Err("lost"), |_, _: &i32| Ok(true)), Err("lost"));
        assert_eq!(valid_in(bucket, |_| Ok(vec![1]), |_, _| Err("lost")), Err("lost"));
    }
}
