//! The CPU against the suite that every backend must pass.

#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use vecmill_backend_cpu::CpuBackend;
use vecmill_encoder::conformance::{self, Trial, Tried};

fn models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut models: Vec<_> = entries.filter(|path| path.join("expected.json").exists()).collect();
    models.sort();
    assert!(models.len() >= 14, "{models:?}");
    models
}

#[test]
fn every_operation_is_within_rounding_of_the_reference() {
    for threads in [1, 2, 5] {
        conformance::operations(&CpuBackend::new(threads).unwrap()).unwrap();
    }
}

#[test]
fn every_architecture_agrees_with_transformers() {
    for model in models() {
        let agreement = conformance::model(CpuBackend::new(2).unwrap(), &model).unwrap();
        println!("{} {agreement:?}", model.display());
        assert!(agreement.vectors > 0);
        // Three layers of sums over at most 200 terms in f32 leave five digits at the worst.
        assert!(agreement.largest_difference < 1e-5, "{}: {agreement:?}", model.display());
        assert!(agreement.lowest_cosine > 0.999_999_99, "{}: {agreement:?}", model.display());
    }
}

#[test]
fn a_text_has_the_same_vector_alone_and_in_a_batch() {
    for model in models() {
        let difference = conformance::independence(CpuBackend::new(2).unwrap(), &model).unwrap();
        assert_eq!(difference, 0.0, "{}", model.display());
    }
}

#[test]
fn padding_changes_no_vector() {
    for model in models() {
        let padded = || {
            let trial = Trial::default();
            trial.pad();
            Tried::new(CpuBackend::new(2).unwrap(), trial)
        };
        let exact = conformance::model(CpuBackend::new(2).unwrap(), &model).unwrap();
        assert_eq!(conformance::model(padded(), &model).unwrap(), exact, "{}", model.display());
        assert_eq!(conformance::independence(padded(), &model).unwrap(), 0.0);
    }
}
