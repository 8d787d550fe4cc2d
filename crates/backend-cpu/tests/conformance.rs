//! The CPU against the suite that every backend must pass.

use vecmill_backend_cpu::CpuBackend;
use vecmill_encoder::Precision;
use vecmill_encoder::conformance::{self, Trial, Tried};
use vecmill_model::DType;

#[test]
fn every_operation_is_within_rounding_of_the_reference() {
    for threads in [1, 2, 5] {
        conformance::operations(&CpuBackend::new(threads).unwrap()).unwrap();
    }
}

#[test]
fn every_architecture_agrees_with_transformers() {
    for model in conformance::models().unwrap() {
        let agreement = conformance::model(CpuBackend::new(2).unwrap(), &model).unwrap();
        println!("{} {agreement:?}", model.display());
        let precision = Precision::of(DType::F32);
        assert!(agreement.is_within(precision), "{}: {agreement:?}", model.display());
    }
}

#[test]
fn a_text_has_the_same_vector_alone_and_in_a_batch() {
    for model in conformance::models().unwrap() {
        let difference = conformance::independence(CpuBackend::new(2).unwrap(), &model).unwrap();
        assert_eq!(difference, 0.0, "{}", model.display());
    }
}

#[test]
fn padding_changes_no_vector() {
    for model in conformance::models().unwrap() {
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
